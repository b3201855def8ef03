"""Whether this process runs inside a container. Read by the kernel when LLAMAMAN_IN_DOCKER is not set.

The answer decides how spawned containers are reached: as a neighbour on their network, or from its host.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: The documented answer where engines cannot be reached, word for word.
WRONG_PLACE: Final = (
    "The container is healthy but llamaman can't reach it. Deployment mode is auto-detected, but if it's wrong for "
    "your runtime, set LLAMAMAN_IN_DOCKER=false (bare-metal) or true (in Docker) explicitly."
)

_MARKERS = (".dockerenv", "run/.containerenv")
_CGROUP_WORDS = ("/docker", "/kubepods", "containerd", "libpod", "/lxc/")


def detect_in_docker(root: Path = Path("/")) -> bool:
    """True when a container runtime left its mark on this process.

    :param root: where ``.dockerenv`` and ``proc`` are looked for; tests pass a folder of their own.
    """
    if any((root / marker).exists() for marker in _MARKERS):
        return True
    # cgroup v1 and host cgroup namespaces show the runtime in the path of process 1; with a private v2
    # namespace the path is only "/", and the bind mount of /etc/hostname is what is left to see.
    if any(word in _read(root / "proc/1/cgroup") for word in _CGROUP_WORDS):
        return True
    return any(
        "/containers/" in line and " /etc/hostname " in line
        for line in _read(root / "proc/self/mountinfo").splitlines()
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or /proc is not mounted: then there is no evidence of a container
        return ""
