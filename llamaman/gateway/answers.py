"""Response heads as bytes: the status line, the headers, and the short JSON answers of the front door itself.

Pure. Read by `request.py` for every answer and by `protocol.py` for refusals made before an app is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, phrase) for code, phrase in _REASONS.items()}

# Framing and identity belong to the server: an app's copy of these is read or dropped, never sent twice.
_OURS = frozenset(
    {b"content-length", b"connection", b"transfer-encoding", b"keep-alive", b"upgrade", b"date", b"server"}
)


#: What every answer of a surface carries, refusals included. An instance port is one more origin on this host,
#: whose page may show what a model says: it may talk to itself alone, and nobody may frame it.
STANDING: dict[str, bytes] = {
    "instance": (
        b"content-security-policy: default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'; object-src 'none'\r\n"
        b"x-content-type-options: nosniff\r\ncross-origin-opener-policy: same-origin\r\n"
    )
}


def status_line(status: int) -> bytes:
    """The first line of an answer; an unassigned status gets an empty reason."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def date_and_server() -> bytes:
    """The two headers that every answer carries; rendered once a second by their owner."""
    return b"date: %b\r\nserver: llamaman\r\n" % formatdate(usegmt=True).encode()


@lru_cache(maxsize=512)
def header_line(name: bytes, value: bytes) -> bytes:
    """One header as bytes, its name in lower case. Raises ValueError when it would break the head apart.

    Cached, because nearly all headers repeat from one message to the next.
    """
    line = b"%b: %b\r\n" % (name.lower(), value)
    if line.count(b"\n") != 1 or line.count(b"\r") != 1:
        raise ValueError(f"the header {name!r} contains a line break")
    return line


@lru_cache(maxsize=128)
def _is_ours(name: bytes) -> bool:
    return name.lower() in _OURS


def header_block(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int | None, bool]:
    """Render an app's headers: (bytes, the Content-Length it declared or None, whether it asked to close).

    Raises ValueError when a name or value would break the head apart.
    """
    length: int | None = None
    close = False
    block = b""
    for name, value in headers:
        if not _is_ours(name):
            block += header_line(name, value)
        elif name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"connection":
            close = close or b"close" in value.lower()
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
