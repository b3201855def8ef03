"""The dialect of llama-server itself: `endpoints.py` passed through, on instance ports and by model elsewhere.

An engine gets the table's literal path, the table's query parameters and a client's body; a client gets the
engine's body, its content type and nothing else of its head. What changes shared state needs MANAGE, what shows
other users' parameters VIEW, and neither starts or wakes a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, urlencode

from llamaman.access import Access
from llamaman.errors import InvalidField, InvalidRequest, LlamaManError, NotFound
from llamaman.gateway.dialect import (
    JSON_HEADERS,
    Call,
    Headers,
    InferenceRoute,
    Intent,
    Lease,
    Phase,
    Reply,
    Request,
    Result,
    Serving,
    Surface,
)
from llamaman.gateway.endpoints import ASSETS, ENDPOINTS, UPSTREAM, Endpoint
from llamaman.gateway.engine_tasks import answers_of, tasks_of
from llamaman.gateway.host_paths import without_paths
from llamaman.records import ModelView

_BY_ROUTE: Mapping[tuple[str, str], Endpoint] = {
    **{(e.method, e.path): e for e in (*ENDPOINTS, *ASSETS)},
    **{(e.method, UPSTREAM + e.path): e for e in ENDPOINTS},
}
#: What tells about files: the host's paths are taken out.
_TELLS_OF_FILES = frozenset({"/props", "/lora-adapters", "/models", "/v1/models"})
_TEXT_HEADERS: Headers = ((b"content-type", b"text/plain; charset=utf-8"),)
_MULTIPART = re.compile(
    rb'multipart/form-data; *boundary=("[\w\'()+,./:=? -]{1,70}"|[\w\'+.-]{1,70})', re.ASCII
)
_ASSET = re.compile(r"(?:[\w-][\w.-]*/){0,8}[\w-][\w.-]*", re.ASCII)
#: What a file of the web page is, by its ending; an engine's own word would let a model's file be a script.
_TYPES: Mapping[str, bytes] = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "json": b"application/json",
    "webmanifest": b"application/manifest+json",
    "svg": b"image/svg+xml",
    "ico": b"image/x-icon",
    "png": b"image/png",
    "woff2": b"font/woff2",
    "woff": b"font/woff",
    "wasm": b"application/wasm",
}


def _routes() -> tuple[InferenceRoute, ...]:
    found = []
    for e in (*ENDPOINTS, *ASSETS):
        surfaces: list[Surface] = ["manage", "proxy"] if e.by_model else []
        if e.instance:
            surfaces.append("instance")
        if surfaces:
            found.append(InferenceRoute(e.method, e.path, e.access, e.body, e.limit, tuple(surfaces)))
    found += (
        InferenceRoute(e.method, UPSTREAM + e.path, e.access, e.body, e.limit, ("manage", "proxy"))
        for e in ENDPOINTS
    )
    return tuple(found)


class Native:
    """See :class:`llamaman.gateway.dialect.Dialect`.

    :param web_ui: whether instances show llama.cpp's own web page (setting ``instances.web_ui``).
    """

    name = "llama.cpp"
    routes = _routes()

    def __init__(self, web_ui: Callable[[], bool] = lambda: False) -> None:
        self._web_ui = web_ui

    def open(self, request: Request) -> Intent | Reply:
        """By the model in the path, by the one that the body names, or to the port's own instance."""
        endpoint = _BY_ROUTE[request.route.method, request.route.pattern]
        if endpoint.asset and not (self._web_ui() and _ASSET.fullmatch(_file(request))):
            raise NotFound("Not found")
        if endpoint.body == "raw" and not _MULTIPART.fullmatch(request.content_type):
            raise InvalidRequest(
                "send this as multipart/form-data, with the boundary in the Content-Type header"
            )
        _target(endpoint, request)  # refuses what cannot be asked
        model = request.values.get("model", request.json.get("model"))
        if model is not None and not isinstance(model, str):
            raise InvalidField("model", "model must be a string")
        stream = request.json.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise InvalidField("stream", "stream must be true or false")
        return Intent(
            model=model,
            needs=endpoint.needs,
            stream=bool(stream) and endpoint.streams,
            slots=answers_of(request.json) if endpoint.streams else endpoint.slots,
            tasks=tasks_of(endpoint.upstream or endpoint.path, request.json),
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
        if (slot := request.values.get("id_slot")) and lease.slots is not None and int(slot) >= lease.slots:
            raise NotFound(f"the instance has {lease.slots} slots, and {slot} is none of them")
        result = yield Call(
            endpoint.method,
            _target(endpoint, request),
            request.raw,
            mode="relay" if intent.stream else "plain",
            rename=_rename(request, model),
            content_type=request.content_type if endpoint.body == "raw" else b"application/json",
            compressed=endpoint.asset,
        )
        assert isinstance(result, Result)
        if result.relayed:
            return
        if result.status != 200:
            yield Reply(result.status, JSON_HEADERS, result.body)
        elif endpoint.asset:
            yield Reply(200, _asset_headers(_file(request), result), result.body)
        elif endpoint.text or (
            endpoint.body == "raw" and not result.content_type.startswith(b"application/json")
        ):
            yield Reply(200, _TEXT_HEADERS, result.body)
        else:
            body = without_paths(result.body) if endpoint.path in _TELLS_OF_FILES else result.body
            yield Reply(200, JSON_HEADERS, body)

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


def _target(endpoint: Endpoint, request: Request) -> str:
    """Path and query for the engine, of the table's words and of checked values alone."""
    if endpoint.asset:
        return "/" + _file(request) if _file(request) != "index.html" else "/"
    path = endpoint.upstream or endpoint.path
    if "{id_slot}" in path:
        slot = request.values["id_slot"]
        if not (slot.isascii() and slot.isdecimal() and len(slot) <= 4):
            raise NotFound("Not found")
        path = path.replace("{id_slot}", str(int(slot)))
    query = _query(endpoint, request.query)
    return f"{path}?{urlencode(query)}" if query else path


def _query(endpoint: Endpoint, given: bytes) -> dict[str, str]:
    if not endpoint.query or not given:
        return {}
    try:
        pairs = parse_qsl(given.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError:
        raise InvalidRequest("the query is not percent-encoded UTF-8 with at most 64 parameters") from None
    kept: dict[str, str] = {}
    for name, value in pairs:
        allowed = endpoint.query.get(name)
        if allowed is None:
            continue
        if name in kept or not allowed.fullmatch(value):
            raise InvalidField(
                name, f"{name} must be given once, as one of {allowed.pattern.replace('|', ', ')}"
            )
        kept[name] = value
    return kept


def _file(request: Request) -> str:
    """The file of the web page that is asked for."""
    return request.path[1:] or "index.html"


def _asset_headers(file: str, result: Result) -> Headers:
    kind = _TYPES.get(file.rpartition(".")[2], b"application/octet-stream")
    headers = [(b"content-type", kind), (b"cache-control", b"no-cache")]
    if result.encoding == b"gzip":
        headers.append((b"content-encoding", b"gzip"))
    return headers


def _rename(request: Request, model: ModelView) -> tuple[str, str] | None:
    """Answers name the model as the client's body did; the engine knows it by its own name."""
    name = request.json.get("model")
    return (model.name, name) if isinstance(name, str) and name and name != model.name else None
