"""What is answered without a model."""

from __future__ import annotations

from typing import Any

import pytest
from ollama_script import (
    DIALECT,
    ROUTES,
    reply_of,
)

from llamaman.gateway.dialect import Reply
from llamaman.testing.dialect_script import request_for


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/api/status", 200, {"cloud": {"disabled": True, "source": "config"}}),
        ("GET", "/api/experimental/model-recommendations", 200, {"recommendations": []}),
        (
            "POST",
            "/api/experimental/web_search",
            403,
            {"error": "ollama cloud is disabled: web search is unavailable"},
        ),
        (
            "POST",
            "/api/experimental/web_fetch",
            403,
            {"error": "ollama cloud is disabled: web search is unavailable"},
        ),
        ("POST", "/api/me", 401, {"error": "unauthorized", "signin_url": ""}),
        ("POST", "/api/signout", 401, {"error": "unauthorized", "signin_url": ""}),
        ("DELETE", "/api/user/keys/{key}", 401, {"error": "unauthorized", "signin_url": ""}),
    ],
)
def test_there_is_no_cloud_behind_it(method: str, path: str, status: int, body: dict[str, Any]) -> None:
    route = ROUTES[method, path]
    reply = DIALECT.open(request_for(route, {}, {"key": "k"} if "{" in path else {}))
    assert isinstance(reply, Reply)
    assert reply_of(reply, status) == body
    if status == 401:
        assert route.surfaces == ("proxy", "instance"), "management has /api/me of its own"


@pytest.mark.parametrize(
    ("method", "path", "status", "what"),
    [
        ("POST", "/api/pull", 501, "pull models"),
        ("POST", "/api/push", 501, "push models"),
        ("POST", "/api/create", 501, "create models"),
        ("POST", "/api/copy", 501, "copy models"),
        ("DELETE", "/api/delete", 501, "delete models"),
        ("POST", "/api/blobs/{digest}", 501, "take files"),
        ("GET", "/api/blobs/{digest}", 404, "take files"),
    ],
)
def test_what_is_not_there_yet_says_so_and_what_to_do(method: str, path: str, status: int, what: str) -> None:
    route = ROUTES[method, path]
    reply = DIALECT.open(request_for(route, {}, {"digest": "sha256:a"} if "{" in path else {}))
    assert isinstance(reply, Reply)
    said = reply_of(reply, status)
    assert set(said) == {"error"}
    assert said["error"].startswith(f"LlamaMan does not {what} through Ollama's API yet; ")
    assert "MODELS_DIR" in said["error"] or "preset" in said["error"]
    assert "not found" not in said["error"], "by these words clients know a model that is not there"
    assert route.body == "none", "an upload of gigabytes is not read for this"
