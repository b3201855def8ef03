"""What several tasks inside one engine mean for each other: a context that they share, and slots that they take."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Answer, Request

CHAT, MESSAGES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/completions"
#: With two slots; a byte is a token.
CONTEXT = 1024
OVERLOADED = "need more context together than it has (1024 tokens)"


def ask(manager: Manager, path: str, said: str = "", **fields: Any) -> Request:
    """A request whose prompt has about as many tokens as ``said`` has characters."""
    body: dict[str, Any] = {"model": "slow", "temperature": 0, **fields}
    if said:
        body["messages"] = [{"role": "user", "content": said}]
    return Request(manager.proxy_port, "POST", path, key=manager.inference_key, body=body)


def told(answer: Answer) -> Any:
    assert answer.status == 200, answer.text
    return answer.json()


def test_who_has_nothing_of_an_answer_is_answered_when_the_others_are_gone(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    manager.launch(slow(manager), parallel=2, ctx_size=CONTEXT, **ENDLESS)
    with ask(manager, CHAT, "a" * 300, max_tokens=FOR_EVER, stream=True) as first:
        events = first.events()
        next(events)
        whole = told(ask(manager, MESSAGES, "b" * 800, max_tokens=4).answer())
        last = json.loads(list(events)[-1])
    assert whole["usage"]["output_tokens"] == 4, "it was asked again"
    assert (last["error"]["type"], last["error"]["code"]) == ("unavailable_error", "context_full")
    assert OVERLOADED in last["error"]["message"]

    with ask(manager, MESSAGES, "c" * 300, max_tokens=FOR_EVER, stream=True) as first:
        events = first.events()
        next(events)
        with ask(manager, CHAT, "d" * 800, max_tokens=4, stream=True) as second:
            relayed = [event for event in second.events() if event != "[DONE]"]
        last = json.loads(list(events)[-1])
    assert last["error"]["type"] == "overloaded_error"
    assert OVERLOADED in last["error"]["message"]
    ends = [choice["finish_reason"] for event in relayed for choice in json.loads(event)["choices"]]
    assert ends[-1] == "length", "it was asked again, and the client has seen nothing of that"


def test_who_alone_asks_for_more_than_there_is_is_at_fault(plain_manager: Manager) -> None:
    manager = plain_manager
    manager.launch("tiny", parallel=2, ctx_size=CONTEXT)
    several = {"model": "tiny", "max_tokens": 900}
    for path, fields in (
        (CHAT, {"said": "a", "n": 2}),
        (CHAT, {"said": "a", "n": 2, "stream": True}),
        (COMPLETIONS, {"prompt": ["a" * 100, "b" * 100]}),
    ):
        refused = ask(manager, path, **several, **fields).answer()
        if fields.get("stream") and refused.status == 200:  # some of it was told before
            error = json.loads(refused.text.strip().rpartition("data: ")[2])["error"]
            assert error["code"] == "context_length_exceeded", "to ask again would not help"
            continue
        error = refused.json()["error"]
        assert (refused.status, error["type"]) == (400, "invalid_request_error"), refused.text
        assert error["code"] == "context_length_exceeded"
    for path in (CHAT, MESSAGES, "/v1/responses"):
        said = {"input": "a" * 2000} if path == "/v1/responses" else {"said": "a" * 2000}
        for stream in (False, True):
            long = ask(manager, path, model="tiny", max_tokens=4, stream=stream, **said).answer()
            assert long.status == 400, f"{path}: {long.text}"
            words = "prompt is too long: 20" if path == MESSAGES else "context_length_exceeded"
            assert words in long.text


def test_more_prompts_than_slots_take_all_the_slots_and_nothing_else_waits_inside(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    instance = manager.launch(slow(manager), parallel=2)
    prompts = {"prompt": ["a", "b", [97, 98], "d", "e"], "max_tokens": 1000}
    with ask(manager, COMPLETIONS, **prompts) as many:
        manager.until(lambda: queue(manager, instance)["active"] == 2, "both slots to be taken")
        with ask(manager, CHAT, "x", max_tokens=1) as one:
            manager.until(lambda: queue(manager, instance)["queued"] == 1, "the other one to wait")
            assert len(told(many.answer())["choices"]) == 5
            assert told(one.answer())["choices"]
    alone = told(ask(manager, "/upstream/slow/completion", prompt=["a"] * 3, n_predict=1).answer())
    assert len(alone) == 3


def test_more_inputs_of_embeddings_than_slots_are_served(plain_manager: Manager) -> None:
    manager = plain_manager
    write_tiny_model(manager.models / "mean.gguf", embedding=True)
    manager.manage("POST", "/api/models/rescan")
    manager.launch("mean", parallel=2, embedding_model=True)
    found = told(ask(manager, "/v1/embeddings", model="mean", input=["a", "b"] * 3).answer())
    assert len(found["data"]) == 6


def queue(manager: Manager, instance: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = manager.instance(instance["id"])["queue"]
    return found
