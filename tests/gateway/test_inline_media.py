"""Which pictures and sounds an engine may be given, told from their first bytes: the kinds, the sizes, the limits."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import wave
import zlib
from typing import Any

import pytest
from PIL import Image

from llamaman import limits
from llamaman.errors import InvalidField
from llamaman.gateway import inline_media
from llamaman.gateway.encoded import Base64, NotBase64, Slice
from llamaman.gateway.inline_media import examine, examine_upload
from llamaman.gateway.media_places import Place
from llamaman.gateway.picture_sizes import Size, Unreadable, size_of
from llamaman.gateway.sound_lengths import UnreadableSound, seconds_of

KINDS = {"PNG": "PNG", "JPEG": "JPEG", "GIF": "GIF", "BMP": "BMP", "WEBP": "WebP"}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def place(data: bytes, path: str = "images[0]") -> Place:
    return Place([text(data)], 0, path, text(data), "base64")


def picture(kind: str, size: tuple[int, int] = (30, 20), mode: str = "RGB", **options: Any) -> bytes:
    into = io.BytesIO()
    Image.new(mode, size).save(into, kind, **options)
    return into.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, unpacked: int = 0, *, depth: int = 8, colour: int = 0, interlaced: int = 0
) -> bytes:
    """Few bytes that claim to be a large picture."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    packed = zlib.compress(bytes(unpacked), 9)
    middle = len(packed) // 2
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"tEXt", b"a")
        + chunk(b"IDAT", packed[:middle])
        + chunk(b"IDAT", packed[middle:])
        + chunk(b"IEND", b"")
    )


def size(data: bytes) -> Size | None:
    return size_of(Slice(data, 0, len(data)))


def refusal(*places: Place) -> str:
    with pytest.raises(InvalidField) as error:
        examine(places)
    assert error.value.message.startswith(error.value.field + ": ")
    return error.value.message


# --- pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dimensions", [(1, 1), (30, 20), (3000, 17)])
def test_kind_and_size_are_read_from_the_first_bytes(kind: str, dimensions: tuple[int, int]) -> None:
    assert size(picture(kind, dimensions)) == Size(KINDS[kind], *dimensions)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (picture("WEBP", (300, 200), "RGBA"), Size("WebP", 300, 200)),
        (picture("WEBP", (300, 200), lossless=True), Size("WebP", 300, 200)),
        (
            picture("WEBP", (300, 200), save_all=True, append_images=[Image.new("RGB", (300, 200), "red")]),
            Size("WebP", 300, 200),
        ),
        (picture("JPEG", (300, 200), progressive=True), Size("JPEG", 300, 200)),
        (picture("JPEG", (300, 200), exif=bytes(60_000), icc_profile=bytes(200_000)), Size("JPEG", 300, 200)),
        (picture("JPEG", (300, 200), "L"), Size("JPEG", 300, 200)),
        (picture("PNG", (300, 200), "I;16"), Size("PNG", 300, 200, depth=16)),
        (
            picture("GIF", (300, 200), save_all=True, append_images=[Image.new("RGB", (300, 200), "red")]),
            Size("GIF", 300, 200),
        ),
        (
            b"BM" + bytes(12) + struct.pack("<Iii", 40, 300, -200) + bytes(28),  # its rows come from above
            Size("BMP", 300, 200),
        ),
        (b"BM" + bytes(12) + struct.pack("<IHH", 12, 300, 200) + bytes(4), Size("BMP", 300, 200)),
        (b"\xff\xd8\xff\xff\xffnothing" + picture("JPEG", (300, 200))[2:], None),
    ],
)
def test_every_variety_is_measured(data: bytes, told: Size | None) -> None:
    if told is None:
        with pytest.raises(Unreadable):
            size(data)
    else:
        assert size(data) == told


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"%PDF-1.7",
        b"P5 8000 8000 255\n",
        b"8BPS",
        b"#?RADIANCE\n",
        b"\x53\x80\xf6\x34",
        bytes([0, 0, 2, *bytes(9)]) + struct.pack("<HHBB", 8000, 8000, 24, 0),  # TGA, which has no signature
        b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00",
        b"\x00\x00\x02\x20ftypisom\x00\x00\x00\x00",  # a video, or a TGA
        b"GIF88a" + bytes(20),
        b"BM" + bytes(60),
        b"II*\x00",
        b"<svg/>",
    ],
)
def test_what_is_none_of_these_kinds_gets_to_no_engine(data: bytes) -> None:
    assert "neither a picture nor a sound" in refusal(place(data or b"\0"))


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", bytes(4)) + png(20_000, 20_000)[8:],  # of an iPhone
        png(0, 1),
        png(1, 1, colour=5),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xff" + b"\xff" * 3000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5000 + picture("JPEG")[2:],
        b"\xff\xd8\xff\xe0\x00\x00" + picture("JPEG")[2:],
        picture("JPEG").replace(b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        b"RIFF\x00\x00\x00\x00WEBPJUNK" + bytes(30),
    ],
)
def test_what_a_decoder_would_not_read_is_refused(data: bytes) -> None:
    assert "WAV, MP3 or FLAC" in refusal(place(data))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (png(20_000, 20_000), "20,000 x 20,000 pixels; at most 64 megapixels"),
        (png(8001, 8000), "8,001 x 8,000 pixels; at most 64 megapixels"),
        (png(8000, 4001, depth=16, colour=6), "of 16 bits; at most 32 megapixels"),
        (png(32_769, 1), "32,769 x 1 pixels; at most 32,768 on a side"),
        (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(20), "at most 32,768 on a side"),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 20_000, 20_000) + bytes(28), "at most 64 megapixels"),
        (
            picture("JPEG").replace(struct.pack(">HH", 20, 30), struct.pack(">HH", 20_000, 20_000)),
            "at most 64 megapixels",
        ),
        (
            b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(8) + (16_383).to_bytes(3, "little") * 2 + bytes(9),
            "at most 64 megapixels",
        ),
    ],
)
def test_a_bomb_of_every_kind_is_refused_with_its_place_its_size_and_the_limit(
    data: bytes, told: str
) -> None:
    assert len(data) < 2000
    assert told in refusal(place(data, "messages[3].content[1].image_url.url"))


