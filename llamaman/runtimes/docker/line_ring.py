"""The newest lines of one container's output, in bounded memory. For log_pump.py.

Filled by one thread, read by any. A line without an end counts as far as it has come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from llamaman.runtimes import logfiles

LINES: Final = 400
_BYTES: Final = 256 << 10
_LONGEST_LINE: Final = (16 << 10) + 1  # one more than is shown, so that it is seen to be cut


class LineRing:
    """The last :data:`LINES` lines, or fewer when they are long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._open: dict[str, bytes] = {}

    def add(self, source: str, data: bytes) -> None:
        """The next piece of output of one of the container's streams."""
        with self._lock:
            *whole, rest = (self._open.pop(source, b"") + data).split(b"\n")
            for line in whole:
                self._push(line[:_LONGEST_LINE])
            if rest:
                self._open[source] = rest[:_LONGEST_LINE]

    def fill(self, lines: Iterable[str]) -> None:
        """What was there before, made safe to show already."""
        for line in lines:
            self.add("", line.encode() if line.endswith("\n") else f"{line}\n".encode())

    def last(self, count: int) -> list[str]:
        """The last ``count`` lines, made safe to show; each has its newline, but for one that goes on."""
        with self._lock:
            whole, rest = list(self._lines), list(self._open.values())
        shown = [logfiles.readable(line) + "\n" for line in whole[-count:]] if count > 0 else []
        shown += [logfiles.readable(line) for line in rest]
        return shown[-count:] if count > 0 else []

    def _push(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        while len(self._lines) > LINES or self._size > _BYTES:
            self._size -= len(self._lines.popleft())
