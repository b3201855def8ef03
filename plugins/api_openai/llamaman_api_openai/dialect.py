"""The OpenAI dialect. llama-server speaks it natively, so streams are relayed and bodies rebuilt by the kernel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from llamaman import (
    AUDIO_BODY,
    JSON_HEADERS,
    SSE_HEADERS,
    Call,
    Chunk,
    Emit,
    InferenceRoute,
    Intent,
    InvalidField,
    InvalidRequest,
    Lease,
    LlamaManError,
    ModelView,
    Next,
    Phase,
    Reply,
    Request,
    Result,
    Serving,
    Start,
    answers_of,
    tasks_of,
)
from llamaman_api_openai import embeddings, faults, fields, legacy, models, responses, tools, uploads

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
RERANK = "/v1/rerank"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
CHAT_TOKENS = CHAT + "/input_tokens"
RESPONSES_TOKENS = RESPONSES + "/input_tokens"
MODELS = "/v1/models"
MODEL = "/v1/models/{model...}"
Mode = Literal["relay", "stream", "assemble", "plain"]
#: What other servers call the same.
RERANKS = (RERANK, "/v1/reranking", "/rerank", "/reranking")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What an endpoint asks of a model.

    :ivar path: the engine's.
    :ivar slots: 0 for what llama-server answers beside its slots.
    """

    path: str
    needs: Literal["chat", "completion", "embedding", "any"]
    streams: bool = False
    slots: int = 1


_KINDS: dict[str, _Kind] = {
    CHAT: _Kind(CHAT, "chat", streams=True),
    COMPLETIONS: _Kind(COMPLETIONS, "completion", streams=True),
    RESPONSES: _Kind(RESPONSES, "chat", streams=True),
    EMBEDDINGS: _Kind(EMBEDDINGS, "embedding"),
    **{path: _Kind(RERANK, "embedding") for path in RERANKS},
    TRANSCRIPTIONS: _Kind(TRANSCRIPTIONS, "chat"),
    CHAT_TOKENS: _Kind(CHAT_TOKENS, "any", slots=0),
    RESPONSES_TOKENS: _Kind(RESPONSES_TOKENS, "any", slots=0),
}
_TOOLED = (CHAT, RESPONSES, CHAT_TOKENS, RESPONSES_TOKENS)
_FORM_FIELDS = frozenset({"model", "stream"})
_TEXT_HEADERS = ((b"content-type", b"text/plain; charset=utf-8"),)
#: Tokens after which a call has its name.
_NAMED = 128
_WAITING = b": waiting\n\n"


class OpenAI:
    """See :class:`llamaman.Dialect`."""

    name = "openai"
    routes = (
        InferenceRoute("GET", MODELS, body="none", instances=True),
        InferenceRoute("GET", MODEL, body="none", instances=True),
        *(InferenceRoute("POST", path) for path in _KINDS if path != TRANSCRIPTIONS),
        InferenceRoute("POST", TRANSCRIPTIONS, body="raw", limit=AUDIO_BODY),
    )

    def open(self, request: Request) -> Intent | Reply:
        """Answer model lists at once; everything else is inference."""
        path = request.route.pattern
        if path in (MODELS, MODEL):
            return _models(request)
        kind = _KINDS[path]
        if path == TRANSCRIPTIONS:
            return _transcription(request, kind)
        body = request.json
        _check(path, body)
        return Intent(
            model=fields.text_or_none(body, "model"),
            needs=kind.needs,
            stream=fields.flag(body, "stream") and kind.streams,
            slots=answers_of(body) if path in (CHAT, COMPLETIONS) else kind.slots,
            tasks=tasks_of(kind.path, body),
            request=request,
        )

    def check(self, intent: Intent, model: ModelView) -> None:
        """llama-server says itself what it cannot do; a reranker's embeddings would be all zeros, and a
        conversation of nothing some text.
        """
        request = intent.request
        if request and request.route.pattern == CHAT and request.json.get("messages") == []:
            raise InvalidField("messages", "[] is too short - 'messages'")
        able = model.details.capabilities if model.details else frozenset()
        if request and request.route.pattern == EMBEDDINGS and "rerank" in able:
            raise InvalidRequest(
                f"model '{model.name}' is a reranker and makes no embeddings; use {RERANK}", field="model"
            )

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        """Relay a stream, rebuild a body from a stream, or ask plainly where neither is proven equal."""
        request = intent.request
        assert request is not None
        path, body = request.route.pattern, request.json
        if path == RESPONSES:
            return _respond(request, intent, model, lease)
        if path == EMBEDDINGS and body.get("dimensions") is not None:
            return _embed(request, intent, model)
        if path == TRANSCRIPTIONS:
            return _transcribe(request)
        if path == COMPLETIONS and legacy.most(body) is not None:
            return _complete(request, intent, model)
        return _pass_on(request, intent, model)

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        """OpenAI's error object; inside a stream as its last event."""
        told = faults.told(error)
        if started:
            return faults.event(told)
        body = _dump({"error": told})
        headers = list(JSON_HEADERS)
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return Reply(error.status, headers, body)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        """A comment, which every SSE client ignores."""
        return _WAITING


