"""The Anthropic dialect keeps the contract that every dialect keeps."""

from __future__ import annotations

from typing import Any

from llamaman.gateway.dialect import Dialect
from llamaman.testing.dialect_contract import DialectContract, Example
from llamaman_api_anthropic.dialect import COUNT, MESSAGES, MODEL, MODELS, UPSTREAM_MESSAGES, Anthropic

HELLO: dict[str, Any] = {"model": "alpha", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
EVERYTHING: dict[str, Any] = {
    "model": "ALPHA:latest",
    "max_tokens": 50,
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                },
                {"type": "document", "title": "t", "source": {"type": "text", "data": "doc"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "it"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "is_error": True,
                    "content": [{"type": "text", "text": "a llama"}],
                },
                {"type": "text", "text": "and?"},
            ],
        },
        {"role": "system", "content": "now in French"},
        {"role": "assistant", "content": "C'est"},
    ],
    "tools": [{"name": "look", "description": "d", "input_schema": {"type": "object", "properties": {}}}],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    "output_config": {"effort": "max", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["END"],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "metadata": {"user_id": "u"},
}


class TestAnthropic(DialectContract):
    examples = (
        Example(MESSAGES, HELLO),
        Example(MESSAGES, {**HELLO, "stream": True}),
        Example(MESSAGES, EVERYTHING),
        Example(MESSAGES, {**EVERYTHING, "stream": True}),
        Example(UPSTREAM_MESSAGES, {**HELLO, "stream": True}),
        Example(COUNT, HELLO),
        Example(COUNT, EVERYTHING),
        Example(MODELS, method="GET"),
        Example(MODEL, method="GET", values={"model": "alpha"}),
    )

    def make_dialect(self) -> Dialect:
        return Anthropic()
