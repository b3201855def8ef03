"""Pages of other origins and inference: with a key they may, without one only those that the rule names.

``evil.example`` leads here by name, as a page does whose DNS answer changed after it was loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaman.testing.manager import CHAT, ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import call

pytestmark = pytest.mark.real("chromium")

#: What a page got: the status, or the browser's refusal to show it (an opaque answer is one).
FETCH = """async ([url, options]) => {
    try {
        const answer = await fetch(url, options);
        return {status: answer.status, text: await answer.text()};
    } catch (error) { return {status: null, text: String(error)}; }
}"""
#: The same for a stream, of which the page reads what has come first, then all or no more.
STREAM = """async ([url, options, whole]) => {
    const answer = await fetch(url, options);
    const reader = answer.body.getReader(), decoder = new TextDecoder();
    let text = decoder.decode((await reader.read()).value, {stream: true});
    if (!whole) await reader.cancel();
    for (;;) {
        const {done, value} = await reader.read();
        if (done) return {status: answer.status, text};
        text += decoder.decode(value, {stream: true});
    }
}"""
CHAT_BODY = (
    '{"model": "tiny", "max_tokens": 8, "stream": %s, "messages": [{"role": "user", "content": "hi"}]}'
)


@pytest.fixture
def foreign(visit: Any, hostile: Any) -> Any:
    """A page of somebody else's site."""
    page = visit.page()
    page.goto(f"http://evil.example:{hostile.port}/")
    return page


@pytest.fixture
def open_door(manager: Manager) -> Iterator[None]:
    """Inference without a key."""
    manager.setting(require_auth=False)
    yield
    manager.setting(require_auth=True)


def chat(
    model: str = "tiny",
    *,
    key: str = "",
    stream: bool = False,
    kind: str = "application/json",
    max_tokens: int = 8,
) -> dict[str, Any]:
    """What a page passes to fetch for a chat."""
    headers = {"Content-Type": kind}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": model, "max_tokens": max_tokens, "stream": stream, "messages": messages}
    return {"method": "POST", "headers": headers, "body": json.dumps(body)}


def counters(manager: Manager) -> list[tuple[str, str, int, int]]:
    """What a request that came through would have changed: instances, their loads and their requests."""
    return [
        (each["id"], each["status"], each["generation"], each["stats"]["total_requests"])
        for each in manager.instances()
    ]


def test_a_page_with_a_key_lists_models_and_streams_a_chat_from_any_origin(
    foreign: Any, manager: Manager, slow_model: Path
) -> None:
    shutil.copy(slow_model, manager.models / "slow.gguf")
    manager.manage("POST", "/api/models/rescan")
    manager.launch("tiny")
    manager.launch("slow", **ENDLESS)
    key = manager.inference_key
    for port in (manager.proxy_port, manager.port):
        base = f"http://127.0.0.1:{port}"
        listed = foreign.evaluate(
            FETCH, [f"{base}/v1/models", {"headers": {"Authorization": f"Bearer {key}"}}]
        )
        assert listed["status"] == 200
        assert "tiny" in listed["text"]
        chatted = foreign.evaluate(STREAM, [f"{base}{CHAT}", chat(key=key, stream=True), True])
        assert chatted["status"] == 200
        assert chatted["text"].rstrip().endswith("[DONE]")
        long = chat("slow", key=key, stream=True, max_tokens=FOR_EVER)
        begun = foreign.evaluate(STREAM, [f"{base}{CHAT}", long, False])
        assert begun["text"].startswith("data: ")
        assert "[DONE]" not in begun["text"], "it came as it was written"


#: How the browser builds of other clients ask: path, headers besides the key's, body, and how a stream ends.
ANTHROPIC = {
    "anthropic-version": "2023-06-01",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
}
STREAMS = [
    ("/v1/messages", "x-api-key", ANTHROPIC, {"max_tokens": 8}, "message_stop"),
    (
        CHAT,
        "Authorization",
        {"x-stainless-os": "Linux", "openai-organization": "org"},
        {"max_tokens": 8},
        "[DONE]",
    ),
    ("/api/chat", "Authorization", {}, {"options": {"num_predict": 8}}, '"done":true'),
]


@pytest.mark.parametrize(("path", "key_header", "headers", "fields", "end"), STREAMS)
def test_the_clients_of_each_api_stream_from_a_page_with_their_own_headers(
    foreign: Any,
    manager: Manager,
    path: str,
    key_header: str,
    headers: dict[str, str],
    fields: dict[str, Any],
    end: str,
) -> None:
    if not any(row["path"] == path for row in manager.manage("GET", "/api/routes")):
        pytest.skip(f"no installed plugin serves {path}")
    running = [each for each in manager.instances() if each["status"] == "healthy"]
    instance = next((each for each in running if each["model_name"] == "tiny"), None) or manager.launch(
        "tiny"
    )
    secret = manager.inference_key if key_header == "x-api-key" else f"Bearer {manager.inference_key}"
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hello"}], **fields}
    told = {
        "method": "POST",
        "headers": {"Content-Type": "application/json", key_header: secret, **headers},
        "body": json.dumps(body),
    }
    for port in (manager.proxy_port, manager.port, instance["port"]):
        got = foreign.evaluate(STREAM, [f"http://127.0.0.1:{port}{path}", told, True])
        assert got["status"] == 200
        assert end in got["text"].replace(": ", ":").rstrip()[-200:]


