"""A tool's arguments in a conversation's past, which some clients send as JSON in a string."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ollama_script import HELLO, refusal, sent

from llamaman import limits
from llamaman_api_ollama.dialect import CHAT


def past(arguments: Any, name: str = "arguments") -> dict[str, Any]:
    """A chat in which a tool was called with this."""
    call = {"function": {"name": "f", name: arguments}}
    return {
        **HELLO,
        "messages": [*HELLO["messages"], {"role": "assistant", "tool_calls": [call]}, *HELLO["messages"]],
    }


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"b": 1, "a": "ä"}, '{"b":1,"a":"ä"}'),
        ('{"b": 1, "a": "\\u00e4"}', '{"b":1,"a":"ä"}'),
        (None, "{}"),
        ("", "{}"),
        (" ", "{}"),
    ],
)
def test_the_engine_is_given_them_as_text(given: Any, text: str) -> None:
    (call,) = sent(CHAT, past(given))["messages"][1]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": text}


@pytest.mark.parametrize(
    "given",
    [
        5,
        [1],
        "[1]",
        "5",
        "no",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": ' + "[" * 100_000,
        '{"a": ' + "9" * 5000,
    ],
)
def test_what_is_no_object_that_every_parser_reads_alike_is_refused(given: Any) -> None:
    assert refusal(CHAT, past(given)) == (
        400,
        "messages[1].tool_calls[0].function.arguments must be an object",
    )


@pytest.mark.parametrize("name", ["arguments", "Arguments"])
def test_they_are_no_deeper_than_a_body_may_be(name: str) -> None:
    def nested(levels: int) -> str:
        return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"

    made = sent(CHAT, past(nested(limits.BODY_DEPTH), name))
    assert json.loads(made["messages"][1]["tool_calls"][0]["function"]["arguments"])
    for levels in (limits.BODY_DEPTH + 1, 900):
        status, text = refusal(CHAT, past(nested(levels), name))
        assert status == 400
        assert text.endswith(f"function.arguments is nested deeper than {limits.BODY_DEPTH} levels")