# --- reading --------------------------------------------------------------------------------------------


def _check(path: str, body: dict[str, Any]) -> None:
    """Refuse what llama-server would take for something else."""
    if path in (CHAT, RESPONSES):
        fields.effort(body)
    if path in _TOOLED:
        tools.chosen(body)
    if path in (CHAT, COMPLETIONS):
        fields.check_stop(body)
    fields.check_unknown(path, body)
    if path in (RESPONSES, RESPONSES_TOKENS):
        responses.check(body)
    if path == EMBEDDINGS:
        embeddings.dimensions(body)
        if body.get("encoding_format") not in (None, "float", "base64"):
            raise InvalidField("encoding_format", "encoding_format must be float or base64")


def _transcription(request: Request, kind: _Kind) -> Intent:
    form = uploads.small_fields(request.raw, request.content_type, _FORM_FIELDS)
    if form.get("stream", "false").strip().lower() not in ("false", "0", ""):
        raise InvalidField("stream", "transcriptions are not streamed; leave stream out")
    return Intent(model=form.get("model") or None, needs=kind.needs, slots=kind.slots, request=request)


def _models(request: Request) -> Reply:
    known = [request.own_model] if request.own_model else request.models
    name = request.values.get("model")
    if name is not None:
        found = models.one(name, known, request.instances, request.presets)
        return Reply(200, JSON_HEADERS, _dump(found))
    entries = models.entries(known, request.instances, request.presets)
    return Reply(200, JSON_HEADERS, _dump({"object": "list", "data": entries}))


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


# --- serving --------------------------------------------------------------------------------------------


def _pass_on(request: Request, intent: Intent, model: ModelView) -> Serving:
    """Ask the engine for the same; it speaks this API."""
    path, body = request.route.pattern, request.json
    patch: dict[str, Any] = {}
    if path == CHAT:
        patch |= fields.thinking(body) | fields.probabilities(body)
    elif path == RESPONSES_TOKENS:
        patch |= responses.conversation(body)
    if path in _TOOLED:
        patch |= tools.chosen(body)
    mode: Mode = "relay" if intent.stream else _whole(path, body, intent)
    result = yield Call(
        "POST",
        _KINDS[path].path,
        request.raw,
        mode=mode,
        patch=patch,
        rename=_rename(intent, model),
        most_tokens=fields.most_tokens(body) if mode == "assemble" else None,
    )
    assert isinstance(result, Result)
    if not result.relayed:
        yield faults.answer(result)


def _complete(request: Request, intent: Intent, model: ModelView) -> Serving:
    """A text completion with probabilities, in both of their forms."""
    logprobs = legacy.Logprobs(request.json)
    patch = {"logprobs": max(1, legacy.most(request.json) or 0)}
    names = _rename(intent, model)
    mode: Mode = "stream" if intent.stream else _whole(COMPLETIONS, request.json, intent)
    most = fields.most_tokens(request.json) if mode == "assemble" else None
    event = yield Call(
        "POST", COMPLETIONS, request.raw, mode=mode, patch=patch, rename=names, most_tokens=most
    )
    began = False
    while isinstance(event, Chunk):
        if not began:
            began = True
            yield Start(200, SSE_HEADERS)
        if names and "model" in event.data:
            event.data["model"] = names[1]
        yield Emit(legacy.frame(logprobs.add(event.data)))
        event = yield Next()
    assert isinstance(event, Result)
    if event.status >= 400:
        yield faults.answer(event)
    elif intent.stream:
        yield Emit(b"data: [DONE]\n\n")
    else:
        yield Reply(200, JSON_HEADERS, _dump(logprobs.add(json.loads(event.body))))


