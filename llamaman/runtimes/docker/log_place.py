"""Where the log of a container that an earlier manager started goes on. For log_pump.py.

The file's modification time is the time stamp of the last piece in it (log_file.py sees to that). What the daemon
has of that moment is compared with the end of the file, since pieces may share a time stamp, since a manager may be
killed between the writing of a piece and of its time, and since some file systems keep whole seconds.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Final

from llamaman.runtimes import logfiles
from llamaman.runtimes.causes import START_MARK
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.stream import newest, since_moment

_SLACK_NS: Final = 2_000_000_000
_SURE: Final = 512  # bytes that must be the same: a line or a few
_COMPARED: Final = 64 << 10  # the more are the same, the better: lines may repeat themselves
_HELD: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """A piece that the daemon still has; ``moment``: nanoseconds since 1970."""

    since: str
    data: bytes
    moment: int


def place_in_log(daemon: Daemon, container_id: str, path: Path) -> str | None:
    """The ``since`` of what is not in the file yet; None: of everything.

    :raises DaemonGone: the daemon cannot be reached.
    :raises DaemonError: the container is gone, or its output cannot be read.
    """
    found = _end_of(path)
    if found is None:
        return None
    end, moment = found
    if _last_line(end).startswith(START_MARK.encode()):
        return None
    begin, until = since_moment(moment - _SLACK_NS), moment + coarseness(moment)
    return choose(_candidates(daemon, container_id, begin, until), end, moment) or begin


def _candidates(daemon: Daemon, container_id: str, since: str, until: int) -> list[Candidate]:
    """The pieces around the moment; of many, the newest."""
    held: deque[Candidate] = deque()
    size = 0
    stream = daemon.logs(container_id, since=since, follow=False)
    try:
        for piece in stream:
            moment = newest(piece.since)
            if moment > until:
                break
            held.append(Candidate(piece.since, piece.data, moment))
            size += len(piece.data)
            while size > _HELD:
                size -= len(held.popleft().data)
    finally:
        stream.close()
    return list(held)


def choose(candidates: list[Candidate], end: bytes, moment: int) -> str | None:
    """The place after the piece that the file ends with, else after the last one that is not too young."""
    # Without line ends: the file has one more where the container's streams came between each other.
    pieces = [each.data.replace(b"\n", b"") for each in candidates]
    text, ends = b"".join(pieces), list(accumulate(map(len, pieces)))
    end = end.replace(b"\n", b"")
    before = sum(each.moment <= moment for each in candidates)
    best, most = (before - 1 if before else None), 0
    for number in chain(range(before - 1, -1, -1), range(before, len(candidates))):
        seen = text[max(0, ends[number] - _COMPARED) : ends[number]]
        common = _common_end(seen, end)
        if common >= _SURE and common == len(seen):
            common = _COMPARED  # all that there is: no other can fit better
        if common > most:
            best, most = number, common
    return None if best is None else candidates[best].since


def _common_end(one: bytes, other: bytes) -> int:
    """How many of their last bytes are the same."""
    low, high = 0, min(len(one), len(other))
    sure = min(high, _SURE)
    if one[len(one) - sure :] != other[len(other) - sure :]:
        return 0  # of less than a line nothing follows
    while low < high:
        middle = (low + high + 1) // 2
        if other.endswith(one[len(one) - middle :]):
            low = middle
        else:
            high = middle - 1
    return low


def coarseness(moment: int) -> int:
    """Nanoseconds by which a file system may have rounded this down: FAT keeps two seconds, NTFS 100 ns."""
    return next((2 * unit for unit in (10**9, 10**6, 10**3, 10**2) if moment % unit == 0), 0)


def _end_of(path: Path) -> tuple[bytes, int] | None:
    """The last bytes of the log and its modification time (ns); None when there is no log."""
    try:
        status = path.lstat()
        end = _read_end(path)
        if len(end) < _COMPARED:  # perhaps it was rotated just then
            end = _read_end(logfiles.older(path, 1)) + end
    except OSError:
        return None
    return (end, status.st_mtime_ns) if end else None


def _read_end(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - _COMPARED))
        return file.read(_COMPARED)


def _last_line(end: bytes) -> bytes:
    return end.removesuffix(b"\n").rpartition(b"\n")[2]
