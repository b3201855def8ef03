"""What the engine is asked for a chat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ollama_script import (
    HELLO,
    PIXEL,
    PROMPT,
    TOOL,
    replied,
    saying,
    sent,
    served,
    with_abilities,
)

from llamaman.testing.dialect_script import MODEL
from llamaman_api_ollama.dialect import CHAT, GENERATE


def test_a_tool_turn_becomes_a_request_of_llama_server() -> None:
    body = {
        "model": "alpha",
        "messages": [
            {"role": "user", "content": "tide?"},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "lookup", "arguments": {"q": "tide"}}}],
            },
            {"role": "tool", "tool_name": "lookup", "content": "high"},
        ],
        "tools": [TOOL],
    }
    made = sent(CHAT, body)
    assert made["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0_0",
                    "type": "function",
                    "function": {"name": "lookup", "arguments": '{"q":"tide"}'},
                }
            ],
        },
        {"role": "tool", "content": "high", "name": "lookup", "tool_call_id": "call_0_0"},
    ]
    assert made["tools"] == [TOOL]
    assert made["chat_template_kwargs"] == {"enable_thinking": True}
    assert not {"continue_final_message", "logprobs", "response_format", "model"} & set(made)


def test_what_chat_does_not_have_is_ignored() -> None:
    made = sent(
        CHAT, {**HELLO, "system": "s", "template": 5, "context": "x", "max_tokens": 3, "temperature": 9}
    )
    assert [message["role"] for message in made["messages"]] == ["user"]
    assert (made["temperature"], "max_tokens" in made) == (0.8, False)


def test_an_answers_beginning_is_gone_on_with_and_not_echoed() -> None:
    made = sent(CHAT, {**HELLO, "messages": [*HELLO["messages"], {"role": "assistant", "content": "so"}]})
    assert (made["continue_final_message"], made["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    ("think", "able", "architecture", "kwargs"),
    [
        (None, True, "qwen3", {"enable_thinking": True}),
        (True, True, "qwen3", {"enable_thinking": True}),
        (False, True, "qwen3", {"enable_thinking": False}),
        ("low", True, "qwen3", {"enable_thinking": True, "reasoning_effort": "low"}),
        ("max", True, "qwen3", {"enable_thinking": True, "reasoning_effort": "max"}),
        ("max", True, "gpt-oss", {"enable_thinking": True, "reasoning_effort": "high"}),
        (False, True, "gpt-oss", None),
        (None, False, "llama", None),
        (False, False, "llama", None),
    ],
)
def test_thinking_is_switched_with_a_real_boolean(
    think: Any, able: bool, architecture: str, kwargs: dict[str, Any] | None
) -> None:
    model = with_abilities("completion", *(["thinking"] if able else []), architecture=architecture)
    made = sent(CHAT, {**HELLO, "think": think}, model=model)
    assert made.get("chat_template_kwargs") == kwargs


def test_a_model_of_which_nothing_is_known_thinks_when_it_is_told() -> None:
    unknown = replace(MODEL, details=None)
    assert "chat_template_kwargs" not in sent(CHAT, HELLO, model=unknown)
    for think in (True, False):
        made = sent(CHAT, {**HELLO, "think": think}, model=unknown)
        assert made["chat_template_kwargs"] == {"enable_thinking": think}


SCHEMA = {"type": "json_schema", "json_schema": {"name": "format", "schema": {"type": "array"}}}


@pytest.mark.parametrize(
    ("form", "response_format", "schema"),
    [
        ("json", {"type": "json_object"}, {"type": "object"}),
        ({"type": "array"}, SCHEMA, {"type": "array"}),
        ("", None, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_a_format_becomes_what_the_endpoint_knows(form: Any, response_format: Any, schema: Any) -> None:
    assert sent(CHAT, {**HELLO, "format": form}).get("response_format") == response_format
    assert sent(GENERATE, {**PROMPT, "format": form, "raw": True}).get("json_schema") == schema


def test_probabilities_are_asked_for_as_each_endpoint_knows_them() -> None:
    chat = sent(CHAT, {**HELLO, "logprobs": True})
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 1)
    assert sent(GENERATE, {**PROMPT, "raw": True, "logprobs": True, "top_logprobs": 3})["n_probs"] == 3
    assert not {"logprobs", "top_logprobs"} & set(sent(CHAT, {**HELLO, "top_logprobs": 3}))


def test_what_would_be_given_to_the_model_can_be_seen() -> None:
    asked = {**HELLO, "_debug_render_only": True}
    assert replied(served(CHAT, asked)) == {
        "model": "alpha",
        "created_at": "2023-11-14T22:15:00.250000Z",
        "message": {"role": "assistant", "content": ""},
        "done": False,
        "_debug_info": {"rendered_template": "<user>hi"},
    }
    image = {**PROMPT, "_debug_render_only": True, "images": [PIXEL]}
    found = replied(served(GENERATE, image))
    assert (found["response"], found["_debug_info"]) == (
        "",
        {"rendered_template": "<user>hi", "image_count": 1},
    )
    raw = replied(served(GENERATE, {**PROMPT, "raw": True, "_debug_render_only": True}))
    assert raw["_debug_info"] == {"rendered_template": "hi"}
    assert replied(served(CHAT, asked, answer=saying(400, "template error")), 400) == {
        "error": "template error"
    }
