"""What the kernel is told a request wants; loading and unloading are answered by that alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ollama_script import (
    BODIES,
    HELLO,
    PIXEL,
    opened,
    replied,
    served,
)

from llamaman_api_ollama.dialect import CHAT, GENERATE


def test_a_request_streams_unless_it_says_no() -> None:
    for stream, streams in ((None, True), (True, True), (False, False)):
        assert opened(CHAT, {**HELLO, "stream": stream}).stream is streams
    assert opened(CHAT, {"model": "alpha", "messages": HELLO["messages"]}).stream is True


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_an_intent_says_who_asks_how_long_and_how_much(path: str) -> None:
    plain = opened(path, BODIES[path])
    assert (plain.launcher, plain.needs, plain.keep_alive, plain.context, plain.action) == (
        "ollama", "chat", None, None, "infer"
    )  # fmt: skip
    asked = opened(path, {**BODIES[path], "keep_alive": -1, "options": {"num_ctx": 8192}})
    assert (asked.keep_alive, asked.context) == (math.inf, 8192)


def test_field_names_match_in_any_case() -> None:
    intent = opened(CHAT, {"MODEL": "alpha", "Messages": HELLO["messages"], "Keep_Alive": 5, "STREAM": False})
    assert (intent.model, intent.keep_alive, intent.stream) == ("alpha", 5, False)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body", "action", "said"),
    [
        (CHAT, {"messages": []}, "load", {"message": {"role": "assistant", "content": ""}}),
        (CHAT, {"messages": None}, "load", {"message": {"role": "assistant", "content": ""}}),
        (
            CHAT,
            {"messages": [], "keep_alive": 0},
            "unload",
            {"message": {"role": "assistant", "content": ""}},
        ),
        (GENERATE, {"prompt": ""}, "load", {"response": ""}),
        (GENERATE, {"prompt": None, "images": [PIXEL], "suffix": "x"}, "load", {"response": ""}),
        (GENERATE, {"prompt": "", "keep_alive": "0s"}, "unload", {"response": ""}),
        (GENERATE, {"prompt": "", "keep_alive": 5}, "load", {"response": ""}),
    ],
)
def test_loading_and_unloading_are_one_object_without_figures(
    stream: bool, path: str, body: dict[str, Any], action: str, said: dict[str, Any]
) -> None:
    asked = {**BODIES[path], **body, "model": "Alpha", "stream": stream}
    intent = opened(path, asked)
    assert (intent.action, intent.stream) == (action, False)
    done = served(path, asked)
    assert not done.calls, "llama-server would generate from nothing"
    assert replied(done) == {
        "model": "Alpha",
        "created_at": "2023-11-14T22:15:00.250000Z",
        **said,
        "done": True,
        "done_reason": action,
    }
