"""Every route that is served, of every plugin: which of them pages of other origins may ask, and how.

The browser's side of it is in ``browser/test_cors_in_a_browser.py``; here no route is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llamaman.testing.manager import CHAT, Manager
from llamaman.testing.wire import Answer, call

EVIL = "https://evil.example"
#: What the browser builds of OpenAI's and Anthropic's clients send, and Ollama's.
ASKED = (
    "accept, anthropic-beta, anthropic-dangerous-direct-browser-access, anthropic-version, authorization, "
    "content-type, openai-organization, x-api-key, x-stainless-arch, x-stainless-lang, x-stainless-os, "
    "x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, x-stainless-timeout"
)
SHARED = {("POST", CHAT), ("POST", "/v1/messages"), ("POST", "/v1/embeddings"), ("GET", "/v1/models")}


@pytest.fixture
def ports(plain_manager: Manager) -> dict[str, int]:
    """The port of each surface."""
    instance = plain_manager.launch("tiny")
    return {"manage": plain_manager.port, "proxy": plain_manager.proxy_port, "instance": instance["port"]}


@pytest.fixture
def open_door(plain_manager: Manager) -> Iterator[None]:
    """Inference without a key."""
    plain_manager.setting(require_auth=False)
    yield
    plain_manager.setting(require_auth=True)


def rows(manager: Manager, *, shared: bool) -> list[tuple[str, str, str]]:
    """(surface, method, a path of the route) of what pages may ask, or of what they may not."""
    found = manager.manage("GET", "/api/routes")
    return sorted(
        (row["surface"], row["method"], row["path"].replace("{", "").replace("}", ""))
        for row in found
        if (row["level"] == "inference") is shared and row["surface"] != "admin"
    )


def preflight(port: int, method: str, path: str, names: str, origin: str = EVIL) -> Answer:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    return call(port, "OPTIONS", path, headers={**headers, "Access-Control-Request-Headers": names})


def counters(manager: Manager) -> list[Any]:
    return [(each["id"], each["generation"], each["stats"]["total_requests"]) for each in manager.instances()]


def allowing(answer: Answer) -> list[str]:
    return [name for name in answer.headers if name.startswith("access-control-")]


def test_every_inference_route_can_be_asked_from_any_page_with_a_key(
    plain_manager: Manager, ports: dict[str, int]
) -> None:
    found = rows(plain_manager, shared=True)
    assert {row[1:] for row in found} >= SHARED
    for surface, method, path in found:
        answer = preflight(ports[surface], method, path, ASKED)
        assert answer.status == 204, (surface, method, path)
        assert answer.headers["access-control-allow-origin"] == EVIL
        assert answer.headers["access-control-allow-headers"] == ASKED
        assert method in answer.headers["access-control-allow-methods"].split(", ")
        assert answer.headers["access-control-max-age"] == "600"
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers


def test_no_other_route_says_anything_to_a_page(plain_manager: Manager, ports: dict[str, int]) -> None:
    shared = {(surface, path) for surface, _, path in rows(plain_manager, shared=True)}
    key = plain_manager.key("admin").secret
    for surface, method, path in rows(plain_manager, shared=False):
        if (surface, path) not in shared:
            assert allowing(preflight(ports[surface], method, path, ASKED)) == [], (surface, method, path)
        if method == "GET" and "feed" not in path and "stream" not in path and "/events" not in path:
            answer = call(ports[surface], method, path, headers={"Origin": EVIL}, key=key)
            assert allowing(answer) == [], (surface, method, path)


@pytest.mark.parametrize("origin", [EVIL, "null"])
def test_without_keys_a_foreign_page_gets_403_from_every_inference_route(
    plain_manager: Manager, ports: dict[str, int], open_door: None, origin: str
) -> None:
    before = counters(plain_manager)
    for surface, method, path in rows(plain_manager, shared=True):
        refused = preflight(ports[surface], method, path, "content-type, anthropic-version", origin)
        assert (refused.status, allowing(refused)) == (403, []), (surface, method, path)
        for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
            body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
            answer = call(
                ports[surface],
                method,
                path,
                body=body if method == "POST" else None,
                headers={"Origin": origin, "Content-Type": kind},
            )
            assert (answer.status, allowing(answer)) == (403, []), (surface, method, path, kind)
            assert "LLAMAMAN_CORS_ORIGINS" in answer.text
    assert counters(plain_manager) == before


def test_a_rebound_name_gets_421_from_every_route_without_a_key(
    plain_manager: Manager, ports: dict[str, int], open_door: None
) -> None:
    before = counters(plain_manager)
    for shared in (True, False):
        for surface, method, path in rows(plain_manager, shared=shared):
            host = f"evil.example:{ports[surface]}"
            body = {} if method in ("POST", "PUT", "PATCH") else None
            answer = call(ports[surface], method, path, body=body, headers={"Host": host})
            assert answer.status == 421, (surface, method, path)
            assert "LLAMAMAN_ALLOWED_HOSTS=evil.example" in answer.text
    assert counters(plain_manager) == before
