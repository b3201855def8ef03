"""What may be given to an engine as a picture or a sound, in every client API alike. Pure; long for large bodies.

Read by :mod:`llamaman.gateway.pictures`. llama-server unpacks what it is given whatever its size, all of a request's
media before it answers: a file of some hundred bytes that claims to be a picture of gigabytes ends it, and with it
every other client's stream. It tries many kinds of files, too, and starts a program for what it cannot read. What
passes here is of the kinds named below, in sizes within :mod:`llamaman.limits`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llamaman import limits
from llamaman.errors import InvalidField, LlamaManError
from llamaman.gateway.encoded import Base64, NotBase64, Slice, Source
from llamaman.gateway.media_places import Place
from llamaman.gateway.picture_sizes import Size, Unreadable, check_unpacked, size_of
from llamaman.gateway.sound_lengths import UnreadableSound, seconds_of

#: Kinds that engines do not read, and that are made into others.
_CONVERTED = frozenset({"WebP"})
_MIB, _MEGA = 1 << 20, 1_000_000
#: ISO media files that are pictures, by the brand that they begin with.
_STILLS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"hevc", b"hevx", b"mif1", b"msf1", b"jxl ")
_BOUNDARY = re.compile(rb'boundary=(?:"([^"]{1,70})"|([^";\s]{1,70}))', re.IGNORECASE)
_READ_SOUNDS = "send WAV, MP3 or FLAC"
_READ = "send PNG, JPEG, GIF, BMP or WebP, or for a sound WAV, MP3 or FLAC, in base64"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A picture that has to be made into one that an engine reads."""

    place: Place
    size: Size


def examine(places: Sequence[Place]) -> list[Conversion]:
    """Refuse what no engine should unpack; what is to be converted.

    :raises InvalidField: the place, what is wrong with it, and the limit.
    """
    if len(places) > limits.PICTURES:
        over = places[limits.PICTURES]
        raise InvalidField(
            over.path,
            f"{over.path}: the request has {len(places):,} pictures and sounds; at most {limits.PICTURES} are read",
        )
    seen: dict[str, Size | float | None] = {}
    conversions = []
    pixels = converted = 0
    seconds = 0.0
    for place in places:
        if place.text not in seen:
            seen[place.text] = _examined(place)
        found = seen[place.text]
        if isinstance(found, float):
            seconds += found
        elif found is not None:
            pixels += found.pixels
            if found.kind in _CONVERTED:
                converted += found.pixels
                conversions.append(Conversion(place, found))
        if pixels > limits.PICTURES_PIXELS:
            raise _refused(place, f"the pictures up to this one have {_mega(pixels)}", _most_in_all())
        if converted > limits.PICTURES_CONVERTED:
            raise _refused(
                place,
                f"the WebP pictures up to this one have {_mega(converted)}",
                f"at most {_mega(limits.PICTURES_CONVERTED)} of a request are converted; send PNG or JPEG",
            )
        if seconds > limits.SOUNDS_S:
            raise _refused(
                place,
                f"the sounds up to this one take more than {limits.SOUNDS_S:,} seconds",
                "no more are read for one request",
            )
    return conversions


def examine_upload(raw: bytes, content_type: bytes) -> None:
    """Refuse in a form what :func:`examine` would refuse in JSON: a sound to be transcribed that is too long.

    Other parts than sounds are for the engine to judge, which unpacks nothing else of a form.

    :raises InvalidField: see there.
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        return
    delimiter = b"--" + (boundary[1] or boundary[2])
    at = raw.find(delimiter)
    while at >= 0:
        head = raw.find(b"\r\n\r\n", at)
        end = raw.find(b"\r\n" + delimiter, head)
        if head < 0 or end < 0:
            return
        try:
            seconds = seconds_of(Slice(raw, head + 4, end), limits.SOUNDS_S)
        except UnreadableSound as error:
            raise InvalidField("file", f"file: {error}; {_READ_SOUNDS}") from None
        if seconds is not None and seconds > limits.SOUNDS_S:
            raise InvalidField("file", f"file: the sound takes more than {limits.SOUNDS_S:,} seconds")
        at = end + 2


def _examined(place: Place) -> Size | float | None:
    """A picture's size, a sound's length in seconds; None for a video."""
    source = Base64(place.text)
    if source.size > limits.PICTURE_BYTES:
        raise _refused(
            place, f"it has {source.size / _MIB:,.1f} MiB", f"at most {limits.PICTURE_BYTES // _MIB} are read"
        )
    try:
        seconds = seconds_of(source, limits.SOUNDS_S)
        if seconds is not None:
            return seconds
        size = size_of(source)
        if size is None:
            _check_video(place, source)
            return None
        _check_size(place, size)
        if size.kind == "PNG":
            check_unpacked(source, size)
    except (NotBase64, Unreadable, UnreadableSound) as error:
        raise _refused(place, str(error), _READ) from None
    return size


def _check_size(place: Place, size: Size) -> None:
    what = f"the {size.kind} picture has {size.width:,} x {size.height:,} pixels"
    if max(size.width, size.height) > limits.PICTURE_SIDE:
        raise _refused(place, what, f"at most {limits.PICTURE_SIDE:,} on a side are read")
    if size.depth > 8 and size.pixels * 2 > limits.PICTURE_PIXELS:
        raise _refused(
            place, f"{what} of 16 bits", f"at most {_mega(limits.PICTURE_PIXELS // 2)} of those are read"
        )
    if size.pixels > limits.PICTURE_PIXELS:
        raise _refused(place, what, f"at most {_mega(limits.PICTURE_PIXELS)} are read")


def _check_video(place: Place, source: Source) -> None:
    """Let pass what only begins as a video: engines that read videos start another program for them."""
    head = source.read(0, 12)
    is_video = (
        (head[:3] == b"\0\0\0" and head[4:8] == b"ftyp" and head[8:12] not in _STILLS)
        or head[:4] == b"\x1aE\xdf\xa3"
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    )
    if not is_video:
        raise _refused(place, "this is neither a picture nor a sound that an engine reads", _READ)


def _refused(place: Place, what: str, hint: str) -> LlamaManError:
    return InvalidField(place.path, f"{place.path}: {what}; {hint}")


def _most_in_all() -> str:
    return f"at most {_mega(limits.PICTURES_PIXELS)} are read for one request"


def _mega(pixels: int) -> str:
    return f"{pixels / _MEGA:,.1f}".removesuffix(".0") + " megapixels"
