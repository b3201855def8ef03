"""Pictures and sounds out of a request, in the forms that llama-server reads. Pure.

Ollama's clients send base64 without saying what it is. How large a picture may be, and what has to be made into another
kind, is LlamaMan's business, which has seen to it before an engine is asked.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from llamaman import InvalidField

_FOREIGN = re.compile(r"[^A-Za-z0-9+/\r\n]")
#: Characters that are worked on at a time, so that other threads have their turn; a multiple of four.
_PIECE = 1 << 20
#: Characters that say what a file is.
_HEAD = 16
_PICTURES = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


class Media(NamedTuple):
    """One picture or sound.

    :ivar format: a MIME type for a picture, ``wav`` or ``mp3`` for a sound.
    :ivar data: base64.
    """

    kind: str
    format: str
    data: str


def part(media: Media) -> dict[str, Any]:
    """As a part of a message's content."""
    if media.kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": media.data, "format": media.format}}
    return {"type": "image_url", "image_url": {"url": f"data:{media.format};base64,{media.data}"}}


def check(texts: Sequence[str]) -> None:
    """See that texts are base64.

    :raises InvalidField: in the words of Go's decoder.
    """
    for text in texts:
        joined, given = _joined(text)
        last = len(joined) - 1
        padded = joined.find("=", 0, max(0, last - 1))
        try:
            if padded >= 0:
                raise binascii.Error
            for at in range(0, len(joined), _PIECE):
                binascii.a2b_base64(joined[at : at + _PIECE], strict_mode=True)
        except ValueError:  # also of letters that are none of ASCII's
            position = _foreign(given.rstrip("="))
            if position is None:
                position = len(joined)
            raise InvalidField("images", f"illegal base64 data at input byte {position}") from None


def read_all(groups: Sequence[Sequence[str]]) -> list[list[Media]]:
    """Every message's media; their texts have been checked."""
    return [[read(text) for text in group] for group in groups]


def read(text: str) -> Media:
    """One of them."""
    data = _joined(text)[0]
    raw = base64.b64decode(data[:_HEAD])
    if raw[:4] == b"RIFF" and raw[8:12] == b"WAVE":
        return Media("audio", "wav", data)
    if raw[:3] == b"ID3" or (raw[:1] == b"\xff" and raw[1:2] and raw[1] & 0xE0 == 0xE0):
        return Media("audio", "mp3", data)
    mime = next((mime for magic, mime in _PICTURES if raw.startswith(magic)), "image/jpeg")
    return Media("image", mime, data)


def _foreign(text: str) -> int | None:
    """Where the first character stands that is none of base64's."""
    for at in range(0, len(text), _PIECE):
        if found := _FOREIGN.search(text, at, at + _PIECE):
            return found.start()
    return None


def _joined(text: str) -> tuple[str, str]:
    """Base64 alone, without line ends and with them."""
    if text[:5].lower() == "data:" and "," in text:
        text = text.partition(",")[2]
    text = text.strip()
    if "\n" not in text and "\r" not in text:
        return text, text
    pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
    return "".join(piece.replace("\r", "").replace("\n", "") for piece in pieces), text
