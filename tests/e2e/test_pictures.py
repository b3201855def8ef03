"""Pictures and sounds in base64, through every door to a real engine that sees: none ends it, and all kinds are read.

Every client API's shape of a bomb is sent to the manager's port, to the inference port and to the instance's own.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from eyes import NAME, write_seeing_model
from PIL import Image

from llamaman.testing.manager import CHAT, ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Answer, call

Body = dict[str, Any]


def png(width: int, height: int, unpacked: int = 0) -> bytes:
    """A PNG of few bytes that claims a size, with so many bytes of zeros packed into it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    packed = chunk(b"IDAT", zlib.compress(bytes(unpacked), 9))
    return b"\x89PNG\r\n\x1a\n" + head + packed + chunk(b"IEND", b"")


def picture(kind: str) -> bytes:
    into = io.BytesIO()
    Image.effect_noise((24, 16), 50).convert("RGB").save(into, kind)
    return into.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


BOMB = png(20_000, 20_000)


def shapes(data: bytes) -> Iterator[tuple[str, Body, str]]:
    """How the client APIs hand over a picture: path, body, and where it is."""
    bare, url = text(data), f"data:image/png;base64,{text(data)}"

    def said(*parts: Body) -> Body:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, *parts]}]}

    yield CHAT, said({"type": "image_url", "image_url": {"url": url}}), "messages[0].content[1].image_url.url"
    yield CHAT, said({"type": "image_url", "image_url": url}), "messages[0].content[1].image_url"
    yield (
        CHAT,
        said({"type": "input_audio", "input_audio": {"data": bare, "format": "wav"}}),
        "messages[0].content[1].input_audio.data",
    )
    shown = {"type": "input_image", "image_url": url}
    yield (
        "/v1/responses",
        {"input": [{"role": "user", "content": [shown]}]},
        "input[0].content[0].image_url",
    )
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": bare}}
    yield "/v1/messages", said(block), "messages[0].content[1].source.data"
    result = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    asked = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    yield (
        "/v1/messages",
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [asked]},
                {"role": "user", "content": [result]},
            ]
        },
        "messages[2].content[0].content[0].source.data",
    )
    yield (
        "/api/chat",
        {"messages": [{"role": "user", "content": "a", "images": [bare]}]},
        "messages[0].images[0]",
    )
    yield "/api/generate", {"prompt": "a", "images": [bare]}, "images[0]"
    prompt = {"prompt_string": "<__media__>", "multimodal_data": [bare]}
    yield "/completion", {"prompt": prompt}, "prompt.multimodal_data[0]"
    yield "/upstream/eyes/completion", {"prompt": ["a", prompt]}, "prompt[1].multimodal_data[0]"
    yield "/v1/completions", {"prompt": prompt}, "prompt.multimodal_data[0]"


def ask(manager: Manager, port: int, path: str, body: Body, model: str = NAME) -> Answer:
    limits = {"max_tokens": 1, "n_predict": 1, "options": {"num_predict": 1}, "stream": False}
    return call(port, "POST", path, body={"model": model, **limits, **body}, key=manager.inference_key)


@pytest.fixture
def seeing(manager: Manager) -> Manager:
    """A manager with a model that sees."""
    write_seeing_model(manager.models)
    manager.manage("POST", "/api/models/rescan")
    return manager


def test_no_door_lets_a_picture_of_gigabytes_get_to_an_engine_and_nobody_notices(
    seeing: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = seeing
    manager.launch(slow(manager), **ENDLESS)
    eyes = manager.launch(NAME)
    served = manager.instance(eyes["id"])["stats"]["total_requests"]
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as stream:
        events = stream.events()
        next(events)
        for port in (manager.port, manager.proxy_port, eyes["port"]):
            for path, body, where in shapes(BOMB):
                if path.startswith("/upstream") and port == eyes["port"]:
                    continue  # such paths are for ports of several models
                answer = ask(manager, port, path, body)
                assert answer.status == 400, (port, path, where, answer.text[:300])
                for told in (where, "20,000 x 20,000", "64 megapixels"):
                    assert told in answer.text, (port, path, answer.text[:300])
        next(events)  # it streams on
    seen = manager.instance(eyes["id"])
    assert (seen["status"], seen["pid"], seen["stats"]["crash_count"]) == ("healthy", eyes["pid"], 0)
    assert seen["stats"]["total_requests"] == served, "the engine has heard of none of them"
    assert ask(manager, manager.proxy_port, *next(shapes(picture("PNG")))[:2]).status == 200


def test_every_client_api_is_read_every_kind_of_picture(seeing: Manager) -> None:
    manager = seeing
    eyes = manager.launch(NAME)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        given = {path: body for path, body, _ in reversed([*shapes(picture(kind))])}
        for path in (CHAT, "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"):
            body = given[path]
            answer = ask(manager, manager.proxy_port, path, body)
            assert answer.status == 200, (kind, path, answer.text[:300])
    assert manager.instance(eyes["id"])["stats"]["crash_count"] == 0


def test_what_unpacks_to_more_than_its_size_or_is_of_a_kind_of_its_own_is_refused(seeing: Manager) -> None:
    manager = seeing
    eyes = manager.launch(NAME)
    targa = bytes([0, 0, 2, *bytes(9)]) + struct.pack("<HHBB", 20_000, 20_000, 24, 0)
    flac = b"fLaC\x00\x00\x00\x22" + bytes(10) + (16_000 << 44 | (1 << 36) - 1).to_bytes(8, "big") + bytes(16)
    for data, told in (
        (png(1, 1, unpacked=24 << 20), "unpacks to more"),
        (targa, "neither a picture nor a sound"),
        (b"%PDF-1.7 and so on", "neither a picture nor a sound"),
        (flac, "3,600 seconds"),
    ):
        for path, body, where in shapes(data):
            answer = ask(manager, manager.proxy_port, path, body)
            assert answer.status == 400, (path, answer.text[:300])
            for each in (where, told):
                assert each in answer.text, (path, answer.text[:300])
    assert manager.instance(eyes["id"])["stats"]["total_requests"] == 0


def test_a_model_that_does_not_see_says_so_itself_before_anything_is_measured(plain_manager: Manager) -> None:
    manager = plain_manager
    tiny = manager.launch("tiny")
    for data in (picture("PNG"), picture("WEBP"), BOMB):
        for path, body, _ in shapes(data):
            if "completion" in path.rpartition("/")[2] and path != CHAT:
                continue  # these take such a prompt for text
            answer = ask(manager, manager.proxy_port, path, body, "tiny")
            assert answer.status == 400, (path, answer.text[:300])
            assert "input is not supported" in answer.text, (path, answer.text[:300])
    seen = manager.instance(tiny["id"])
    assert (seen["status"], seen["stats"]["crash_count"]) == ("healthy", 0)
