"""Where this manager is, as the Docker daemon sees it: on its host, or in one of its containers.

Read by the runtime. Guarantees that only a container that the daemon itself knows is taken for ours: marks such as
``/.dockerenv`` are also found on machines that are Docker hosts themselves.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llamaman.core.in_docker import detect_in_docker
from llamaman.errors import LaunchError
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, Json

log = logging.getLogger(__name__)

#: What an engine mounts into each of its containers, from a folder named by the container's id.
_MOUNTED: Final = frozenset({"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"})
_IN_MOUNT: Final = re.compile(r"/(?:overlay-)?containers/([0-9a-f]{64})/")
_IN_CGROUP: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")
_IN_CONTAINERENV: Final = re.compile(r'^id="([0-9a-f]{64})"', re.MULTILINE)
_HOSTNAME: Final = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder or file of the Docker host in our container."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are.

    :ivar in_container: containers are our neighbours, reached over their network.
    :ivar own_id: our container's full id where the daemon knows it; it may run on the host's network.
    :ivar binds: what of the Docker host our container sees; empty without ``own_id``.
    :ivar note: a sentence for the administrator, None when all is clear.
    """

    in_container: bool
    own_id: str | None
    binds: tuple[Bind, ...]
    note: str | None


def find_place(daemon: Daemon, in_docker: bool | None, *, root: Path = Path("/")) -> Place:
    """Look at the marks of engines and ask the daemon whether it knows us.

    :param in_docker: LLAMAMAN_IN_DOCKER; None: find out.
    :param root: where ``etc``, ``proc`` and ``run`` are; tests pass a folder of their own.
    :raises DaemonGone: the daemon cannot be reached.
    """
    marked = detect_in_docker(root)
    if in_docker is None and not marked:
        return Place(False, None, (), None)
    ours = _ourselves(daemon, root) if marked or in_docker else None
    if ours is not None:
        return Place(in_docker is not False, str(ours["Id"]), _binds(ours), None)
    if in_docker:
        return Place(
            True,
            None,
            (),
            "LLAMAMAN_IN_DOCKER says that LlamaMan runs in a container, but the Docker daemon at "
            f"{daemon.address} knows none that is ours: set HOST_MODELS_DIR, and attach the container to "
            "LLAMA_NETWORK ('docker network connect NETWORK CONTAINER')",
        )
    if in_docker is None:
        return Place(
            False,
            None,
            (),
            "LlamaMan seems to run in a container, but not in one of the Docker daemon at "
            f"{daemon.address}: it acts as if it ran on the Docker host; "
            "set LLAMAMAN_IN_DOCKER=true or false if that is wrong or to silence this",
        )
    return Place(False, None, (), None)


def host_path(path: Path, place: Place, given: Sequence[tuple[Path, Path]]) -> str:
    """``path`` as the Docker host knows it.

    :param path: absolute, without links.
    :param given: (our folder, the same one on the Docker host) of MODELS_DIR and HOST_MODELS_DIR.
    :raises LaunchError: nobody can tell.
    """
    told = _below(path, [(str(theirs), _forms(ours)) for ours, theirs in given if ours != theirs])
    if told is not None:
        return told
    if place.own_id is not None:
        seen = _below(path, [(bind.source, (bind.destination,)) for bind in place.binds])
    elif place.in_container:  # told so, and told that the folders have one name on both sides
        seen = _below(path, [(str(theirs), _forms(ours)) for ours, theirs in given])
    else:
        seen = str(path)
    if seen is None:
        raise LaunchError(
            "the Docker host's name for the folder of this model is not known, for it is no mount of LlamaMan's "
            "container: mount it there, or set HOST_MODELS_DIR to the folder on the Docker host that MODELS_DIR is",
            detail=f"{path} is below none of the container's mounts",
        )
    return seen


# --- which container is ours -------------------------------------------------------------------------


def _ourselves(daemon: Daemon, root: Path) -> Json | None:
    """Our container as the daemon describes it, None when it knows none of the ids that may be ours."""
    for candidate in dict.fromkeys(_candidates(root)):
        try:
            found = daemon.inspect(candidate)
        except DaemonError as error:
            log.warning("Docker does not tell whether container %s is ours: %s", candidate[:12], error)
            continue
        # A container's name may look like an id.
        if found and str(found["Id"]).startswith(candidate) and found["State"].get("Running"):
            return found
    return None


def _candidates(root: Path) -> Iterator[str]:
    """Ids that may be ours, the surest first."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        # Fields 4 and 5: the path inside its file system, and where it is mounted. Docker hosts show folders of
        # containers, too, but mounted elsewhere.
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in _MOUNTED and (found := _IN_MOUNT.search(fields[3])):
            yield found[1]
    yield from _IN_CONTAINERENV.findall(_read(root / "run/.containerenv"))
    yield from _IN_CGROUP.findall(_read(root / "proc/self/cgroup"))
    hostname = _read(root / "etc/hostname").strip()
    if _HOSTNAME.fullmatch(hostname):
        yield hostname


def _binds(ours: Json) -> tuple[Bind, ...]:
    """Mounts that have a path on the host; the source of a named volume is where its driver keeps it."""
    return tuple(
        Bind(str(mount["Source"]), str(mount["Destination"]))
        for mount in ours.get("Mounts") or ()
        if mount.get("Source") and mount.get("Type", "bind") in ("bind", "volume")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such mark here
        return ""


# --- paths -------------------------------------------------------------------------------------------


def _forms(folder: Path) -> tuple[str, ...]:
    """A folder's name as it was given and without links: the paths of models have none."""
    return (str(folder), str(folder.resolve()))


def _below(path: Path, pairs: Sequence[tuple[str, Sequence[str]]]) -> str | None:
    """``path`` moved from the longest of the second names that lead to it, to the first name of the pair."""
    fits = [
        (len(Path(name).parts), host, Path(name))
        for host, names in pairs
        for name in names
        if path.is_relative_to(name)
    ]
    if not fits:
        return None
    _, host, name = max(fits, key=lambda fit: fit[0])
    rest = path.relative_to(name).as_posix()
    return host if rest == "." else f"{host.rstrip('/')}/{rest}"
