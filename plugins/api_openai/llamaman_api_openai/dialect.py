"""The OpenAI dialect. llama-server speaks it natively, so streams are relayed and bodies rebuilt by the kernel."""

from __future__ import annotations

import json
from typing import Any

from llamaman import (
    JSON_HEADERS,
    Call,
    InferenceRoute,
    Intent,
    InvalidField,
    Lease,
    LlamaManError,
    ModelNotFound,
    ModelView,
    Phase,
    Reply,
    Request,
    Result,
    Serving,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"

_NEEDS = {CHAT: "chat", COMPLETIONS: "completion", EMBEDDINGS: "embedding"}
_WAITING = b": waiting\n\n"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}

#: How llama-server begins what it calls a fault of its own (500), though the request is at fault.
_CLIENTS_FAULTS = (
    "Failed to parse tools",
    "Unknown reasoning format",
    "image input is not supported",
    "audio input is not supported",
    "video input is not supported",
)


class OpenAI:
    """See :class:`llamaman.Dialect`."""

    name = "openai"
    routes = (
        InferenceRoute("GET", "/v1/models", body="none"),
        InferenceRoute("GET", "/v1/models/{model}", body="none"),
        InferenceRoute("POST", CHAT),
        InferenceRoute("POST", COMPLETIONS),
        InferenceRoute("POST", EMBEDDINGS),
    )

    def open(self, request: Request) -> Intent | Reply:
        """Answer model lists at once; everything else is inference."""
        if request.route.body == "none":
            return _models(request)
        body = request.json
        model = body.get("model")
        if model is not None and not isinstance(model, str):
            raise InvalidField("model", "model must be a string")
        stream = body.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise InvalidField("stream", "stream must be true or false")
        embedding = request.path == EMBEDDINGS
        return Intent(
            model=model,
            needs=_NEEDS[request.path],  # type: ignore[arg-type] # the table above holds the literals
            stream=bool(stream) and not embedding,
            slots=1 if embedding else _choices(body),
            request=request,
        )

    def check(self, intent: Intent, model: ModelView) -> None:
        """llama-server says itself what a model cannot do."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        """Relay a stream, rebuild a body from a stream, or ask plainly where neither is proven equal."""
        request = intent.request
        assert request is not None
        patch: dict[str, Any] = {}
        if "id_slot" in request.json:
            patch["id_slot"] = -1  # which slot serves whom is the pool's business
        rename = _rename(intent, model)
        if intent.stream:
            result = yield Call("POST", request.path, request.raw, mode="relay", patch=patch, rename=rename)
            if getattr(result, "relayed", False):
                return
        elif request.path == EMBEDDINGS or intent.slots > 1 or not _can_be_rebuilt(request.json):
            result = yield Call("POST", request.path, request.raw, mode="plain", patch=patch, rename=rename)
        else:
            result = yield Call(
                "POST",
                request.path,
                request.raw,
                mode="assemble",
                patch=patch,
                rename=rename,
                most_tokens=_most_tokens(request.json),
            )
        yield _reply(result)  # type: ignore[arg-type] # a Call is answered by a Result

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        """OpenAI's error object; inside a stream as its last event."""
        body = json.dumps({"error": _error(error)}, ensure_ascii=False).encode()
        if started:
            return b"data: " + body + b"\n\n"
        headers = list(JSON_HEADERS)
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return Reply(error.status, headers, body)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        """A comment, which every SSE client ignores."""
        return _WAITING


def _reply(result: Result) -> Reply:
    """The engine's answer, a 500 that blames the wrong side put right: clients try again after a 500."""
    message = _told(result.body) if result.status == 500 else ""
    if not message.startswith(_CLIENTS_FAULTS):
        return Reply(result.status, JSON_HEADERS, result.body)
    error = {"message": message, "type": _TYPES[400], "param": None, "code": 400}
    return Reply(400, JSON_HEADERS, json.dumps({"error": error}).encode())


def _told(body: bytes) -> str:
    """The message of an error of llama-server."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):  # not its error object, but something in between
        return ""
    return message if isinstance(message, str) else ""


def _can_be_rebuilt(body: dict[str, Any]) -> bool:
    """Whether the engine streams what it would send whole.

    It does not with several prompts, after a text to be continued (the whole answer repeats it), with thoughts
    left in the text (the whole answer adds the tag that the template opened) or in verbose mode.
    """
    if isinstance(body.get("prompt"), list) or body.get("verbose") or body.get("reasoning_format") == "none":
        return False
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return not (isinstance(last, dict) and last.get("role") == "assistant")


def _choices(body: dict[str, Any]) -> int:
    count = body.get("n")
    if count is None:
        return 1
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 128:
        raise InvalidField("n", "n must be an integer from 1 to 128")
    return count


def _most_tokens(body: dict[str, Any]) -> int | None:
    """The limit that llama-server will apply; it takes these names as aliases."""
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _rename(intent: Intent, model: ModelView) -> tuple[str, str] | None:
    """Answers name the model as the client did; the engine knows it by its own name."""
    return (model.name, intent.model) if intent.model and intent.model != model.name else None


def _models(request: Request) -> Reply:
    models = [request.own_model] if request.own_model else [m for m in request.models if m.runnable]
    entries = [
        {"id": m.name, "object": "model", "created": int(m.modified), "owned_by": "local"} for m in models
    ]
    name = request.values.get("model")
    if name is None:
        return Reply(200, JSON_HEADERS, json.dumps({"object": "list", "data": entries}).encode())
    wanted = name.lower().removesuffix(":latest")
    for entry in entries:
        if entry["id"] == wanted:
            return Reply(200, JSON_HEADERS, json.dumps({**entry, "id": name}).encode())
    raise ModelNotFound(name)


def _error(error: LlamaManError) -> dict[str, Any]:
    return {
        "message": error.message,
        "type": _TYPES.get(error.status, "server_error"),
        "param": error.field,
        "code": error.code,
    }
