"""llama-server's own endpoints: the closed list of what is passed through to an engine, each with its level.

Read by `native.py`. What is not listed here is LlamaMan's own 404, whatever the engine was started with. An
engine decodes percent-escapes before it routes, so it is asked for the literal paths below and never for a
client's bytes. Never listed: what runs programs or fetches files (`/tools`, `/cors-proxy`), what manages a
router's models (`/models/...`), other clients' answers (`/v1/stream...`, `/v1/chat/completions/control`) and
what a cloud's variables may name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llamaman.access import Access
from llamaman.limits import AUDIO_BODY, INFERENCE_BODY

Needs = Literal["chat", "completion", "embedding", "any"]

#: The path of an endpoint of a model that is named in the path.
UPSTREAM = "/upstream/{model}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of llama-server.

    :ivar upstream: the path that the engine is asked for; the same as ``path`` where it is empty.
    :ivar instance: whether instance ports serve it; a dialect with the same path comes first.
    :ivar by_model: whether the other ports serve it for the ``model`` that a body names. All of them serve
        everything below :data:`UPSTREAM`.
    :ivar slots: 0 for what llama-server answers beside its slots.
    :ivar text: the answer is plain text, not JSON.
    :ivar query: parameters that are passed on, and the values they may have.
    :ivar asset: a file of llama.cpp's own web page.
    """

    method: Literal["GET", "POST"]
    path: str
    upstream: str = ""
    access: Access = Access.INFERENCE
    needs: Needs = "any"
    body: Literal["json", "list", "raw", "none"] = "json"
    limit: int = INFERENCE_BODY
    instance: bool = True
    by_model: bool = False
    streams: bool = False
    slots: int = 1
    text: bool = False
    query: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    asset: bool = False


def _generates(path: str, upstream: str = "", needs: Needs = "completion", *, bare: bool = True) -> Endpoint:
    return Endpoint("POST", path, upstream, needs=needs, instance=bare, by_model=bare, streams=True)


def _computes(path: str, upstream: str = "", *, bare: bool = True) -> Endpoint:
    return Endpoint("POST", path, upstream, needs="embedding", instance=bare, by_model=bare)


def _counts(path: str, upstream: str = "", *, bare: bool = True) -> Endpoint:
    return Endpoint("POST", path, upstream, instance=bare, by_model=bare, slots=0)


def _transcribes(path: str, *, bare: bool) -> Endpoint:
    return Endpoint(
        "POST",
        path,
        "/v1/audio/transcriptions",
        needs="chat",
        body="raw",
        limit=AUDIO_BODY,
        instance=bare,
        streams=False,
    )


def _tells(
    path: str, access: Access = Access.INFERENCE, *, bare: bool = True, text: bool = False
) -> Endpoint:
    return Endpoint("GET", path, access=access, body="none", instance=bare, slots=0, text=text)


def _changes(
    path: str, query: Mapping[str, re.Pattern[str]] | None = None, body: Literal["json", "list"] = "json"
) -> Endpoint:
    return Endpoint("POST", path, access=Access.MANAGE, body=body, slots=0, query=query or {})


def _asset(path: str) -> Endpoint:
    return Endpoint("GET", path, access=Access.PUBLIC, body="none", slots=0, asset=True)


ENDPOINTS: tuple[Endpoint, ...] = (
    _generates("/completion"),
    _generates("/completions", "/completion"),
    _generates("/infill"),
    _generates("/chat/completions", "/v1/chat/completions", "chat"),
    _generates("/responses", "/v1/responses", "chat"),
    _generates("/v1/completions", bare=False),
    _generates("/v1/chat/completions", needs="chat", bare=False),
    _generates("/v1/responses", needs="chat", bare=False),
    _generates("/v1/messages", needs="chat", bare=False),
    _transcribes("/audio/transcriptions", bare=True),
    _transcribes("/v1/audio/transcriptions", bare=False),
    _computes("/embedding"),
    _computes("/embeddings"),
    _computes("/v1/embeddings", bare=False),
    _computes("/rerank"),
    _computes("/reranking", "/rerank"),
    _computes("/v1/rerank", "/rerank", bare=False),
    _computes("/v1/reranking", "/rerank", bare=False),
    _counts("/tokenize"),
    _counts("/detokenize"),
    _counts("/apply-template"),
    _counts("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"),
    _counts("/responses/input_tokens", "/v1/responses/input_tokens"),
    _counts("/v1/chat/completions/input_tokens", bare=False),
    _counts("/v1/responses/input_tokens", bare=False),
    _counts("/v1/messages/count_tokens", bare=False),
    _tells("/props"),
    _tells("/models"),
    _tells("/v1/models", bare=False),
    _tells("/health", bare=False),
    _tells("/v1/health", bare=False),
    Endpoint(
        "GET",
        "/slots",
        access=Access.VIEW,
        body="none",
        slots=0,
        query={"fail_on_no_slot": re.compile("[01]")},
    ),
    _tells("/metrics", Access.VIEW, text=True),
    _tells("/lora-adapters", Access.VIEW),
    _changes("/lora-adapters", body="list"),
    _changes("/props"),
    _changes("/slots/{id_slot}", {"action": re.compile("save|restore|erase")}),
)

#: Files of llama.cpp's own web page, which instance ports serve while the setting ``instances.web_ui`` is on; like
#: the engine's own, to everybody: a browser has no key to send with them. Its service worker (`sw.js`) is left out,
#: because it would stay in a browser for whatever has this port next.
ASSETS: tuple[Endpoint, ...] = tuple(
    _asset(path)
    for path in (
        "/",
        "/index.html",
        "/loading.html",
        "/bundle.js",
        "/bundle.css",
        "/favicon.ico",
        "/favicon.svg",
        "/favicon-dark.ico",
        "/favicon-dark.svg",
        "/logo.svg",
        "/manifest.webmanifest",
        "/build.json",
        "/version.json",
        "/_app/{file...}",
    )
)
