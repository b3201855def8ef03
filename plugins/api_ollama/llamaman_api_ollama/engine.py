"""Small questions to the engine: rendering, counting, turning text into tokens and back. Pure generators.

Each gives None where the engine does not answer as it should; who asks decides what that means.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from llamaman import Call, Event, Op, Result

TEMPLATE = "/apply-template"

Asking = Generator[Op, Event, Any]


def call(path: str, body: Mapping[str, Any], *, streamed: bool = False) -> Call:
    """A POST of JSON."""
    data = json.dumps(body, separators=(",", ":")).encode()
    return Call("POST", path, data, mode="stream" if streamed else "plain")


def render(body: Mapping[str, Any]) -> Generator[Op, Event, str | None]:
    """The prompt that a body of ``/v1/chat/completions`` becomes."""
    prompt = yield from _member(TEMPLATE, body, "prompt")
    return prompt if isinstance(prompt, str) else None


def tokens(text: str, *, special: bool) -> Generator[Op, Event, list[int] | None]:
    """A text's tokens. ``special``: with those that the model wants around a text."""
    found = yield from _member("/tokenize", {"content": text, "add_special": special}, "tokens")
    return found if isinstance(found, list) else None


def pieces(text: str) -> Generator[Op, Event, list[dict[str, Any]]]:
    """A text's tokens with the text of each, with those that the model wants around a text."""
    body = {"content": text, "add_special": True, "with_pieces": True}
    found = yield from _member("/tokenize", body, "tokens")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def text_of(given: Sequence[int]) -> Generator[Op, Event, str | None]:
    """The text of tokens."""
    found = yield from _member("/detokenize", {"tokens": list(given)}, "content")
    return found if isinstance(found, str) else None


def _member(path: str, body: Mapping[str, Any], name: str) -> Asking:
    result = yield call(path, body)
    return member(result, name) if isinstance(result, Result) else None


def member(result: Result, name: str) -> Any:
    """A member of an answer; None where there is none."""
    if result.status != 200:
        return None
    try:
        data = json.loads(result.body)
    except ValueError:
        return None
    return data.get(name) if isinstance(data, dict) else None
