"""Which messages stay where a conversation is longer than the context."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ollama_script import (
    HELLO,
    PIXEL,
    served,
)

from llamaman.gateway.dialect import Call, Result
from llamaman.testing.dialect_script import LEASE, good_answer
from llamaman_api_ollama.dialect import CHAT


def counting(per_message: int) -> Callable[[Call], Result]:
    """An engine whose prompts have so many tokens per message."""

    def answer(call: Call) -> Result:
        body = json.loads(call.body)
        if call.path == "/apply-template":
            return Result(200, json.dumps({"prompt": "m" * len(body["messages"])}).encode())
        if call.path == "/tokenize":
            return Result(200, json.dumps({"tokens": [1] * per_message * len(body["content"])}).encode())
        return good_answer(call)

    return answer


LONG = [
    {"role": "system", "content": "s"},
    *({"role": "user", "content": f"{n} " + "x" * 700} for n in range(8)),
    {"role": "system", "content": "again"},
    {"role": "user", "content": "last"},
]


def kept(body: dict[str, Any], tokens: int, context: int | None = 4096) -> tuple[list[str], int]:
    """What of a conversation the engine is given, and how often it was asked to count."""
    done = served(
        CHAT, {**HELLO, **body}, lease=replace(LEASE, context_length=context), answer=counting(tokens)
    )
    (call,) = [call for call in done.calls if call.path == "/v1/chat/completions"]
    contents = [message["content"].split(" ")[0] for message in json.loads(call.body)["messages"]]
    return contents, sum(call.path == "/tokenize" for call in done.calls)


def test_what_fits_for_sure_is_not_counted() -> None:
    assert kept({}, 10**6)[1] == 0
    assert kept({"messages": LONG}, 10**6, context=None)[1] == 0
    assert kept({"messages": LONG, "truncate": False}, 10**6)[1] == 0
    assert kept({"messages": LONG[:1] + LONG[-1:]}, 10**6, context=100)[1] == 0, "nothing may be left out"


def test_a_conversation_that_fits_is_counted_once() -> None:
    contents, counts = kept({"messages": LONG}, 100)
    assert (len(contents), counts) == (len(LONG), 1)


def test_the_oldest_messages_go_first_but_no_system_message_and_never_the_last() -> None:
    contents, counts = kept({"messages": LONG}, 1000)  # four messages have 4,000 of 4,096 tokens
    assert contents == ["s", "7", "again", "last"]
    assert counts <= 5
    assert kept({"messages": LONG}, 2000)[0] == ["s", "again", "last"], (
        "the engine says what is too long then"
    )


def test_a_picture_counts_as_many_tokens_and_leaves_with_its_message() -> None:
    old = {"role": "user", "content": "old", "images": [PIXEL] * 6}
    new = {"role": "user", "content": "new", "images": [PIXEL]}
    done = served(CHAT, {**HELLO, "messages": [old, new]}, answer=counting(1))
    messages = json.loads(done.calls[-1].body)["messages"]
    assert [message["content"][0]["text"] for message in messages] == ["new"]
    counted = json.loads(done.calls[0].body)["messages"]
    assert [message["content"] for message in counted] == ["old", "new"], (
        "pictures are not rendered to be counted"
    )


def test_an_engine_that_cannot_count_gets_the_whole_conversation() -> None:
    def answer(call: Call) -> Result:
        return good_answer(call) if "chat" in call.path else Result(500, b"")

    done = served(CHAT, {**HELLO, "messages": LONG}, answer=answer)
    assert len(json.loads(done.calls[-1].body)["messages"]) == len(LONG)
