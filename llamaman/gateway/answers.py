"""Response heads as bytes: the status line, the headers, and the short JSON answers of the front door itself.

Pure. Read by `request.py` for every answer and by `protocol.py` for refusals made before an app is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, phrase) for code, phrase in _REASONS.items()}

# Framing and identity belong to the server: an app's copy of these is read or dropped, never sent twice.
_OURS = frozenset(
    {b"content-length", b"connection", b"transfer-encoding", b"keep-alive", b"upgrade", b"date", b"server"}
)


def status_line(status: int) -> bytes:
    """The first line of an answer; an unassigned status gets an empty reason."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def date_and_server() -> bytes:
    """The two headers that every answer carries; rendered once a second by their owner."""
    return b"date: %b\r\nserver: llamaman\r\n" % formatdate(usegmt=True).encode()


def header_block(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int | None, bool]:
    """Render an app's headers: (bytes, the Content-Length it declared or None, whether it asked to close).

    Raises ValueError when a name or value would break the head apart.
    """
    length: int | None = None
    close = False
    lines: list[bytes] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered in _OURS:
            if lowered == b"content-length":
                length = int(value)
            elif lowered == b"connection":
                close = close or b"close" in value.lower()
            continue
        lines.append(b"%b: %b\r\n" % (lowered, value))
    block = b"".join(lines)
    if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines):
        raise ValueError("a response header contains a line break")
    return block, length, close


def refusal(status: int, sentence: str, date_line: bytes, extra: bytes = b"") -> bytes:
    """A complete JSON answer `{"error": sentence}` that ends its connection."""
    body = json.dumps({"error": sentence}).encode()
    return b"%b%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        status_line(status),
        date_line,
        extra,
        len(body),
        body,
    )