def _respond(request: Request, intent: Intent, model: ModelView, lease: Lease) -> Serving:
    """Make OpenAI's events, or its whole object, of the engine's events."""
    body = request.json
    answer = responses.Answer(body, intent.model or model.name, request.received, lease.context_length)
    event = yield Call(
        "POST",
        RESPONSES,
        request.raw,
        mode="stream",
        patch={**responses.patch(body), **tools.chosen(body), "stream": True},
    )
    began = False
    while isinstance(event, Chunk):
        made = answer.take(event.data)
        if intent.stream and made:
            if not began:
                began = True
                yield Start(200, SSE_HEADERS)
            yield Emit(b"".join(responses.frame(one) for one in made))
        event = yield Next()
    assert isinstance(event, Result)
    if answer.final is not None and not intent.stream:
        yield Reply(200, JSON_HEADERS, _dump(answer.final))
    elif answer.final is None:
        failed = event if event.status >= 400 else Result(502, _dump({"error": _ENDED}))
        if began:
            yield Emit(faults.event(faults.read(failed.body)))
        else:
            yield faults.answer(failed)


_ENDED = {"message": "the engine's answer has no end", "type": "server_error", "param": None, "code": 502}


def _embed(request: Request, intent: Intent, model: ModelView) -> Serving:
    """Embeddings of a length of the client's choice."""
    body = request.json
    patch = {"encoding_format": "float"}
    result = yield Call("POST", EMBEDDINGS, request.raw, patch=patch, rename=_rename(intent, model))
    assert isinstance(result, Result)
    length = embeddings.dimensions(body)
    if result.status != 200 or length is None:
        yield faults.answer(result)
    else:
        encoding = body.get("encoding_format") or "float"
        yield Reply(200, JSON_HEADERS, embeddings.shortened(result.body, length, encoding))


def _transcribe(request: Request) -> Serving:
    """Pass an upload on untouched."""
    result = yield Call("POST", TRANSCRIPTIONS, request.raw, content_type=request.content_type)
    assert isinstance(result, Result)
    if result.status == 200 and result.content_type.startswith(b"text/plain"):
        yield Reply(200, _TEXT_HEADERS, result.body)
    else:
        yield faults.answer(result)


def _whole(path: str, body: dict[str, Any], intent: Intent) -> Mode:
    """How to get an answer that is not streamed: of a stream where that is proven to be equal."""
    is_rebuilt = path in (CHAT, COMPLETIONS) and intent.slots == 1 and _can_be_rebuilt(body)
    return "assemble" if is_rebuilt else "plain"


def _can_be_rebuilt(body: dict[str, Any]) -> bool:
    """Whether the engine streams what it would send whole.

    It does not with several prompts, after a text to be continued (the whole answer repeats it), with thoughts
    left in the text (the whole answer adds the tag that the template opened) or in verbose mode. With tools it
    refuses to stream logprobs, and of an answer that is cut before its first call has a name it streams nothing,
    where the whole answer has half a call as text.
    """
    if isinstance(body.get("prompt"), list) or body.get("verbose") or body.get("reasoning_format") == "none":
        return False
    if body.get("tools") and (body.get("logprobs") or (fields.most_tokens(body) or _NAMED) < _NAMED):
        return False
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return not (isinstance(last, dict) and last.get("role") == "assistant")


def _rename(intent: Intent, model: ModelView) -> tuple[str, str] | None:
    """Answers name the model as the client did; the engine knows it by its own name."""
    return (model.name, intent.model) if intent.model and intent.model != model.name else None
