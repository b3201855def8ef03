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
