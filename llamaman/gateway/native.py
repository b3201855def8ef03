"""llama-server's own endpoints on an instance's port: a closed table of what is passed through.

Everything that is not listed here is our own 404, whatever the engine was started with. Endpoints that
change shared state need MANAGE; those that show other users' parameters need VIEW.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llamaman.access import Access
from llamaman.errors import InvalidField, LlamaManError
from llamaman.gateway.dialect import (
    JSON_HEADERS,
    Call,
    InferenceRoute,
    Intent,
    Lease,
    Phase,
    Reply,
    Request,
    Result,
    Serving,
)
from llamaman.records import ModelView


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of llama-server.

    :ivar upstream: the literal path that is asked, never the client's bytes.
    :ivar slots: 0 for what llama-server answers beside its slots.
    :ivar text: the answer is plain text, not JSON.
    """

    method: str
    path: str
    upstream: str
    access: Access = Access.INFERENCE
    needs: Literal["chat", "completion", "embedding", "any"] = "any"
    streams: bool = False
    slots: int = 1
    text: bool = False


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/completion", "/completion", needs="completion", streams=True),
    Endpoint("POST", "/completions", "/completion", needs="completion", streams=True),
    Endpoint("POST", "/chat/completions", "/v1/chat/completions", needs="chat", streams=True),
    Endpoint("POST", "/infill", "/infill", needs="completion", streams=True),
    Endpoint("POST", "/embedding", "/embedding", needs="embedding"),
    Endpoint("POST", "/embeddings", "/embeddings", needs="embedding"),
    Endpoint("POST", "/tokenize", "/tokenize", slots=0),
    Endpoint("POST", "/detokenize", "/detokenize", slots=0),
    Endpoint("POST", "/apply-template", "/apply-template", slots=0),
    Endpoint("GET", "/props", "/props", slots=0),
    Endpoint("GET", "/slots", "/slots", access=Access.VIEW, slots=0),
    Endpoint("GET", "/metrics", "/metrics", access=Access.VIEW, slots=0, text=True),
    Endpoint("GET", "/lora-adapters", "/lora-adapters", access=Access.VIEW, slots=0),
    Endpoint("POST", "/lora-adapters", "/lora-adapters", access=Access.MANAGE, slots=0),
    Endpoint("POST", "/props", "/props", access=Access.MANAGE, slots=0),
)

_BY_ROUTE: Mapping[tuple[str, str], Endpoint] = {(e.method, e.path): e for e in ENDPOINTS}
#: Members of ``/props`` that name the host's files.
_PRIVATE = ("model_path", "path")
_TEXT_HEADERS = ((b"content-type", b"text/plain; charset=utf-8"),)


class Native:
    """The dialect of llama-server itself; served on instance ports only."""

    name = "llama.cpp"
    routes = tuple(
        InferenceRoute(e.method, e.path, e.access, "json" if e.method == "POST" else "none")
        for e in ENDPOINTS
    )

    def open(self, request: Request) -> Intent | Reply:
        """Everything goes to the port's own instance."""
        endpoint = _BY_ROUTE[request.route.method, request.route.pattern]
        model = request.json.get("model")
        if model is not None and not isinstance(model, str):
            raise InvalidField("model", "model must be a string")
        stream = request.json.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise InvalidField("stream", "stream must be true or false")
        return Intent(
            model=model,
            needs=endpoint.needs,
            stream=bool(stream) and endpoint.streams,
            slots=endpoint.slots,
            wakes=endpoint.access is Access.INFERENCE and endpoint.method == "POST",
            request=request,
        )

    def check(self, intent: Intent, model: ModelView) -> None:
        """The engine knows best what it can."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        """Relay streams; pass bodies on without the host's paths."""
        request = intent.request
        assert request is not None
        endpoint = _BY_ROUTE[request.route.method, request.route.pattern]
        patch = {"id_slot": -1} if "id_slot" in request.json else {}
        mode: Literal["relay", "plain"] = "relay" if intent.stream else "plain"
        result = yield Call(endpoint.method, endpoint.upstream, request.raw, mode=mode, patch=patch)
        assert isinstance(result, Result)
        if result.relayed:
            return
        if endpoint.text and result.status == 200:
            yield Reply(200, _TEXT_HEADERS, result.body)
        else:
            yield Reply(result.status, JSON_HEADERS, _without_paths(endpoint, result.body))

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        """The specification's flat shape."""
        body = json.dumps({"error": error.message}, ensure_ascii=False).encode()
        if started:
            return b"data: " + body + b"\n\n"
        headers = list(JSON_HEADERS)
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        return Reply(error.status, headers, body)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        """A comment."""
        return b": waiting\n\n"


def _without_paths(endpoint: Endpoint, body: bytes) -> bytes:
    if endpoint.path not in ("/props", "/lora-adapters"):
        return body
    try:
        data = json.loads(body)
    except ValueError:
        return body
    for item in data if isinstance(data, list) else [data]:
        if isinstance(item, dict):
            for name in _PRIVATE:
                item.pop(name, None)
    return json.dumps(data, ensure_ascii=False).encode()
