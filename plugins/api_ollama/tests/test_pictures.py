"""Pictures on their way to the engine."""

from __future__ import annotations

import json

from ollama_script import (
    BODIES,
    HELLO,
    PIXEL,
    replied,
    served,
)

from llamaman_api_ollama.dialect import CHAT, GENERATE


def test_pictures_are_read_off_the_event_loop() -> None:
    done = served(CHAT, {**HELLO, "messages": [{"role": "user", "content": "x", "images": [PIXEL]}]})
    assert type(done.ops[0]).__name__ == "Work"
    part = json.loads(done.calls[0].body)["messages"][0]["content"][1]
    assert part["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"


def test_a_picture_that_is_refused_there_is_a_400() -> None:
    webp = "UklGRgAAAABXRUJQVlA4IA=="
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "images": [webp]}]}),
        (GENERATE, {"images": [webp]}),
    ):
        done = served(path, {**BODIES[path], **body})
        assert "WebP" in replied(done, 400)["error"]
        assert not done.calls
