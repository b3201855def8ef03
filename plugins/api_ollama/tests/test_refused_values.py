"""What a request is refused for before anything is loaded: bad values, and what a model cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ollama_script import (
    BODIES,
    DIALECT,
    HELLO,
    PLAIN,
    TOOL,
    opened,
    refusal,
    with_abilities,
)

from llamaman.testing.dialect_script import MODEL, MODELS
from llamaman_api_ollama.dialect import CHAT, EMBED, GENERATE


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (CHAT, {"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        (GENERATE, {"top_logprobs": -1}, "top_logprobs must be between 0 and 20"),
        (
            CHAT,
            {"think": "hi"},
            'invalid think value: "hi" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            CHAT,
            {"think": 1},
            'invalid think value: 1 (must be "high", "medium", "low", "max", true, or false)',
        ),
        (CHAT, {"format": "xml"}, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
        (GENERATE, {"format": []}, 'invalid format: []; expected "json" or a valid JSON Schema object'),
        (GENERATE, {"raw": True, "system": "s"}, "raw mode does not support template, system, or context"),
        (GENERATE, {"raw": True, "template": "t"}, "raw mode does not support template, system, or context"),
        (GENERATE, {"raw": True, "context": [1]}, "raw mode does not support template, system, or context"),
        (CHAT, {"options": {"temperature": "hot"}}, 'option "temperature" must be of type float32'),
        (CHAT, {"keep_alive": "x"}, 'time: invalid duration "x"'),
        (GENERATE, {"keep_alive": "300"}, 'time: missing unit in duration "300"'),
        (EMBED, {"keep_alive": True}, "Unsupported type: 'bool'"),
        (GENERATE, {"images": ["!"]}, "illegal base64 data at input byte 0"),
        (GENERATE, {"images": ["aaaa\n" * 300_000 + "!"]}, "illegal base64 data at input byte 1500000"),
        (GENERATE, {"images": ["aaaa\n" * 300_000 + "a"]}, "illegal base64 data at input byte 1200001"),
        (CHAT, {"messages": [{"role": "user", "images": ["aaaa!"]}]}, "illegal base64 data at input byte 4"),
        (EMBED, {"input": 5}, "invalid input type"),
        (EMBED, {"input": ["a", 5]}, "invalid input type"),
        (EMBED, {"input": {}}, "invalid input type"),
        (CHAT, {"stream": "no"}, "stream must be true or false"),
        (CHAT, {"messages": "hi"}, "messages must be a list"),
        (CHAT, {"messages": {}}, "messages must be a list"),
        (CHAT, {"tools": [1]}, "tools must be a list of objects"),
        (CHAT, {"options": []}, "options must be an object"),
        (CHAT, {"model": 1}, "model must be a string"),
        (GENERATE, {"prompt": ["a"]}, "prompt must be a string"),
        (GENERATE, {"context": ["a"]}, "context must be a list of tokens"),
        (GENERATE, {"context": [-1]}, "context must be a list of tokens"),
        (CHAT, {"top_logprobs": 1.5}, "top_logprobs must be an integer"),
        (EMBED, {"dimensions": "4"}, "dimensions must be an integer"),
    ],
)
def test_a_bad_value_is_a_400_with_the_text_that_clients_know(
    path: str, body: dict[str, Any], text: str
) -> None:
    assert refusal(path, {**BODIES[path], **body}) == (400, text)


@pytest.mark.parametrize("typed", ["Alpha", "alpha:latest"])
@pytest.mark.parametrize(
    ("path", "body", "able", "text"),
    [
        (CHAT, {}, ["embedding"], '"{}" does not support chat'),
        (GENERATE, {}, ["embedding"], '"{}" does not support generate'),
        (GENERATE, {"prompt": ""}, ["embedding"], '"{}" does not support generate'),
        (CHAT, {"messages": []}, ["embedding"], '"{}" does not support chat'),
        (CHAT, {"think": True}, ["completion"], '"{}" does not support thinking'),
        (CHAT, {"think": "low"}, ["completion"], '"{}" does not support thinking'),
        (GENERATE, {"prompt": "", "think": True}, ["completion"], '"{}" does not support thinking'),
    ],
)
def test_what_a_model_cannot_do_names_it_as_typed(
    typed: str, path: str, body: dict[str, Any], able: list[str], text: str
) -> None:
    found = refusal(path, {**BODIES[path], "model": typed, **body}, with_abilities(*able))
    assert found == (400, text.format(typed))


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (CHAT, {"tools": [TOOL]}, "does not support tools"),
        (GENERATE, {"suffix": "x"}, "does not support insert"),
    ],
)
def test_a_missing_feature_names_the_model_in_full(path: str, body: dict[str, Any], text: str) -> None:
    found = refusal(path, {**BODIES[path], "model": "Alpha", **body}, PLAIN)
    assert found == (400, f"registry.ollama.ai/library/Alpha:latest {text}")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"think": False}),
        (CHAT, {"think": ""}),
        (CHAT, {"tools": []}),
        (CHAT, {"tools": None}),
        (GENERATE, {"suffix": ""}),
        (GENERATE, {"suffix": "x", "raw": True}),
        (CHAT, {"messages": [], "tools": [TOOL]}),
    ],
)
def test_empty_values_ask_for_nothing(path: str, body: dict[str, Any]) -> None:
    DIALECT.check(opened(path, {**BODIES[path], **body}), PLAIN)


def test_an_embedding_model_can_be_unloaded_as_the_cli_does_it() -> None:
    intent = opened(GENERATE, {"model": "beta", "keep_alive": "0s"})
    DIALECT.check(intent, MODELS[1])
    assert (intent.action, intent.needs) == ("unload", "any")


def test_a_model_that_nobody_knows_about_gets_its_chance() -> None:
    for unknown in (replace(MODEL, details=None), with_abilities()):
        DIALECT.check(opened(CHAT, {**HELLO, "think": True, "tools": [TOOL]}), unknown)