def test_a_page_of_another_origin_reads_nothing_of_management_even_with_a_key(
    foreign: Any, manager: Manager
) -> None:
    key = manager.key("admin").secret
    for path in ("/api/instances", "/api/api-keys", "/api/settings"):
        asked = foreign.evaluate(
            FETCH, [f"http://127.0.0.1:{manager.port}{path}", {"headers": {"Authorization": f"Bearer {key}"}}]
        )
        assert asked["status"] is None, path


def test_without_keys_a_foreign_page_neither_loads_a_model_nor_asks_one(
    foreign: Any, manager: Manager, open_door: None
) -> None:
    manager.clear()
    manager.preset("tiny")
    for loaded in (False, True):
        if loaded:
            manager.launch("tiny")
        before = counters(manager)
        for port in (manager.proxy_port, manager.port):
            url = f"http://127.0.0.1:{port}"
            assert foreign.evaluate(FETCH, [f"{url}{CHAT}", chat()])["status"] is None
            plain = {**chat(kind="text/plain"), "mode": "no-cors"}
            foreign.evaluate(FETCH, [f"{url}{CHAT}", plain])
            assert foreign.evaluate(FETCH, [f"{url}/v1/models", {}])["status"] is None
            with foreign.expect_navigation() as sent:
                foreign.evaluate(
                    """url => {
                        const form = document.createElement('form');
                        Object.assign(form, {method: 'POST', action: url, enctype: 'text/plain'});
                        form.innerHTML = '<input name=\\'{"model":"tiny","prompt":"\\' value=\\'"}\\'>';
                        document.body.append(form);
                        form.submit();
                    }""",
                    f"{url}/v1/completions",
                )
            assert sent.value.status == 403
            foreign.go_back()
        assert counters(manager) == before


@pytest.mark.parametrize("origin", ["http://evil.example", "https://evil.example:8443", "null"])
def test_the_refusal_is_a_403_that_says_what_to_do(manager: Manager, open_door: None, origin: str) -> None:
    for port in (manager.proxy_port, manager.port):
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("OPTIONS", CHAT)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = call(port, method, path, headers=headers, body={} if method == "POST" else None)
            assert answer.status == 403, (port, method, path)
            assert "LLAMAMAN_CORS_ORIGINS" in answer.error
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080", "tauri://localhost"])
def test_pages_of_this_machine_and_apps_may_ask_without_a_key(
    manager: Manager, open_door: None, origin: str
) -> None:
    answer = call(manager.proxy_port, "GET", "/v1/models", headers={"Origin": origin})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_whose_name_was_rebound_to_us_gets_421_everywhere(
    visit: Any, manager: Manager, open_door: None
) -> None:
    rows = manager.manage("GET", "/api/routes")
    public = sorted({(row["method"], row["path"]) for row in rows if row["level"] == "public"})
    assert ("GET", "/health") in public
    assert ("POST", "/login") in public
    inference = [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/api/instances"), ("GET", "/")]
    before = counters(manager)
    for port in (manager.port, manager.proxy_port):
        base = f"http://evil.example:{port}"
        page = visit.page()
        assert page.goto(f"{base}/health").status == 421
        for method, path in (*public, *inference):
            options = {"method": method} if method == "GET" else {"method": method, "body": "{}"}
            answer = page.evaluate(FETCH, [base + path.replace("{code}", "x"), options])
            assert answer["status"] == 421, (port, method, path)
            assert "LLAMAMAN_ALLOWED_HOSTS" in answer["text"]
            assert "evil.example" in answer["text"], "the value to paste"
    assert counters(manager) == before


@pytest.mark.parametrize("name", ["127.0.0.1", "llamaman", "nas.lan", "[::1]", "box.local", "app.localhost"])
def test_names_of_a_private_network_work_without_being_listed(
    manager: Manager, open_door: None, name: str
) -> None:
    for port in (manager.port, manager.proxy_port):
        for host in (name, f"{name}:{port}"):
            assert call(port, "GET", "/v1/models", headers={"Host": host}).status == 200, host
            assert call(port, "GET", "/health", headers={"Host": host}).status == 200, host


def test_a_valid_key_makes_any_name_right(manager: Manager) -> None:
    headers = {"Host": "llm.example.com"}
    key = manager.inference_key
    assert call(manager.proxy_port, "GET", "/v1/models", headers=headers, key=key).status == 200
    assert call(manager.proxy_port, "GET", "/v1/models", headers=headers, key="llm-wrong").status in (
        401,
        421,
    )
    assert call(manager.proxy_port, "GET", "/v1/models", headers=headers).status == 421
