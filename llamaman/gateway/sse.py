"""Server-sent events as bytes: cut a stream into events, read their data, write new ones.

Pure. Read by the pipeline, for every block that an engine sends. An event ends at a blank line and nowhere
else: packets and chunks cut anywhere (llama-server promises nothing about them). Lines end in LF or CR LF.
"""

from __future__ import annotations

from collections.abc import Iterator

COMMENT = b":\n\n"
MAX_EVENT_BYTES = 8 << 20


class EventTooLarge(Exception):
    """An event grew beyond the cap without a blank line; the stream cannot be trusted any more."""


def split_events(buffer: bytes) -> tuple[bytes, bytes]:
    """Cut after the last complete event: (all complete events, the unfinished rest)."""
    end = buffer.rfind(b"\n\n") + 2
    crlf = buffer.rfind(b"\r\n\r\n", max(0, end - 2)) + 4
    if crlf > 3 and crlf > end:
        end = crlf
    if end < 2:
        return b"", buffer
    if end == len(buffer):
        return buffer, b""
    return buffer[:end], buffer[end:]


def iter_events(block: bytes) -> Iterator[bytes]:
    """The data of each event in a block of complete events. Comments and events without data are dropped."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    for event in block.split(b"\n\n"):
        if event.startswith(b"data: ") and b"\n" not in event:
            yield event[6:]
        elif event:
            data = [
                _value(line) for line in event.split(b"\n") if line.startswith(b"data:") or line == b"data"
            ]
            if data:
                yield b"\n".join(data)


def _value(line: bytes) -> bytes:
    value = line[5:]
    return value[1:] if value[:1] == b" " else value


def frame(data: bytes) -> bytes:
    """One event that carries `data`; line breaks in it become several data lines."""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"data: %b\n\n" % data


class Splitter:
    """Collects a stream and hands out complete events. Holds at most one unfinished event."""

    __slots__ = ("_limit", "_rest", "_size", "_tail")

    def __init__(self, limit_bytes: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit_bytes
        self._rest: list[bytes] = []
        self._size = 0
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """Add received bytes; returns the complete events, b"" when there is none. Raises EventTooLarge."""
        if not self._rest:
            complete, rest = split_events(data)
            if rest:
                self._keep(rest)
            return complete
        # Only the seam can hide a blank line that neither part shows: look at three bytes of the old part.
        seam = self._tail + data
        complete, _ = split_events(seam)
        if not complete:
            self._keep(data)
            return b""
        joined = b"".join(self._rest) + data
        self._rest.clear()
        self._size = 0
        cut = len(joined) - (len(seam) - len(complete))
        if cut < len(joined):
            self._keep(joined[cut:])
        return joined[:cut]

    def rest(self) -> bytes:
        """What is left of an unfinished event; b"" when the stream ended cleanly."""
        return b"".join(self._rest)

    def _keep(self, data: bytes) -> None:
        self._rest.append(data)
        self._tail = (self._tail + data)[-3:] if len(self._rest) > 1 else data[-3:]
        self._size += len(data)
        if self._size > self._limit:
            raise EventTooLarge(f"an event of the stream is larger than {self._limit} bytes")
