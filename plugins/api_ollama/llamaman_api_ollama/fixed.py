"""Endpoints of Ollama's that are about ollama.com, and what is answered there: there is none behind this. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamaman import InferenceRoute, Reply
from llamaman_api_ollama import errors


def _reply(status: int, data: Mapping[str, Any]) -> Reply:
    return Reply(status, errors.JSON, json.dumps(data).encode())


_NO_ACCOUNT = _reply(401, {"error": "unauthorized", "signin_url": ""})
_NO_SEARCH = _reply(403, {"error": "ollama cloud is disabled: web search is unavailable"})

ANSWERS: Mapping[tuple[str, str], Reply] = {
    ("GET", "/api/status"): _reply(200, {"cloud": {"disabled": True, "source": "config"}}),
    ("GET", "/api/experimental/model-recommendations"): _reply(200, {"recommendations": []}),
    ("POST", "/api/experimental/web_search"): _NO_SEARCH,
    ("POST", "/api/experimental/web_fetch"): _NO_SEARCH,
    ("POST", "/api/me"): _NO_ACCOUNT,
    ("POST", "/api/signout"): _NO_ACCOUNT,
    ("DELETE", "/api/user/keys/{key}"): _NO_ACCOUNT,
}

#: On the management port ``/api/me`` is LlamaMan's own.
_ELSEWHERE = ("/api/me", "/api/signout", "/api/user/keys/{key}")

ROUTES = tuple(
    InferenceRoute(
        method,
        pattern,
        body="raw" if method == "POST" else "none",
        limit=1 << 16,
        surfaces=("proxy", "instance") if pattern in _ELSEWHERE else ("manage", "proxy", "instance"),
    )
    for method, pattern in ANSWERS
)