@pytest.mark.parametrize("data", [png(8000, 8000), png(8000, 4000, depth=16, colour=6), png(32_768, 1)])
def test_a_picture_at_the_limit_passes(data: bytes) -> None:
    assert examine([place(data)]) == []


def test_all_pictures_of_a_request_are_bounded_together() -> None:
    most = limits.PICTURES_PIXELS // 64_000_000
    assert examine([place(png(8000, 8000))] * most) == []
    told = refusal(*[place(png(8000, 8000))] * most, place(png(1, 1), "images[3]"))
    assert told.startswith("images[3]: ")
    assert "at most 192 megapixels are read for one request" in told
    small = [place(png(1, 1), f"images[{number}]") for number in range(limits.PICTURES + 1)]
    assert examine(small[:-1]) == []
    assert refusal(*small).startswith(f"images[{limits.PICTURES}]: the request has 129")


def test_the_pixels_that_are_converted_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICTURES_CONVERTED", 2000)
    webp = place(picture("WEBP", (40, 25)))
    assert [each.size for each in examine([webp, webp])] == [Size("WebP", 40, 25)] * 2
    assert "send PNG or JPEG" in refusal(webp, webp, webp)


def test_a_large_file_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_media.limits, "PICTURE_BYTES", 1 << 20)
    assert "it has 1.5 MiB; at most 1 are read" in refusal(place(bytes(3 << 19)))


@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_png_that_unpacks_to_more_than_its_size_is_refused(interlaced: int) -> None:
    bomb = place(png(1, 1, 24 << 20, interlaced=interlaced))
    tracemalloc.start()
    assert "unpacks to more than 1 x 1 pixels" in refusal(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20, "it is not unpacked as a whole"
    assert examine([place(png(8000, 8000, 8000 * 8001, interlaced=interlaced))]) == []


def test_a_large_png_whose_data_are_broken_is_refused() -> None:
    broken = png(8000, 8000).replace(zlib.compress(b"", 9)[:2], b"\x78\xda", 1)
    assert examine([place(broken)]) == [], "too small to hurt: the engine says so itself"
    head = broken[:33]
    noise = chunk(b"IDAT", b"\x78\xda" + bytes(range(1, 255)) * 400)
    assert "broken" in refusal(place(head + noise))


# --- base64 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(40))
def test_any_part_of_a_text_is_decoded_as_the_whole_is(length: int) -> None:
    data = bytes(range(length))
    for given in (
        text(data),
        text(data).rstrip("="),
        f"data:image/png;base64,{text(data)}",
        text(data) + "\n",
    ):
        source = Base64(given)
        for at in range(length + 2):
            for count in (0, 1, 2, 3, 7, 50):
                assert source.read(at, count) == data[at : at + count], (given, at, count)
    assert Base64(base64.encodebytes(data * 9).decode()).read(0, 1000) == data * 9


@pytest.mark.parametrize("given", ["!", "iVBO!AAA", "ä", "data:image/png;base64", "data:,%41%42", "A"])
def test_what_is_no_base64_is_said_to_be_none(given: str) -> None:
    with pytest.raises(NotBase64):
        Base64(given).read(0, 12)
    assert "images[0]: " in refusal(Place([given], 0, "images[0]", given, "base64"))


def test_of_a_large_text_only_the_beginning_is_decoded() -> None:
    large = Place([], 0, "a", text(png(9, 9) + bytes(20 << 20)), "base64")
    tracemalloc.start()
    source = Base64(large.text)
    assert size_of(source) == Size("PNG", 9, 9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("end", ["\n", " ", "\r\n"])
def test_a_text_of_short_lines_takes_no_more_memory_than_itself(end: str) -> None:
    whole = text(png(9, 9) + bytes(2 << 20))
    lines = end + end.join(whole[at : at + 2] for at in range(0, len(whole), 2))
    tracemalloc.start()
    source = Base64(lines)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (size_of(source), source.read(1 << 20, 3)) == (Size("PNG", 9, 9), bytes(3))
    assert peak < 3 * len(whole)


# --- sounds ---------------------------------------------------------------------------------------------


def wav(seconds: float, rate: int = 16_000, channels: int = 1) -> bytes:
    into = io.BytesIO()
    with wave.open(into, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(round(seconds * rate) * 2 * channels))
    return into.getvalue()


def flac(samples: int, rate: int = 16_000) -> bytes:
    return b"fLaC\x80\x00\x00\x22" + bytes(10) + (rate << 44 | samples).to_bytes(8, "big") + bytes(16)


def mp3(frames: int, *, second: int = 0xFB, third: int = 0x90) -> bytes:
    """Frames of MPEG 1, layer 3, 128 kbit/s, 44.1 kHz: 417 bytes and 26 ms each."""
    return (bytes([0xFF, second, third, 0]) + bytes(413)) * frames


def seconds(data: bytes) -> float | None:
    return seconds_of(Slice(data, 0, len(data)), 3600)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (wav(1), 1),
        (wav(2.5, 44_100, 2), 2.5),
        (wav(0), 0),
        (flac(16_000), 1),
        (flac(441_000, 44_100), 10),
        (mp3(100), 100 * 1152 / 44_100),
        (b"ID3\x04\x00\x00\x00\x00\x08\x00" + bytes(1024) + mp3(100), 100 * 1152 / 44_100),
        (mp3(100) + b"TAG" + bytes(125), 100 * 1152 / 44_100 + 0.128),
        (mp3(10)[:-413] + b"!" * 5000 + mp3(10), 20 * 1152 / 44_100 + 5 - 0.413),
        (b"OggS" + bytes(30), None),
        (picture("JPEG"), None),
        (picture("WEBP"), None),
    ],
)
def test_the_length_of_a_sound_is_read(data: bytes, length: float | None) -> None:
    assert seconds(data) == (None if length is None else pytest.approx(length, abs=0.05))


