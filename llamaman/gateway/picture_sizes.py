"""The kind and the size of a picture from its first bytes, as llama.cpp's decoder (stb_image) reads them. Pure.

Read by :mod:`llamaman.gateway.inline_media`. What the decoder would take memory for is what counts, so what it reads in
another way than everybody else, or would read although it is no picture of these kinds, is refused here.

The facts are those of the formats' specifications (PNG: W3C; JPEG: ITU T.81; GIF89a; BMP; WebP: RFC 9649).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llamaman.gateway.encoded import Source, pieces

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: The seven passes of an interlaced PNG: first column, first row, steps to the right and down.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
#: Deflate makes at most this many bytes of one.
_MOST_UNPACKED = 1032
#: What a picture may unpack to beyond its size: too little to hurt.
_SLACK = 16 << 20
_UNPACK = 1 << 20
_PNG_CHUNKS = 100_000
_JPEG_SEGMENTS = 4096
_JPEG_WINDOW = 1024
_JPEG_SKIPPED = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_BMP_HEADERS = (40, 56, 108, 124)
_BMP_OLD = 12


class Unreadable(ValueError):
    """No engine can read this picture; the text says why."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a picture is.

    :ivar kind: PNG, JPEG, GIF, BMP or WebP.
    :ivar depth: bits that the decoder keeps of each colour, 8 or 16.
    """

    kind: str
    width: int
    height: int
    depth: int = 8

    @property
    def pixels(self) -> int:
        """Of its first picture, if it has several."""
        return self.width * self.height


def size_of(source: Source) -> Size | None:
    """Kind and size; None for what begins as none of these kinds.

    :raises Unreadable: it begins as a picture and goes on as none that a decoder reads.
    :raises NotBase64: see :class:`llamaman.gateway.encoded.Base64`.
    """
    head = source.read(0, 64)
    for begins, read in _READERS:
        if head.startswith(begins):
            size = read(head, source)
            if size is not None and (size.width < 1 or size.height < 1):
                raise Unreadable(f"the {size.kind} picture has no pixels")
            return size
    return None


def check_unpacked(source: Source, size: Size) -> None:
    """See that a PNG's data do not unpack to more than its size: the decoder unpacks all there is.

    Takes long for a large file; one that is too small for that is not looked at.

    :raises Unreadable: they do, or they are broken.
    """
    head = source.read(0, 64)
    most = _unpacked(size, head) + _SLACK
    if source.size * _MOST_UNPACKED <= most:
        return
    packed = zlib.decompressobj(-zlib.MAX_WBITS)
    count = 0
    for data in _image_data(source):
        rest = data
        while rest and not packed.eof:
            try:
                count += len(packed.decompress(rest, _UNPACK))
            except zlib.error as error:
                raise Unreadable(f"the PNG picture is broken: {error}") from None
            if count > most:
                raise Unreadable(
                    f"the PNG picture unpacks to more than {size.width} x {size.height} pixels need"
                )
            rest = packed.unconsumed_tail
        if packed.eof:
            return


# --- each kind ---------------------------------------------------------------------------------------


def _png(head: bytes, _source: Source) -> Size:
    if head[8:16] != b"\0\0\0\rIHDR" or len(head) < 33:
        raise Unreadable("the PNG picture does not begin with its size")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    if colour not in _CHANNELS:
        raise Unreadable("the PNG picture has colours of an unknown kind")
    return Size("PNG", width, height, 16 if depth == 16 else 8)


def _gif(head: bytes, _source: Source) -> Size | None:
    if head[4:6] not in (b"7a", b"9a"):
        return None
    return Size("GIF", *struct.unpack("<HH", head[6:10].ljust(4, b"\0")))


def _bmp(head: bytes, _source: Source) -> Size | None:
    if len(head) < 26:
        return None
    (length,) = struct.unpack("<I", head[14:18])
    if length == _BMP_OLD:
        return Size("BMP", *struct.unpack("<HH", head[18:22]))
    if length not in _BMP_HEADERS:
        return None
    width, height = struct.unpack("<ii", head[18:26])
    return Size("BMP", width, abs(height))  # one whose rows come from above has less than none of them


def _webp(head: bytes, _source: Source) -> Size | None:
    if head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if len(head) < 30:
        raise Unreadable("the WebP picture is cut off")
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack("<I", head[21:25])
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (number & 0x3FFF for number in struct.unpack("<HH", head[26:30]))
    else:
        raise Unreadable("the WebP picture is of an unknown kind")
    return Size("WebP", width, height)


def _jpeg(_head: bytes, source: Source) -> Size:
    at = 2
    for _ in range(_JPEG_SEGMENTS):
        window = source.read(at, _JPEG_WINDOW)
        mark = window.find(b"\xff")
        after = window[mark:].lstrip(b"\xff") if mark >= 0 else b""
        if not after:
            raise Unreadable("the JPEG picture does not say how large it is")
        marker = after[0]
        at += len(window) - len(after) + 1
        if marker in _JPEG_FRAMES:
            frame = source.read(at, 7)
            if len(frame) < 7:
                break
            height, width = struct.unpack(">HH", frame[3:7])
            return Size("JPEG", width, height)
        if marker not in _JPEG_SKIPPED:
            raise Unreadable("the JPEG picture is of a kind that no engine reads")
        length = int.from_bytes(source.read(at, 2), "big")
        if length < 2:
            break
        at += length
    raise Unreadable("the JPEG picture does not say how large it is")


_READERS: tuple[tuple[bytes, Callable[[bytes, Source], Size | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"GIF8", _gif),
    (b"BM", _bmp),
    (b"RIFF", _webp),
)


# --- what a PNG unpacks to ---------------------------------------------------------------------------


def _unpacked(size: Size, head: bytes) -> int:
    """Bytes of its rows, each with the byte in front that says how it is filtered."""
    bits = head[24] * _CHANNELS[head[25]]
    whole = _rows(size.width, size.height, bits)
    if not head[28]:
        return whole
    return sum(
        _rows(-(-(size.width - left) // right), -(-(size.height - top) // down), bits)
        for left, top, right, down in _PASSES
        if size.width > left and size.height > top
    )


def _rows(width: int, height: int, bits: int) -> int:
    return height * (1 + (width * bits + 7) // 8)


def _image_data(source: Source) -> Iterator[bytes]:
    """What is packed, without the two bytes in front that say how."""
    at, skip = 8, 2
    for _ in range(_PNG_CHUNKS):
        head = source.read(at, 8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        at += 8
        end = at + int.from_bytes(head[:4], "big")
        if head[4:] == b"IDAT":
            for data in pieces(source, at, end):
                yield data[skip:]
                skip = max(0, skip - len(data))
        at = end + 4
    raise Unreadable(f"the PNG picture has more than {_PNG_CHUNKS:,} chunks")
