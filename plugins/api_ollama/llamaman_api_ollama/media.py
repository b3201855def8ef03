"""Pictures and sounds out of a request, in the forms that llama-server reads. Pure; long, so run as ``Work``.

Ollama's clients send base64 without saying what it is. What an engine would decode is measured first: a small file
can claim to be a picture that fills the machine's memory.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from llamaman import InvalidField, LlamaManError

MOST_PIXELS = 64_000_000
#: Of all pictures of a request that have to be made into others; each takes eight bytes a pixel while that is done.
MOST_CONVERTED = 32_000_000
#: Characters of base64 that are checked before anything is loaded for them; more would hold up the event loop.
CHECKED_EARLY = 1 << 20

_CONVERTING = threading.Lock()  # one at a time: a small file may be a picture that takes much memory
_FOREIGN = re.compile(r"[^A-Za-z0-9+/\r\n]")
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
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
    """See early that texts are base64, as far as that is quick.

    :raises InvalidField: in the words of Go's decoder.
    """
    for text in texts:
        if len(text) <= CHECKED_EARLY:
            _without_prefix(text)


def read_all(groups: Sequence[Sequence[str]]) -> list[list[Media]] | LlamaManError:
    """Every message's media; an error is returned, for ``Work`` cannot raise into a generator."""
    left = MOST_CONVERTED
    found: list[list[Media]] = []
    try:
        for group in groups:
            found.append([])
            for text in group:
                media, converted = _read(text, left)
                found[-1].append(media)
                left -= converted
    except LlamaManError as error:
        return error
    return found


def read(text: str) -> Media:
    """One of them.

    :raises InvalidField: not base64, too many pixels, or a WebP picture that is broken.
    """
    return _read(text, MOST_CONVERTED)[0]


def _read(text: str, left: int) -> tuple[Media, int]:
    """One of them, and the pixels that had to be converted for it, at most ``left``."""
    data = _without_prefix(text)
    raw = base64.b64decode(data)
    if raw[:4] == b"RIFF" and raw[8:12] == b"WAVE":
        return Media("audio", "wav", data), 0
    if raw[:3] == b"ID3" or (raw[:1] == b"\xff" and raw[1:2] and raw[1] & 0xE0 == 0xE0):
        return Media("audio", "mp3", data), 0
    is_webp = raw[:4] == b"RIFF" and raw[8:12] == b"WEBP"
    png, pixels = _measure(raw, left if is_webp else None)
    if png is not None:
        return Media("image", "image/png", base64.b64encode(png).decode()), pixels
    mime = next((mime for magic, mime in _PICTURES if raw.startswith(magic)), "image/jpeg")
    return Media("image", mime, data), 0


def _without_prefix(text: str) -> str:
    """Base64 alone, checked and without line ends."""
    if text[:5].lower() == "data:" and "," in text:
        text = text.partition(",")[2]
    text = text.strip()
    bare = text.rstrip("=")
    foreign = _FOREIGN.search(bare)
    if foreign:
        raise _illegal(foreign.start())
    joined = text.replace("\r", "").replace("\n", "")
    try:
        binascii.a2b_base64(joined, strict_mode=True)
    except binascii.Error:
        raise _illegal(len(joined)) from None
    return joined


def _illegal(position: int) -> InvalidField:
    return InvalidField("images", f"illegal base64 data at input byte {position}")


def _measure(raw: bytes, left: int | None) -> tuple[bytes | None, int]:
    """See that a picture is not too large; its PNG, and its pixels, where ``left`` pixels may be converted.

    What is no picture to us is left to the engine, which says so itself.
    """
    import io
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            picture = Image.open(io.BytesIO(raw), formats=_FORMATS)
        pixels = picture.width * picture.height
        if pixels > MOST_PIXELS:
            raise _too_large()
        if left is None:
            return None, 0
        if pixels > left:
            most = MOST_CONVERTED // 1_000_000
            raise InvalidField("images", f"WebP pictures may have {most} megapixels in all; send PNG or JPEG")
        into = io.BytesIO()
        with _CONVERTING:
            picture.convert("RGBA" if "A" in picture.getbands() else "RGB").save(
                into, "PNG", compress_level=1
            )
        return into.getvalue(), pixels
    except Image.DecompressionBombError:
        raise _too_large() from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if left is not None:
            raise InvalidField("images", f"a WebP picture cannot be read: {error}") from None
        return None, 0


def _too_large() -> InvalidField:
    return InvalidField("images", f"a picture has more than {MOST_PIXELS // 1_000_000} megapixels")