def test_a_length_that_is_only_claimed_counts() -> None:
    claimed = wav(1)[:40] + b"\xff\xff\xff\x7f" + bytes(100)
    for data in (claimed, flac(1 << 35), wav(1).replace(struct.pack("<I", 16_000), struct.pack("<I", 1000))):
        assert (seconds(data) or 0) >= 16
    assert "more than 3,600 seconds" in refusal(place(claimed, "messages[0].content[0].input_audio.data"))
    assert "more than 3,600 seconds" in refusal(*[place(wav(0.1)), place(flac(3600 * 16_000))])
    assert examine([place(flac(3600 * 16_000))]) == []


def test_the_slowest_bytes_there_are_count_for_what_is_no_frame() -> None:
    assert (seconds(b"\xff\xe0" + b"\xff" * 4_000_000) or 0) > 3600


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\x00\x00\x00\x00WAVE",
        b"RIFF\x00\x00\x00\x00WAVEdata\x10\x00\x00\x00" + bytes(16),
        wav(1).replace(b"fmt \x10\x00\x00\x00\x01\x00", b"fmt \x10\x00\x00\x00\x02\x00"),  # ADPCM
        wav(1).replace(struct.pack("<I", 16_000), struct.pack("<I", 1)),
        wav(1) + wav(1)[12:],
        wav(1) + b"data\xff\xff\xff\xff",
        flac(0),
        flac(100, 1),
        b"fLaC\x04\x00\x00\x22" + bytes(40),
        b"fLaC",
    ],
)
def test_sounds_that_a_decoder_would_read_in_its_own_way_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableSound):
        seconds(data)
    assert "WAV, MP3 or FLAC" in refusal(place(data))


def form(data: bytes) -> tuple[bytes, bytes]:
    return (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x\r\nContent-Disposition: form-data; '
        b'name="file"; filename="a.wav"\r\n\r\n' + data + b"\r\n--x--\r\n",
        b"multipart/form-data; boundary=x",
    )


def test_an_upload_is_as_long_as_any_other_sound() -> None:
    for fine in (wav(1), mp3(10), flac(16_000), b"OggS", b""):
        examine_upload(*form(fine))
    examine_upload(b"no form", b"multipart/form-data; boundary=x")
    for bad in (flac(1 << 35), wav(1)[:40] + b"\xff\xff\xff\x7f"):
        for kind in (b"multipart/form-data; boundary=x", b'multipart/form-data;boundary="x"'):
            with pytest.raises(InvalidField, match="more than 3,600 seconds") as error:
                examine_upload(form(bad)[0], kind)
            assert error.value.field == "file"
    with pytest.raises(InvalidField, match="does not say how long"):
        examine_upload(*form(flac(0)))
