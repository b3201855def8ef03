"""Endpoints of Ollama's that have one answer, whatever is asked. Pure.

Those about ollama.com say that there is none behind this. Those that manage models say that nothing is managed
through them yet, to everybody who may use a model: the words help, and nothing is done.
"""

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


def _not_yet(what: str, instead: str, status: int = 501) -> Reply:
    return _reply(status, {"error": f"LlamaMan does not {what} through Ollama's API yet; {instead}"})


_FOLDER = "its models folder (MODELS_DIR)"
_NO_FILES = ("take files", f"put GGUF files into {_FOLDER}")

ANSWERS: Mapping[tuple[str, str], Reply] = {
    ("GET", "/api/status"): _reply(200, {"cloud": {"disabled": True, "source": "config"}}),
    ("GET", "/api/experimental/model-recommendations"): _reply(200, {"recommendations": []}),
    ("POST", "/api/experimental/web_search"): _NO_SEARCH,
    ("POST", "/api/experimental/web_fetch"): _NO_SEARCH,
    ("POST", "/api/me"): _NO_ACCOUNT,
    ("POST", "/api/signout"): _NO_ACCOUNT,
    ("DELETE", "/api/user/keys/{key}"): _NO_ACCOUNT,
    ("POST", "/api/pull"): _not_yet("pull models", f"put their GGUF files into {_FOLDER}"),
    ("POST", "/api/push"): _not_yet("push models", f"take their files from {_FOLDER}"),
    ("POST", "/api/create"): _not_yet(
        "create models", f"put a GGUF file into {_FOLDER} and save a preset for it"
    ),
    ("POST", "/api/copy"): _not_yet("copy models", "give a model further names in its preset (aliases)"),
    ("DELETE", "/api/delete"): _not_yet("delete models", f"remove their files from {_FOLDER}"),
    # 404 asks a client to send the file, and only what answers that is shown to people.
    ("GET", "/api/blobs/{digest}"): _not_yet(*_NO_FILES, status=404),
    ("POST", "/api/blobs/{digest}"): _not_yet(*_NO_FILES),
}

#: Also on the management port, where ``/api/me`` is LlamaMan's own.
_EVERYWHERE = ("/api/status", "/api/experimental/")

ROUTES = tuple(
    InferenceRoute(
        method,
        pattern,
        body="none",
        surfaces=("manage", "proxy", "instance")
        if pattern.startswith(_EVERYWHERE)
        else ("proxy", "instance"),
    )
    for method, pattern in ANSWERS
)
