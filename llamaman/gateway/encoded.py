"""Bytes that lie in a text as base64, decoded only as far as somebody looks. Pure.

Read by :mod:`llamaman.gateway.inline_media`: a body may hold 64 MiB of pictures, and what is needed of most of them is
their first hundred bytes. What is decoded here is what an engine would decode: it stops at the first character that
is none of base64's, and so nothing behind one is ever taken for a part of the file.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from typing import Protocol

_PIECE = 256 << 10  # a multiple of three; other threads get their turn between two pieces
_PIECE -= _PIECE % 3
_NO_SPACE = str.maketrans("", "", " \t\n\r\v\f")


class Source(Protocol):
    """A file that is read in pieces.

    :ivar size: bytes, at most.
    """

    size: int

    def read(self, at: int, count: int) -> bytes:
        """Some of its bytes; fewer where it ends."""


class NotBase64(ValueError):
    """A character stands where none of the kind may stand."""


class Slice:
    """A part of bytes that are there already."""

    __slots__ = ("_at", "_data", "size")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at = data, at
        self.size = end - at

    def read(self, at: int, count: int) -> bytes:
        """See :class:`Source`."""
        return self._data[self._at + at : self._at + min(at + count, self.size)]


class Base64:
    """The bytes of a text in base64, or of a ``data:`` URL in it.

    Padding may be left out, and lines may be ended, as clients do; an engine reads the first line alone.
    """

    __slots__ = ("_start", "_text", "size")

    def __init__(self, text: str) -> None:
        start = text.find(",", 0, 1024) + 1 if text[:5].lower() == "data:" else 0
        if "\n" in text or "\r" in text or text[start : start + 1].isspace() or text[-1:].isspace():
            text, start = _joined(text, start), 0
        self._text, self._start = text, start
        self.size = (len(text) - start) * 3 // 4 - text.count("=", max(start, len(text) - 2))

    def read(self, at: int, count: int) -> bytes:
        """See :class:`Source`.

        :raises NotBase64: the text is no base64 there.
        """
        first = at // 3
        last = -(-(at + count) // 3)
        piece = self._text[self._start + first * 4 : self._start + last * 4]
        if len(piece) % 4 > 1 and "=" not in piece:
            piece += "=" * (4 - len(piece) % 4)
        try:
            data = binascii.a2b_base64(piece, strict_mode=True)
        except ValueError:  # also what a text with other letters than ASCII's raises
            raise NotBase64("it is not base64") from None
        return data[at - first * 3 :][:count]


def _joined(text: str, start: int) -> str:
    """A text without its spaces and ends of lines, from one place on.

    Not by splitting it: a text of nothing but short lines would take twenty times its memory.
    """
    if not text.isascii():
        return text[start:]  # no base64 anyway, and its letters take long to look up
    return "".join(text[at : at + _PIECE].translate(_NO_SPACE) for at in range(start, len(text), _PIECE))


def pieces(source: Source, at: int, end: int) -> Iterator[bytes]:
    """The bytes from one place to another, or to the end of the file.

    :raises NotBase64: see :meth:`Base64.read`.
    """
    while at < end:
        piece = source.read(at, min(_PIECE, end - at))
        if not piece:
            return
        yield piece
        at += len(piece)
