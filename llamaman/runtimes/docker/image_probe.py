"""Asking an image which flags its llama-server knows: a container that lives for a second and can do nothing.

Read by :mod:`images`. The container has no network, no way to write, no capability and no files of ours. It is
removed whatever happens; its name is written down before it is made, so that one which a killed manager left behind
is found by that name, and no other container is ever touched.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llamaman.runtimes.docker import labels
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.faults import DaemonError
from llamaman.runtimes.engines import Probe, parse_help, parse_version

PURPOSE: Final = "llamaman.purpose"
_PROBE: Final = "probe"
_NAME: Final = "llamaman-probe-"
_SCRATCH: Final = "/tmp"  # noqa: S108 - in the container, where nobody else is
_TIMEOUT_S: Final = 30.0
_MEMORY: Final = 512 << 20
_PROCESSES: Final = 128
_LONGEST_OUTPUT: Final = 4 << 20

_BUILD = re.compile(r"[\w.+:-]{1,64}", re.ASCII)

log = logging.getLogger(__name__)


def body(image_id: str, flag: str) -> dict[str, Any]:
    """The container: the image's own entrypoint with one flag."""
    return {
        "Image": image_id,
        "Cmd": [flag],
        "User": "65534:65534",
        "Tty": False,
        "Env": [f"HOME={_SCRATCH}"],
        "Labels": {labels.MANAGED: "1", PURPOSE: _PROBE},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Tmpfs": {_SCRATCH: "rw,noexec,nosuid,nodev,size=16m"},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": _MEMORY,
            "MemorySwap": _MEMORY,
            "PidsLimit": _PROCESSES,
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "1"}},
        },
    }


def ask(daemon: Daemon, image: Mapping[str, Any], folder: Path) -> Probe:
    """What the build says of itself; ``reason`` says why where it does not.

    :param image: as the daemon's inspection describes it.
    :param folder: where the names of our containers are written down.
    :raises DaemonGone: the daemon cannot be reached now.
    """
    build = labelled_build(image)
    try:
        status, text = _run(daemon, image["Id"], "--help", folder)
        flags = parse_help(text)
        if status is None:
            return Probe(build, None, f"it gave no answer to --help within {_TIMEOUT_S:g} s")
        if status != 0 or "--model" not in flags:
            return Probe(build, None, f"--help ended with exit status {status} and listed {len(flags)} flags")
        if build is None:
            build = parse_version(_run(daemon, image["Id"], "--version", folder)[1])
    except DaemonError as error:
        return Probe(build, None, error.text)
    return Probe(build, tuple(sorted(flags)))


def labelled_build(image: Mapping[str, Any]) -> str | None:
    """The build that an image says it is; None when it says none, or something that has not the form of one."""
    label = ((image.get("Config") or {}).get("Labels") or {}).get("org.opencontainers.image.version")
    # It is anybody's text, and the line that parts the runs in a log has the build in it.
    return label if isinstance(label, str) and _BUILD.fullmatch(label) else None


def starts_server(image: Mapping[str, Any]) -> bool:
    """Whether the image begins with a llama-server by name; a wrapper may do so under another."""
    entrypoint = (image.get("Config") or {}).get("Entrypoint") or []
    return bool(entrypoint) and str(entrypoint[0]).rpartition("/")[2] == "llama-server"


def remove_stale(daemon: Daemon, folder: Path) -> None:
    """Remove what an earlier manager was about to ask when it was killed.

    :raises DaemonGone: the daemon cannot be reached now.
    """
    for note in folder.glob(f"{_NAME}*"):
        inspected = daemon.inspect(note.name)
        marks = ((inspected or {}).get("Config") or {}).get("Labels") or {}
        if inspected is not None and marks.get(PURPOSE) == _PROBE:
            daemon.remove(inspected["Id"])
        note.unlink(missing_ok=True)


def _run(daemon: Daemon, image_id: str, flag: str, folder: Path) -> tuple[int | None, str]:
    """Exit status (None: it did not end in time) and output."""
    with _container(daemon, body(image_id, flag), folder) as container_id:
        daemon.start(container_id)
        ended = daemon.wait(container_id, _TIMEOUT_S)
        if ended is None:
            return None, ""
        return ended.get("StatusCode"), _output(daemon, container_id)


@contextlib.contextmanager
def _container(daemon: Daemon, wanted: Mapping[str, Any], folder: Path) -> Iterator[str]:
    name = f"{_NAME}{secrets.token_hex(6)}"
    note = folder / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    note.touch(mode=0o600)
    container_id = daemon.create(
        name, wanted
    )  # a failure leaves the note: the daemon may have made it all the same
    try:
        yield container_id
    finally:
        daemon.remove(container_id)
        note.unlink(missing_ok=True)


def _output(daemon: Daemon, container_id: str) -> str:
    output = bytearray()
    stream = daemon.logs(container_id, since=None, follow=False)
    try:
        for piece in stream:
            output += piece.data
            if len(output) >= _LONGEST_OUTPUT:  # the log driver bounds it already, where the daemon lets it
                break
    finally:
        stream.close()
    return output.decode(errors="replace")
