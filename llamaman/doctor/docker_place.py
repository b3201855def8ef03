"""Whether LlamaMan and its Docker daemon mean the same machine: container or host, and whose paths are whose. Pure.

Read by `docker.py`. What our place is, the runtime's own :mod:`llamaman.runtimes.docker.place` finds out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from llamaman.core.config import Config
from llamaman.core.in_docker import WRONG_PLACE
from llamaman.doctor.finding import Finding, fail, ok, warn
from llamaman.errors import LaunchError
from llamaman.runtimes.docker.place import Place, host_path

PLACE: Final = "in-docker"
PATHS: Final = "host-paths"

_MAP: Final = (
    "mount it into LlamaMan's container (volumes: in Compose), or set HOST_MODELS_DIR to its path on the host"
)


def check_place(config: Config, place: Place, *, local: bool) -> list[Finding]:
    """Whether we know rightly where we are: by that it is decided how engines are reached.

    :param place: as launches take it, by LLAMAMAN_IN_DOCKER and what the daemon says.
    :param local: the daemon is reached by a socket of this machine.
    """
    if place.note is not None:
        return [warn(PLACE, place.note, WRONG_PLACE)]
    if place.own_id is None:
        where = "beside the Docker daemon" if local else "on another machine than the Docker daemon"
        return [ok(PLACE, f"LlamaMan runs on the host itself, {where}")]
    own = place.own_id[:12]
    if not place.in_container:
        what = f"LLAMAMAN_IN_DOCKER is false, and LlamaMan runs in the container {own} of this daemon"
        return [warn(PLACE, what, WRONG_PLACE)]
    return [ok(PLACE, f"LlamaMan runs in the container {own} of this daemon")]


def check_folders(config: Config, place: Place, *, local: bool) -> list[Finding]:
    """Whether the daemon finds the models where it is told to mount them from."""
    pairs = list(zip(config.models_dirs, config.host_models_dirs, strict=True))
    given = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    if place.in_container:
        return [_inside(ours, theirs, place, given) for ours, theirs in pairs]
    if given:
        shown = ", ".join(f"{ours} as {theirs}" for ours, theirs in given)
        if local:
            what = f"HOST_MODELS_DIR gives Docker {shown}, although both see the same files"
            return [warn(PATHS, what, "unset HOST_MODELS_DIR, unless one folder is a link to the other")]
        return [ok(PATHS, f"HOST_MODELS_DIR gives Docker {shown}")]
    if not local:
        what = "Docker runs on another machine and mounts MODELS_DIR of that one, not the files that LlamaMan sees"
        cure = "share the folder under the same path (NFS), or set HOST_MODELS_DIR to its path there"
        return [warn(PATHS, what, cure)]
    return [ok(PATHS, "Docker mounts model files from where LlamaMan sees them")]


def _inside(ours: Path, theirs: Path, place: Place, given: list[tuple[Path, Path]]) -> Finding:
    found = _mapped(ours, place, [])
    if ours == theirs:
        if isinstance(found, str):
            return ok(PATHS, f"{ours} is {found} for Docker, as the mounts of LlamaMan's own container say")
        return fail(PATHS, f"{ours}: {found.message}", _MAP)
    if isinstance(found, str) and Path(found) != theirs:
        what = (
            f"HOST_MODELS_DIR says that {ours} is {theirs} on the Docker host, and it is mounted from {found}"
        )
        return warn(
            PATHS, what, "unset HOST_MODELS_DIR: the mounts of LlamaMan's own container say it better"
        )
    told = _mapped(ours, place, given)
    if isinstance(told, str):
        return ok(PATHS, f"{ours} is {told} for Docker (HOST_MODELS_DIR)")
    return fail(PATHS, f"{ours}: {told.message}", _MAP)


def _mapped(path: Path, place: Place, given: list[tuple[Path, Path]]) -> str | LaunchError:
    try:
        return host_path(path, place, given)
    except LaunchError as error:
        return error
