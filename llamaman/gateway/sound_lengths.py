"""How long a sound is at most, from its bytes, as llama.cpp's decoder (miniaudio) reads them. Pure.

Read by :mod:`llamaman.gateway.inline_media`. The decoder makes samples of four bytes of a sound, at the model's rate
and all of them at once, and believes the length that a file claims: a FLAC file of a hundred bytes can claim days.

The facts are those of the formats' specifications (WAVE; FLAC: RFC 9639; MPEG audio: ISO 11172-3, 13818-3).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable

from llamaman.gateway.encoded import Source

_PCM, _FLOAT, _A_LAW, _MU_LAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_WAVE_CHUNKS = 256
_MOST_CHANNELS, _LEAST_RATE, _MOST_RATE = 8, 1000, 384_000
_STREAM_INFO = 42
_ID3_HEAD = 10
#: No MPEG frame has fewer bytes a second (8 kbit/s).
_LEAST_BYTES_PER_S = 1000
_WINDOW = 192 << 10
#: kbit/s by their index, of layers 1 to 3 of MPEG 1 and of layers 1 and "2 or 3" of MPEG 2.
_KBITS_1 = (
    (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_KBITS_2 = (
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44_100, 48_000, 32_000)


def _any_of(numbers: Iterable[int]) -> bytes:
    return b"[" + b"".join(b"\\x%02x" % number for number in numbers) + b"]"


#: How a frame begins: a version and a layer that there are, and neither a free nor an unknown rate.
_FRAME = re.compile(
    b"\\xff"
    + _any_of(byte for byte in range(0xE0, 0x100) if byte >> 3 & 3 != 1 and byte >> 1 & 3)
    + _any_of(byte for byte in range(0x10, 0xF0) if byte >> 2 & 3 != 3)
)


class UnreadableSound(ValueError):
    """No engine can read this sound; the text says why."""


def seconds_of(source: Source, most: float) -> float | None:
    """How long it is at most; None for what begins as no sound that a decoder reads.

    :param most: seconds after which it does not matter how many more there are; more of an MP3 file are not counted.

    :raises UnreadableSound: it begins as a sound and goes on as none that a decoder reads.
    :raises NotBase64: see :class:`llamaman.gateway.encoded.Base64`.
    """
    head = source.read(0, 12)
    for begins, read in _READERS:
        if head.startswith(begins):
            return read(head, source, most)
    if head[:1] == b"\xff" and head[1:2] and head[1] & 0xE0 == 0xE0:
        return _mpeg(source, 0, most)
    return None


def _wave(head: bytes, source: Source, _most: float) -> float | None:
    if head[8:12] != b"WAVE":
        return None
    at, rate, frame, length = 12, 0, 0, None
    for _ in range(_WAVE_CHUNKS):
        chunk = source.read(at, 8)
        if len(chunk) < 8:
            break
        kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind == b"fmt ":
            if rate:
                raise UnreadableSound("the WAV file says twice how it is to be read")
            rate, frame = _wave_format(source.read(at + 8, min(size, 40)))
        elif kind == b"data":
            if length is not None or not rate:
                raise UnreadableSound("the WAV file has its parts in an unusual order")
            length = size
        at += 8 + size + size % 2
    if length is None:
        raise UnreadableSound("the WAV file has no sound")
    return length / frame / rate


def _wave_format(data: bytes) -> tuple[int, int]:
    """Frames a second, and bytes of one."""
    if len(data) < 16:
        raise UnreadableSound("the WAV file does not say how it is to be read")
    kind, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", data[:16])
    if kind == _EXTENSIBLE and len(data) >= 26:
        (kind,) = struct.unpack("<H", data[24:26])
    wanted = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64), _A_LAW: (8,), _MU_LAW: (8,)}.get(kind, ())
    if bits not in wanted:
        raise UnreadableSound("the WAV file is packed in a way that is not read; send PCM")
    if not (1 <= channels <= _MOST_CHANNELS and _LEAST_RATE <= rate <= _MOST_RATE):
        raise UnreadableSound(f"the WAV file has {channels} channels at {rate} Hz")
    if frame != channels * bits // 8:
        raise UnreadableSound("the WAV file is broken: its samples have another size than it says")
    return rate, frame


def _flac(_head: bytes, source: Source, _most: float) -> float:
    head = source.read(0, _STREAM_INFO)
    if len(head) < _STREAM_INFO or head[4] & 0x7F or head[5:8] != b"\0\0\x22":
        raise UnreadableSound("the FLAC file does not begin with its length")
    bits = int.from_bytes(head[18:26], "big")
    rate, samples = bits >> 44, bits & (1 << 36) - 1
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        raise UnreadableSound(f"the FLAC file has {rate} samples a second")
    if not samples:
        raise UnreadableSound("the FLAC file does not say how long it is")
    return samples / rate


def _tagged(_head: bytes, source: Source, most: float) -> float:
    tag = source.read(0, _ID3_HEAD)
    size = sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=False))
    return _mpeg(source, _ID3_HEAD + size, most)


def _mpeg(source: Source, at: int, most: float) -> float:
    """The length of all frames; what is none is taken for the slowest there are."""
    seconds = 0.0
    start, window = at, b""
    while at < source.size and seconds <= most:
        here = at - start
        if here + 4 > len(window):
            start, here, window = at, 0, source.read(at, _WINDOW)
            if len(window) < 4:
                break
        found = _FRAME.search(window, here)
        lost = (found.start() if found else max(here + 1, len(window) - 2)) - here
        step, duration = _mpeg_frame(window[here + lost : here + lost + 3]) if found else (0, 0.0)
        seconds += lost / _LEAST_BYTES_PER_S + duration
        at += lost + step
    return seconds


def _mpeg_frame(head: bytes) -> tuple[int, float]:
    """Bytes and seconds of the frame that begins so."""
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    is_first = version == 3
    rate = _RATES[head[2] >> 2 & 3] // (1 if is_first else 2 if version == 2 else 4)
    kbits = (_KBITS_1 if is_first else _KBITS_2)[layer - 1][head[2] >> 4]
    padding = head[2] >> 1 & 1
    if layer == 1:
        samples, size = 384, (12 * kbits * 1000 // rate + padding) * 4
    else:
        samples = 576 if layer == 3 and not is_first else 1152
        size = samples // 8 * kbits * 1000 // rate + padding
    return size, samples / rate


_READERS: tuple[tuple[bytes, Callable[[bytes, Source, float], float | None]], ...] = (
    (b"RIFF", _wave),
    (b"fLaC", _flac),
    (b"ID3", _tagged),
)
