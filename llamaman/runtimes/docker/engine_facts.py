"""What kind of engine answers at the socket, read from its ``/version`` and ``/info``. Pure.

For the runtime and for the doctor.
"""

from __future__ import annotations

from llamaman.runtimes.docker.daemon import Json


def is_podman(version: Json) -> bool:
    """Whether Podman's service answers in Docker's place."""
    return any("podman" in str(part.get("Name", "")).lower() for part in _components(version))


def is_desktop(info: Json) -> bool:
    """Whether it is Docker Desktop, whose containers are in a virtual machine."""
    return (
        "docker desktop" in str(info.get("OperatingSystem")).lower() or info.get("Name") == "docker-desktop"
    )


def is_rootless(info: Json) -> bool:
    """Whether the daemon runs under an ordinary account of its machine."""
    return any("rootless" in str(option) for option in info.get("SecurityOptions") or ())


def has_init(version: Json, info: Json) -> bool:
    """Whether ``Init`` works. ``InitBinary`` is the configured name, which is there without its program, too."""
    if is_podman(version):
        return True  # it brings one along, and says nothing of it
    if not info.get("InitBinary"):
        return False
    named = [
        str(part.get("Version", "")) for part in _components(version) if part.get("Name") == "docker-init"
    ]
    commit = str((info.get("InitCommit") or {}).get("ID", ""))
    return "N/A" not in (*named, commit)


def _components(version: Json) -> list[Json]:
    return [part for part in version.get("Components") or () if isinstance(part, dict)]
