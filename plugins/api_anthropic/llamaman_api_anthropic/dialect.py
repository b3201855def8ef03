"""The Anthropic dialect: messages over llama-server's chat completions, and the counting of their tokens.

llama-server's own ``/v1/messages`` is not used: it does not stop when a client leaves while it reads the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from llamaman import (
    JSON_HEADERS,
    SSE_HEADERS,
    Call,
    Chunk,
    Emit,
    Event,
    InferenceRoute,
    Intent,
    InvalidField,
    Lease,
    LlamaManError,
    ModelView,
    Next,
    Op,
    Phase,
    Reply,
    Request,
    Result,
    Serving,
    Start,
)
from llamaman_api_anthropic import errors, models
from llamaman_api_anthropic.answer import whole
from llamaman_api_anthropic.fields import flag
from llamaman_api_anthropic.request import completion_body, estimated_tokens, prompt_body
from llamaman_api_anthropic.stream import Translator, encoded

MESSAGES = "/v1/messages"
MODELS = "/v1/models"
MODEL = "/v1/models/{model...}"
COUNT = "/v1/messages/count_tokens"
#: In place of llama-server's own, which reads neither penalties nor whether its client is still there.
UPSTREAM_MESSAGES = "/upstream/{model}/v1/messages"

#: Of a path that OpenAI's API has, too: Anthropic's clients send it with everything.
_VERSION = b"anthropic-version"
_CHAT = "/v1/chat/completions"
_COUNT = "/v1/chat/completions/input_tokens"
_WAITING = b": waiting\n\n"


class Anthropic:
    """See :class:`llamaman.Dialect`."""

    name = "anthropic"
    routes = (
        InferenceRoute("POST", MESSAGES),
        InferenceRoute("POST", COUNT),
        InferenceRoute("POST", UPSTREAM_MESSAGES, surfaces=("manage", "proxy")),
        InferenceRoute("GET", MODELS, body="none", instances=True, header=_VERSION),
        InferenceRoute("GET", MODEL, body="none", instances=True, header=_VERSION),
    )

    def open(self, request: Request) -> Intent | Reply:
        """Answer model lists at once; check everything else that can be checked without a model."""
        if request.route.pattern in (MODELS, MODEL):
            return _models(request)
        body = request.json
        model = body.get("model")
        if model is not None and not isinstance(model, str):
            raise InvalidField("model", "model: Input should be a valid string")
        model = request.values.get("model", model)
        if request.route.pattern == COUNT:
            prompt_body(body)
            return Intent(model=model, needs="chat", slots=0, request=request)
        stream = flag(body.get("stream"), "stream")
        completion_body(body)
        return Intent(model=model, needs="chat", stream=stream, request=request)

    def check(self, intent: Intent, model: ModelView) -> None:
        """llama-server says itself what a model cannot do."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        """Count, or ask for a stream and tell it as events or as one message."""
        assert intent.request is not None
        if intent.request.route.pattern == COUNT:
            return _count(intent.request)
        return _messages(intent, intent.request, model)

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        """Anthropic's error envelope; inside a stream as its last event."""
        known = f"req_{error.request_id}" if error.request_id else None
        body = errors.envelope(error.status, error.message, known)
        if started:
            return errors.event(body)
        headers = errors.headers(known) if known else list(JSON_HEADERS)
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        return Reply(error.status, headers, body)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        """A comment: a ping event may not come before message_start."""
        return _WAITING


def _models(request: Request) -> Reply:
    known = [request.own_model] if request.own_model else request.models
    name = request.values.get("model")
    if name is not None:
        found = models.one(name, known, request.instances, request.presets)
    else:
        entries = models.entries(known, request.instances, request.presets)
        found = models.page(entries, request.query)
    return Reply(200, errors.headers(_request_id(request)), _dump(found))


def _messages(intent: Intent, request: Request, model: ModelView) -> Serving:
    asked = completion_body(request.json)
    event = yield Call("POST", _CHAT, _dump(asked), mode="stream")
    if _failed(event):
        yield _refusal(event, request)
        return
    thinking = request.json.get("thinking") or {}
    translator = Translator(
        _message_id(event, request),
        request.json.get("model") or intent.model or model.name,
        estimated_tokens(asked),
        silent=thinking.get("display") == "omitted",
    )
    if intent.stream:
        yield from _streamed(event, translator, request)
    else:
        yield from _whole(event, translator, request)


def _streamed(event: Event, translator: Translator, request: Request) -> Generator[Op, Event, None]:
    yield Start(200, errors.headers(_request_id(request), SSE_HEADERS))
    yield Emit(encoded(translator.begin()))
    while isinstance(event, Chunk):
        if events := translator.add(event.data):
            yield Emit(encoded(events))
        event = yield Next()
    if _failed(event):
        yield Emit(_refusal(event, request).late or b"")
    else:
        yield Emit(encoded(translator.end()))


def _whole(event: Event, translator: Translator, request: Request) -> Generator[Op, Event, None]:
    told = translator.begin()
    while isinstance(event, Chunk):
        told += translator.add(event.data)
        event = yield Next()
    if _failed(event):
        yield _refusal(event, request)
    else:
        message = whole([*told, *translator.end()])
        yield Reply(200, errors.headers(_request_id(request)), _dump(message))


def _count(request: Request) -> Serving:
    asked = prompt_body(request.json)
    event = yield Call("POST", _COUNT, _dump(asked))
    count = _field(event, "input_tokens")
    if count is None and not (_failed(event) and _status(event) not in (404, 501)):
        # An engine from before that endpoint: the same in two steps, images not counted.
        event = yield Call("POST", "/apply-template", _dump(asked))
        if isinstance(prompt := _field(event, "prompt"), str):
            body = {"content": prompt, "add_special": True, "parse_special": True}
            event = yield Call("POST", "/tokenize", _dump(body))
            if isinstance(tokens := _field(event, "tokens"), list):
                count = len(tokens)
    if isinstance(count, int):
        yield Reply(200, errors.headers(_request_id(request)), _dump({"input_tokens": count}))
    elif _failed(event):
        yield _refusal(event, request)
    else:
        raise LlamaManError("the engine does not say how many tokens this is")


def _failed(event: Event) -> bool:
    return isinstance(event, Result) and event.status >= 400


def _status(event: Event) -> int:
    assert isinstance(event, Result)
    return event.status


def _field(event: Event, name: str) -> Any:
    """A field of a plain answer; None when there is none."""
    assert isinstance(event, Result)
    if event.status != 200:
        return None
    try:
        return json.loads(event.body).get(name)
    except (ValueError, AttributeError):  # not an object: it does not say
        return None


def _refusal(event: Event, request: Request) -> Reply:
    """llama-server's error in Anthropic's shape."""
    assert isinstance(event, Result)
    status, message = errors.engines(event.status, event.body)
    known = _request_id(request)
    body = errors.envelope(status, message, known)
    return Reply(status, errors.headers(known), body, late=errors.event(body))


def _request_id(request: Request) -> str:
    return f"req_{request.request_id}"


def _message_id(event: Event, request: Request) -> str:
    given = event.data.get("id") if isinstance(event, Chunk) else None
    return f"msg_{str(given or request.request_id).removeprefix('chatcmpl-')}"


def _dump(value: Any) -> bytes:
    # Half a surrogate pair, which a model can write as an escape, becomes that escape again.
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")
