"""The end of an engine's log file, and what is added to it. Read by the REST log route and the log stream.

Blocking file reads, each bounded: a log of gigabytes costs what a short one costs. Rotation (the file is
renamed or cut and a new one begins) is followed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

READ_BYTES = 256 * 1024
LINE_BYTES = 16 * 1024
#: A reader that falls further behind than this is moved to the end, and told so.
BEHIND_BYTES = 1 << 20


def last_lines(path: Path, count: int = 100) -> list[str]:
    """The last ``count`` lines, line ends kept; [] when there is no log yet."""
    data = _end(path)
    # After a rotation the new file may be short; the previous one holds the lines before it.
    if data.count(b"\n") < count and len(data) < READ_BYTES:
        data = _end(path.with_name(f"{path.name}.1")) + data
    return _texts(data.splitlines(keepends=True)[-count:])


@dataclass(slots=True)
class Tail:
    """Follows one file. Made at its end; :meth:`read` returns the complete lines added since."""

    path: Path
    _inode: int = 0
    _offset: int = 0
    _rest: bytes = field(default=b"", repr=False)

    @classmethod
    def begin(cls, path: Path, count: int = 100) -> tuple[Tail, list[str]]:
        """The last lines, and a tail that goes on exactly behind them."""
        try:
            status = os.stat(path)
        except OSError:  # no log yet: everything that comes is new
            return cls(path), []
        tail = cls(path, status.st_ino, max(0, status.st_size - READ_BYTES))
        lines = tail.read()
        if len(lines) < count and status.st_size < READ_BYTES:
            lines = last_lines(path.with_name(f"{path.name}.1"), count) + lines
        return tail, lines[-count:]

    def read(self) -> list[str]:
        """New complete lines; a line longer than 16 KiB comes in pieces."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                note: list[bytes] = []
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._inode, self._offset, self._rest = status.st_ino, 0, b""
                if status.st_size - self._offset > BEHIND_BYTES:
                    note = [b"--- %d bytes left out ---\n" % (status.st_size - self._offset - READ_BYTES)]
                    self._offset, self._rest = status.st_size - READ_BYTES, b""
                file.seek(self._offset)
                data = file.read(READ_BYTES)
        except OSError:  # between two files of a rotation, or removed
            return []
        self._offset += len(data)
        lines = (self._rest + data).splitlines(keepends=True)
        self._rest = b""
        if lines and not lines[-1].endswith((b"\n", b"\r")) and len(lines[-1]) < LINE_BYTES:
            self._rest = lines.pop()
        return _texts(note + lines)


def _end(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - READ_BYTES))
            data = file.read(READ_BYTES)
    except OSError:  # no log yet, or none before this one
        return b""
    if size > READ_BYTES:  # the first line is likely cut
        data = data.partition(b"\n")[2] or data
    return data


def _texts(lines: list[bytes]) -> list[str]:
    return [line.decode("utf-8", "replace") for line in lines]
