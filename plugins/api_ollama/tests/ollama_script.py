"""Asking the dialect, with a scripted engine behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llamaman.errors import LlamaManError
from llamaman.gateway.dialect import Call, Intent, Lease, Reply, Result
from llamaman.records import ModelView
from llamaman.testing.dialect_script import LEASE, MODEL, MODELS, Transcript, drive, good_answer, request_for
from llamaman_api_ollama.dialect import CHAT, EMBED, EMBEDDINGS, GENERATE, SHOW, Ollama

DIALECT = Ollama()
ROUTES = {(route.method, route.pattern): route for route in DIALECT.routes}
HELLO: dict[str, Any] = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"model": "alpha", "prompt": "hi"}
TIMINGS = {"cache_n": 1, "prompt_n": 4, "prompt_ms": 2.5, "predicted_n": 3, "predicted_ms": 4.0}
#: What a final line holds of TIMINGS, with the lease of the script: 0.25 s after the request.
FIGURES = {
    "total_duration": 250_000_000,
    "load_duration": 250_000_000,
    "prompt_eval_count": 5,
    "prompt_eval_duration": 2_500_000,
    "eval_count": 3,
    "eval_duration": 4_000_000,
}
#: A picture of one pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
#: A good body for every endpoint that takes one.
BODIES: dict[str, dict[str, Any]] = {
    CHAT: HELLO,
    GENERATE: PROMPT,
    EMBED: {"model": "beta", "input": "a"},
    EMBEDDINGS: {"model": "beta", "prompt": "a"},
    SHOW: {"model": "alpha"},
}
TOOL = {"type": "function", "function": {"name": "f"}}


def with_abilities(*abilities: str, **changes: Any) -> ModelView:
    """The model, able to do this alone."""
    assert MODEL.details is not None
    return replace(MODEL, details=replace(MODEL.details, capabilities=frozenset(abilities), **changes))


PLAIN = with_abilities("completion")


def opened(path: str, body: dict[str, Any], **given: Any) -> Intent:
    """What the dialect wants for a request."""
    given.setdefault("models", MODELS)
    intent = DIALECT.open(request_for(ROUTES["POST", path], body, **given))
    assert isinstance(intent, Intent)
    return intent


def served(
    path: str,
    body: dict[str, Any],
    *events: dict[str, Any],
    model: ModelView = MODEL,
    lease: Lease = LEASE,
    answer: Callable[[Call], Result] = good_answer,
) -> Transcript:
    """Serve a request; ``events`` are the engine's stream where they are given."""
    intent = opened(path, body)
    DIALECT.check(intent, model)
    if events:
        return drive(DIALECT, intent, model, lease=lease, answer=answer, stream=lambda call: list(events))
    return drive(DIALECT, intent, model, lease=lease, answer=answer)


def sent(
    path: str, body: dict[str, Any], *, model: ModelView = MODEL, lease: Lease = LEASE
) -> dict[str, Any]:
    """The body of the call that generates."""
    (call,) = [
        call
        for call in served(path, body, model=model, lease=lease).calls
        if call.path in ("/v1/chat/completions", "/completion", "/infill", "/v1/embeddings")
    ]
    made = json.loads(call.body)
    assert isinstance(made, dict)
    return made


def refusal(path: str, body: dict[str, Any], model: ModelView = MODEL) -> tuple[int, str]:
    """The status and sentence of a request that is refused before a model is loaded."""
    with pytest.raises(LlamaManError) as caught:
        DIALECT.check(opened(path, body), model)
    reply = DIALECT.error(caught.value, started=False)
    assert isinstance(reply, Reply)
    return caught.value.status, reply_of(reply, caught.value.status)["error"]


def chunk(finish: str | None = None, logprobs: Any = None, **delta: Any) -> dict[str, Any]:
    """An event of ``/v1/chat/completions``; the one that ends it has the timings."""
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    return {"choices": [choice], **({"timings": TIMINGS} if finish else {})}


def lines(done: Transcript) -> list[dict[str, Any]]:
    """The objects of a stream; every line must be one, in ASCII."""
    assert done.reply is None
    assert done.begun is not None
    assert dict(done.begun.headers)[b"content-type"] == b"application/x-ndjson"
    assert done.emitted.isascii()
    *found, last = done.emitted.split(b"\n")
    assert last == b""
    return [json.loads(line) for line in found]


def replied(done: Transcript, status: int = 200) -> dict[str, Any]:
    """The object of a whole answer."""
    assert done.reply is not None
    return reply_of(done.reply, status)


def reply_of(reply: Reply, status: int = 200) -> dict[str, Any]:
    """The object of an answer of that status."""
    assert reply.status == status, reply.body
    assert dict(reply.headers)[b"content-type"] == b"application/json; charset=utf-8"
    assert reply.body.isascii()
    made = json.loads(reply.body)
    assert isinstance(made, dict)
    return made


def saying(status: int, message: str, kind: str = "server_error") -> Callable[[Call], Result]:
    """An engine that refuses everything."""
    error = {"code": status, "message": message, "type": kind}
    return lambda call: Result(status, json.dumps({"error": error}).encode())


def texts(found: Sequence[dict[str, Any]], path: str = CHAT) -> list[str]:
    """The texts of a stream's objects."""
    return [line["response"] if path == GENERATE else line["message"]["content"] for line in found]
