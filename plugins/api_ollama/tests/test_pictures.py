"""Pictures on their way to the engine."""

from __future__ import annotations

import json

from ollama_script import (
    HELLO,
    PIXEL,
    served,
)

from llamaman_api_ollama.dialect import CHAT


def test_pictures_go_to_the_engine_as_what_they_are() -> None:
    done = served(CHAT, {**HELLO, "messages": [{"role": "user", "content": "x", "images": [PIXEL]}]})
    part = json.loads(done.calls[0].body)["messages"][0]["content"][1]
    assert part["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"
