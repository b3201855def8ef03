"""The log files of engines: created safely, bounded in size, read without trusting a byte of them.

For the process runtime (writing), the supervisor (rotation) and the log routes (reading). An engine writes
through a descriptor of its own, opened for appending, so a file is rotated by copying it and cutting it to
nothing: at most what is written between the two is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from llamaman.errors import LaunchError

ROTATE_AT_BYTES = 10 << 20
KEPT_FILES = 3
_READ_AT_ONCE = 256 << 10
_LONGEST_LINE = 16 << 10
_rotating = threading.Lock()  # two who copy and cut one file at once would lose what it held

#: Control characters, and those that reorder text or hide in it: a terminal or a page would obey them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)


def escape(text: str) -> str:
    r"""``text`` without characters that a terminal or a page would obey; they show as ``\x1b``, ``\u202e``.

    Tab and newline stay.
    """
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def prepare_folder(folder: Path) -> Path:
    """Create the log folder with mode 0700, or accept an existing one that is ours alone to fill.

    :raises LaunchError: it is a symlink, no folder, of another owner, or writable for others.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise LaunchError(
            f"the log folder LOGS_DIR cannot be created ({error.strerror}); set LOGS_DIR to a folder you own",
            detail=str(folder),
        ) from error
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISDIR(status.st_mode):
        problem = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else "is not a folder"
    elif status.st_uid != os.geteuid():
        problem = "belongs to another user"
    elif status.st_mode & 0o022:
        problem = "can be written by other users (chmod go-w repairs it)"
    else:
        return folder
    raise LaunchError(
        f"the log folder LOGS_DIR {problem}; set LOGS_DIR to a folder that only you can write to",
        detail=str(folder),
    )


def open_log(path: Path) -> int:
    """A descriptor that appends to ``path`` (mode 0600), whose folder is checked first.

    :raises LaunchError: the folder or file is not safe to write to, or there is no space.
    """
    prepare_folder(path.parent)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise LaunchError(
            f"the engine's log file cannot be opened: {error.strerror}", detail=str(path)
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise LaunchError("the engine's log file is not a file of ours; remove it", detail=str(path))
    os.set_blocking(descriptor, True)
    return descriptor


def rotate_if_large(path: Path, *, at_bytes: int = ROTATE_AT_BYTES, keep: int = KEPT_FILES) -> bool:
    """Rotate ``path`` to ``path.1`` when it has reached ``at_bytes``; True if it did.

    ``keep`` counts the current file: 3 means ``path``, ``path.1`` and ``path.2``.

    :raises OSError: no space for the copy; then nothing was cut.
    """
    with _rotating:
        return _rotate_if_large(path, at_bytes, keep)


def _rotate_if_large(path: Path, at_bytes: int, keep: int) -> bool:
    try:
        source = _open_to_read(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    with os.fdopen(source, "r+b", buffering=0) as file:
        size = os.fstat(source).st_size
        if size < at_bytes:
            return False
        if keep > 1:
            for number in range(keep - 1, 1, -1):
                with contextlib.suppress(FileNotFoundError):
                    older(path, number - 1).replace(older(path, number))
            fresh = older(path, 1)
            fresh.unlink(missing_ok=True)
            target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(target, "wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        file.truncate(0)
    return True


def older(path: Path, number: int) -> Path:
    """The ``number``-th rotated file of ``path``, 1 being the youngest."""
    return path.with_name(f"{path.name}.{number}")


def remove(path: Path, *, keep: int = KEPT_FILES) -> None:
    """Remove a log and its rotated files."""
    path.unlink(missing_ok=True)
    for number in range(1, keep):
        older(path, number).unlink(missing_ok=True)


def bound_total(folder: Path, *, keep: Sequence[Path], total_bytes: int) -> list[Path]:
    """Remove the longest unchanged files of ``folder`` until it holds at most ``total_bytes``.

    :param keep: logs in use; they stay (their rotated files may go).
    :returns: what was removed.
    """
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_mtime, status.st_size, Path(entry.path)))
    excess = sum(size for _, size, _ in files) - total_bytes
    kept, removed = set(keep), []
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        if path not in kept:
            path.unlink(missing_ok=True)
            removed.append(path)
            excess -= size
    return removed


def tail(path: Path, lines: int = 100, max_bytes: int = _READ_AT_ONCE) -> list[str]:
    """The last ``lines`` lines within the last ``max_bytes``, each with its newline, made safe to show.

    A file that is not there has no lines. After a rotation the lines before it are read as well.

    :raises OSError: it is there and cannot be read.
    """
    data = b""
    for candidate in (path, older(path, 1)):
        if data.count(b"\n") > lines or len(data) >= max_bytes:
            break
        data = _last_bytes(candidate, max_bytes - len(data)) + data
    found = data.split(b"\n")
    ends_open = found.pop()
    result = [readable(raw) + "\n" for raw in found]
    if ends_open:
        result.append(readable(ends_open))
    return result[-lines:] if lines > 0 else []


class Follower:
    """New lines of a growing log file, as they come; owned by one reader.

    Survives rotation by copy and truncation. Never reads more than 256 KiB at once: a writer that is faster
    loses lines for this reader, and a line in their place says so.
    """

    LOST = "[... lines were lost here: the log grows faster than it is read ...]\n"

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._partial = b""
        self._offset = 0
        if not from_start:
            with contextlib.suppress(FileNotFoundError):
                self._offset = path.lstat().st_size

    def read(self) -> list[str]:
        """The complete lines since the last call, each with its newline, made safe to show.

        :raises OSError: the file is there and cannot be read.
        """
        try:
            descriptor = _open_to_read(self._path)
        except FileNotFoundError:
            return []
        lost = False
        try:
            size = os.fstat(descriptor).st_size
            if size < self._offset:  # it was rotated: go on at the start of what came after
                self._offset, self._partial = 0, b""
            if size - self._offset > _READ_AT_ONCE:
                self._offset, self._partial, lost = size - _READ_AT_ONCE, b"", True
            data = os.pread(descriptor, _READ_AT_ONCE, self._offset)
        finally:
            os.close(descriptor)
        self._offset += len(data)
        if lost:
            data = data.partition(b"\n")[2]
        pieces = (self._partial + data).split(b"\n")
        self._partial = pieces.pop()
        if len(self._partial) > _LONGEST_LINE:  # a line without an end must not gather in memory
            pieces.append(self._partial)
            self._partial = b""
        lines = [readable(raw) + "\n" for raw in pieces]
        return [self.LOST, *lines] if lost else lines


def readable(raw: bytes) -> str:
    """A line as it may be shown: without its end, cut to 16 KiB, escaped."""
    if len(raw) > _LONGEST_LINE:
        raw = raw[:_LONGEST_LINE] + b" [...]"
    return escape(raw.removesuffix(b"\r").decode(errors="replace"))


def _last_bytes(path: Path, count: int) -> bytes:
    """The end of a file, beginning with a whole line."""
    try:
        descriptor = _open_to_read(path)
    except FileNotFoundError:
        return b""
    try:
        start = max(0, os.fstat(descriptor).st_size - count)
        # One byte more tells whether the cut happens to fall between two lines.
        data = os.pread(descriptor, count + 1, max(0, start - 1))
    finally:
        os.close(descriptor)
    return data.partition(b"\n")[2] if start else data[:count]


def _open_to_read(path: Path, mode: int = os.O_RDONLY) -> int:
    descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a regular file")
    return descriptor
