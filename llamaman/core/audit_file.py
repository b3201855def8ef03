"""The audit log on disk: lines that are only ever appended, one file per day, in a folder for us alone.

For ``audit.py``, whose one thread writes here; reading is for any thread. A file is ``audit-YYYYMMDD.jsonl``
(UTC), and ``audit-YYYYMMDD.2.jsonl`` goes on where a day outgrows its file. Each line is one JSON object and one
``write``; a line that a crash tore is cut off before anything is appended behind it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llamaman.errors import ConfigError

log = logging.getLogger("llamaman.audit")

_NAME = re.compile(r"audit-(\d{8})(?:\.([1-9]\d{0,5}))?\.jsonl")
_BLOCK = 64 << 10
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

#: (day as YYYYMMDD, number within the day): the order in which files were written.
Place = tuple[str, int]


def day_of(at: float) -> str:
    """The UTC day of a point in time, as ``YYYYMMDD``."""
    return time.strftime("%Y%m%d", time.gmtime(at))


def prepare(folder: Path) -> None:
    """Create the folder with mode 0700, or make an existing one of ours private.

    :raises ConfigError: it is a symbolic link, no folder, or somebody else's.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        # DATA_DIR around it was judged already; on a file system without owners both belong to the same other.
        if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (
            os.geteuid(),
            folder.parent.stat().st_uid,
        ):
            raise ConfigError(
                f"the audit log's folder {folder} is not a folder of this account; move it away, it is made anew"
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            with contextlib.suppress(PermissionError):
                folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"the audit log's folder {folder} cannot be used: {error.strerror}") from error


def files(folder: Path) -> list[tuple[Place, Path]]:
    """Every file of the log, oldest first; other files in the folder are none of ours."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(((match[1], int(match[2] or 1)), path) for match, path in named if match)


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file, newest first, read backwards in blocks. A line that is no entry is left out.

    Nothing is raised for a file that has gone meanwhile: retention took it.
    """
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        return
    try:
        for line in _lines_backwards(descriptor):
            if (entry := _entry(line)) is not None:
                yield entry
    finally:
        os.close(descriptor)


def first_id(path: Path) -> int | None:
    """The id of a file's oldest entry, None when it has none."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError:
        return None
    try:
        entry = _entry(os.pread(descriptor, _BLOCK, 0).partition(b"\n")[0])
    finally:
        os.close(descriptor)
    return entry["id"] if entry else None


def prune(folder: Path, *, oldest_day: str, most_bytes: int) -> list[str]:
    """Remove the files of days before ``oldest_day``, then the oldest until ``most_bytes`` are left; their names.

    The newest file always stays.
    """
    kept = [(place, path, path.stat().st_size) for place, path in files(folder)]
    total = sum(size for _, _, size in kept)
    removed = []
    for place, path, size in kept[:-1]:
        if place[0] >= oldest_day and total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
        removed.append(path.name)
    return removed


class Writer:
    """Appends to the newest file. One thread uses it.

    :param most_bytes: a file that has reached this size is not continued.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._descriptor = -1
        self._place: Place = ("", 1)
        self._size = 0
        known = files(folder)
        if known:
            self._place = known[-1][0]

    def last_id(self) -> int:
        """The highest id in the log, 0 when it is empty. Cuts a torn last line first."""
        for number, (_, path) in enumerate(reversed(files(self._folder))):
            if number == 0:
                os.close(_open(path))
            for entry in entries(path):
                return int(entry["id"])
        return 0

    def append(self, entry: Mapping[str, Any], day: str) -> int:
        """Write one line; returns the bytes written.

        :raises OSError: it could not be written; a part of it is no entry for any reader, and is cut off.
        """
        # ASCII alone, so that a terminal that shows the file obeys nothing in it.
        line = json.dumps(entry, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
        self._turn_to(day)
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.close()  # the next try opens it anew, which cuts a line of which only a part was written
            raise
        self._size += written
        return written

    def close(self) -> None:
        """Give the descriptor back; the next line opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _turn_to(self, day: str) -> None:
        """Have the right file open. Days never go back, even if the clock does: later lines lie in later files."""
        if day > self._place[0]:
            self.close()
            self._place = (day, 1)
        elif self._descriptor >= 0 and self._size >= self._most_bytes:
            self.close()
            self._place = (self._place[0], self._place[1] + 1)
        if self._descriptor < 0:
            self._descriptor = _open(self._path())
            self._size = os.fstat(self._descriptor).st_size

    def _path(self) -> Path:
        day, number = self._place
        return self._folder / (f"audit-{day}.jsonl" if number == 1 else f"audit-{day}.{number}.jsonl")


def _open(path: Path) -> int:
    """A descriptor that appends behind the last whole line."""
    descriptor = os.open(path, _WRITE_FLAGS, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a file")
        if stat.S_IMODE(status.st_mode) != 0o600:
            with contextlib.suppress(PermissionError):  # a file system without modes
                os.fchmod(descriptor, 0o600)
        _cut_torn_line(descriptor, status.st_size, path.name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _cut_torn_line(descriptor: int, size: int, name: str) -> None:
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end != size:
        log.warning("the last line of %s was torn; %d bytes are cut off", name, size - end)
        os.ftruncate(descriptor, end)


def _lines_backwards(descriptor: int) -> Iterator[bytes]:
    """Whole lines, the last one first; what follows the last line end is being written and left out."""
    position = os.fstat(descriptor).st_size
    rest = b""
    is_last = True
    while position > 0:
        start = max(0, position - _BLOCK)
        lines = (os.pread(descriptor, position - start, start) + rest).split(b"\n")
        position = start
        rest = lines.pop(0)
        if is_last and lines:
            lines.pop()
            is_last = False
        yield from reversed(lines)
    if rest and not is_last:
        yield rest


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("id"), int) else None
