"""Writing a container's output to its log file, whatever becomes of the disk. For log_pump.py.

Guarantees: a write never fails and never waits for space. What cannot be written is counted, and a line in its
place says how much and why as soon as writing works again. The file stays near the size at which logs are rotated.

The file's modification time is the daemon's time stamp of the last piece in it. That is how the next manager knows
where to go on (see log_place.py): there is no other record that could be lost, or be older than the file.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from pathlib import Path
from typing import Final

from llamaman.errors import LaunchError
from llamaman.runtimes import logfiles

_LOOK_EVERY_S: Final = 0.2  # whether the file is still there
_RETRY_S: Final = 0.5
_CHECK_SIZE_EVERY: Final = 1 << 20

_REASONS: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the folder may not be written to",
    errno.EIO: "the disk reports errors",
}

log = logging.getLogger(__name__)


class LogFile:
    """One log file, appended to by one thread."""

    def __init__(self, path: Path, *, rotate_at: int = logfiles.ROTATE_AT_BYTES) -> None:
        self._path = path
        self._rotate_at = rotate_at
        self._descriptor: int | None = None
        self._source = ""  # of the last piece, if that ended without a newline
        self._lost = 0
        self._reason = ""
        self._moment: int | None = None
        self._unchecked = 0
        self._look_at = self._retry_at = 0.0

    def write(self, data: bytes, *, source: str, moment: int | None) -> None:
        """Append a line, or a part of one.

        :param source: which of the container's streams it is from; lines of two do not run into each other.
        :param moment: its time stamp, nanoseconds since 1970.
        """
        if self._reason and time.monotonic() < self._retry_at:
            self._lost += data.count(b"\n")
            return
        try:
            self._write(data, source)
        except (OSError, LaunchError) as error:
            self._fail(error)
            self._lost += data.count(b"\n")
            return
        self._source = "" if data.endswith(b"\n") else source
        self._stamp(moment)
        self._unchecked += len(data)
        if self._unchecked >= min(_CHECK_SIZE_EVERY, self._rotate_at):
            self._rotate()

    def close(self) -> None:
        """Say what was lost, if that can be said now, and let go of the file."""
        if self._reason:
            with contextlib.suppress(OSError, LaunchError):  # said when it happened, in our own log
                self._write(b"", self._source)
                self._stamp(None)
        self._let_go()

    def _write(self, data: bytes, source: str) -> None:
        """:raises OSError, LaunchError: nothing of it is in the file."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            if not self._is_there():
                self._let_go()
        if self._descriptor is None:
            self._descriptor = logfiles.open_log(self._path)
        if self._reason:
            data = self._mark() + data
        elif self._source and source != self._source:
            data = b"\n" + data
        if data:
            self._append(data)
        if self._reason:
            log.info("%s can be written again", self._path.name)
            self._lost, self._reason = 0, ""

    def _mark(self) -> bytes:
        lines = "1 line was" if self._lost <= 1 else f"{self._lost} lines were"
        mark = f"[... {lines} lost here: {self._reason} ...]\n".encode()
        return b"\n" + mark if self._source else mark

    def _append(self, data: bytes) -> None:
        assert self._descriptor is not None
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            if written:  # not half a line
                with contextlib.suppress(OSError):
                    size = os.fstat(self._descriptor).st_size
                    os.ftruncate(self._descriptor, max(0, size - written))
            raise

    def _fail(self, error: OSError | LaunchError) -> None:
        if not self._reason:
            log.warning("%s cannot be written, its lines are lost: %s", self._path.name, error)
        self._reason = _reason(error)
        self._retry_at = time.monotonic() + _RETRY_S
        self._let_go()

    def _is_there(self) -> bool:
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.lstat())
        except OSError:
            return False

    def _stamp(self, moment: int | None) -> None:
        self._moment = self._moment if moment is None else moment
        if self._moment is not None and self._descriptor is not None:
            with contextlib.suppress(OSError):  # then what the next manager adds may overlap a little
                os.utime(self._descriptor, ns=(self._moment, self._moment))

    def _rotate(self) -> None:
        self._unchecked = 0
        try:
            if logfiles.rotate_if_large(self._path, at_bytes=self._rotate_at):
                self._stamp(None)
        except OSError as error:  # no space for the copy: the file grows until writing fails too
            log.warning("%s cannot be rotated: %s", self._path.name, error)

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _reason(error: OSError | LaunchError) -> str:
    """A clause for the log's reader."""
    if isinstance(error, LaunchError):
        if not isinstance(error.__cause__, OSError):
            return error.message
        error = error.__cause__
    return _REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
