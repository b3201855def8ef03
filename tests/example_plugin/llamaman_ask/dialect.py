"""The dialect: how `POST /ask` reads a request and phrases answers. Pure: no I/O, no clock, no threads."""

from __future__ import annotations

import json
from collections.abc import Callable

from llamaman import (
    JSON_HEADERS,
    Call,
    InferenceRoute,
    Intent,
    InvalidField,
    Lease,
    LlamaManError,
    ModelView,
    Phase,
    Reply,
    Request,
    Result,
    Serving,
)


class Ask:
    """`{"model": NAME, "question": TEXT}` in, `{"answer": TEXT}` out."""

    name = "ask"
    routes = (InferenceRoute("POST", "/ask"),)

    def __init__(self, max_tokens: Callable[[], int]) -> None:
        self._max_tokens = max_tokens

    def open(self, request: Request) -> Intent:
        """Say what the request wants, or raise what is wrong with it."""
        model, question = request.json.get("model"), request.json.get("question")
        if model is not None and not isinstance(model, str):
            raise InvalidField("model", "model must be a string")
        if not isinstance(question, str):
            raise InvalidField("question", "question must be a string")
        return Intent(model=model, needs="chat", request=request)

    def check(self, intent: Intent, model: ModelView) -> None:
        """Nothing to refuse."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        """Ask the engine that was granted; each `yield` is carried out by LlamaMan."""
        assert intent.request is not None
        question = intent.request.json["question"]
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": self._max_tokens()}
        result = yield Call("POST", "/v1/chat/completions", json.dumps(body).encode(), mode="assemble")
        assert isinstance(result, Result)
        if result.status != 200:  # the engine's own refusal, in its own words
            yield Reply(result.status, JSON_HEADERS, result.body)
            return
        message = json.loads(result.body)["choices"][0]["message"]
        yield Reply(200, JSON_HEADERS, json.dumps({"answer": message.get("content")}).encode())

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        """Phrase an error; `started` is for dialects that stream."""
        body = json.dumps({"error": error.message}).encode()
        if started:
            return body + b"\n"
        headers = list(JSON_HEADERS)
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return Reply(error.status, headers, body)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        """Nothing may be sent before the answer."""
        return None
