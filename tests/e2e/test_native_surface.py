"""llama-server's own endpoints through the manager, with a real engine: on an instance's port, below ``/upstream``
and by the model of a body; with authentication on and off.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

import pytest

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import Manager
from llamaman.testing.wire import Answer, call

HELLO = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "temperature": 0}
WORDS = {"prompt": "a b", "max_tokens": 3, "n_predict": 3, "temperature": 0}
ASKED = {"input": "hi", "max_output_tokens": 3, "temperature": 0}
WRONG = {"error": "model 'wrong-model' is not loaded on this port"}

#: path -> (body, a member that a good answer has)
GENERATING: dict[str, tuple[dict[str, Any], str]] = {
    "/completion": (WORDS, "content"),
    "/completions": (WORDS, "content"),
    "/v1/completions": (WORDS, "choices"),
    "/chat/completions": (HELLO, "choices"),
    "/v1/chat/completions": (HELLO, "choices"),
    "/v1/responses": (ASKED, "output"),
}
BESIDE: dict[str, tuple[dict[str, Any], str]] = {
    "/tokenize": ({"content": "abc"}, "tokens"),
    "/detokenize": ({"tokens": [100, 101]}, "content"),
    "/apply-template": (HELLO, "prompt"),
}
#: Served on instance ports or by a dialect alone where they are not bare elsewhere.
V1 = {"/v1/completions", "/v1/chat/completions", "/v1/responses"}
OVERRIDES = {
    "proxy_sampling_override_enabled": True,
    "proxy_sampling_temperature": 0.0,
    "proxy_sampling_top_k": 7,
    "proxy_sampling_top_p": 0.5,
}


@dataclass(frozen=True)
class Door:
    """One of the ways to an instance. ``model`` goes into bodies."""

    port: int
    before: str
    model: str | None

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, key: str | None = None
    ) -> Answer:
        sent = {**body, "model": self.model} if body is not None and self.model else body
        return call(self.port, method, self.before + path, key=key, body=sent)


def doors(manager: Manager, instance: dict[str, Any]) -> dict[str, Door]:
    return {
        "instance": Door(instance["port"], "", None),
        "upstream": Door(manager.proxy_port, "/upstream/tiny", None),
        "bare": Door(manager.proxy_port, "", "tiny"),
    }


@pytest.fixture
def ready(manager: Manager) -> dict[str, Any]:
    return manager.launch("tiny", parallel=2)


def test_every_generating_endpoint_answers_at_every_door(manager: Manager, ready: dict[str, Any]) -> None:
    key = manager.inference_key
    for name, door in doors(manager, ready).items():
        for path, (body, member) in (GENERATING | BESIDE).items():
            answer = door.ask("POST", path, body, key=key)
            assert answer.status == 200, f"{path} at {name}: {answer.text}"
            assert member in answer.json(), f"{path} at {name}"
            assert set(map(str.lower, answer.headers)) <= ALLOWED, answer.headers
            assert door.ask("POST", path, body).status == 401, f"{path} at {name} without a key"


ALLOWED = {
    *("date", "server", "connection", "content-type", "content-length", "www-authenticate", "retry-after"),
    *("content-security-policy", "x-content-type-options", "cross-origin-opener-policy"),
}


def test_what_tells_of_others_or_changes_something_needs_more_than_inference(
    manager: Manager, ready: dict[str, Any]
) -> None:
    keys = {scope: manager.key(scope).secret for scope in ("view", "inference", "manage")}
    for name in ("instance", "upstream"):
        door = doors(manager, ready)[name]
        for path, kind in (("/slots", list), ("/lora-adapters", list)):
            told = door.ask("GET", path, key=keys["view"])
            assert (told.status, type(told.json())) == (200, kind), told.text
            assert door.ask("GET", path, key=keys["inference"]).status == 403
            assert door.ask("GET", path).status == 401
        assert "llamacpp:" in door.ask("GET", "/metrics", key=keys["view"]).text
        assert door.ask("GET", "/metrics", key=keys["inference"]).status == 403
        props = door.ask("GET", "/props", key=keys["inference"])
        assert props.json()["total_slots"] == 2
        for text in (props.text, door.ask("GET", "/models", key=keys["inference"]).text):
            assert str(manager.folder) not in text
            assert ".gguf" not in text
        for adapters, status in (([], 200), ([{"id": 0, "scale": 0.5}], 200), ({}, 400), ([1], 400)):
            set_to = call(
                door.port, "POST", door.before + "/lora-adapters", key=keys["manage"], body=adapters
            )
            assert set_to.status == status, f"{adapters} at {name}: {set_to.text}"
        assert door.ask("POST", "/lora-adapters", {}, key=keys["inference"]).status == 403
        erased = door.ask("POST", "/slots/0?action=erase&x=y", {}, key=keys["manage"])
        assert erased.status in (200, 400), erased.text  # as the engine allows
        assert door.ask("POST", "/slots/9?action=erase", {}, key=keys["manage"]).status == 404
        for path in ("/tools", "/cors-proxy", "/v1/stream/x", "/models/load", "/v1/chat/completions/control"):
            for method in ("GET", "POST"):
                assert (
                    door.ask(method, path, {} if method == "POST" else None, key=keys["manage"]).status == 404
                )


def test_without_authentication_inference_is_open_and_nothing_else(
    manager: Manager, ready: dict[str, Any]
) -> None:
    manager.setting(require_auth=False)
    for name, door in doors(manager, ready).items():
        assert door.ask("POST", "/completion", WORDS).status == 200, name
        assert door.ask("POST", "/tokenize", {"content": "a"}).status == 200, name
    for name in ("instance", "upstream"):
        door = doors(manager, ready)[name]
        assert door.ask("GET", "/props").status == 200
        for method, path in (
            ("GET", "/slots"),
            ("GET", "/metrics"),
            ("POST", "/props"),
            ("POST", "/slots/0"),
        ):
            assert door.ask(method, path, {} if method == "POST" else None).status == 401, path


def test_a_stream_of_the_engine_passes_through(manager: Manager, ready: dict[str, Any]) -> None:
    for name, door in doors(manager, ready).items():
        answer = door.ask("POST", "/completion", {**WORDS, "stream": True}, key=manager.inference_key)
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert events[-1]["stop"] is True, name
        assert not any("prompt_progress" in event for event in events)


def test_overrides_hold_on_every_generating_endpoint(manager: Manager) -> None:
    instance = manager.launch("tiny", parallel=1, **OVERRIDES)
    watcher = manager.key("view").secret
    body = {"temperature": 1.9, "top_k": 33, "top_p": 0.99}
    for name, door in doors(manager, instance).items():
        for path, (asked, _) in GENERATING.items():
            for stream in (False, True):
                sent = {**asked, **body, "stream": stream, "max_tokens": 2}
                assert door.ask("POST", path, sent, key=manager.inference_key).status == 200
                (slot,) = call(instance["port"], "GET", "/slots", key=watcher).json()
                used = {field: slot["params"][field] for field in body}
                assert used == {"temperature": 0.0, "top_k": 7, "top_p": 0.5}, f"{path} at {name}"


@pytest.mark.parametrize("auth", [True, False])
def test_another_models_name_is_404_awake_and_asleep_and_wakes_nothing(
    plain_manager: Manager, auth: bool
) -> None:
    manager = plain_manager
    manager.setting(require_auth=auth)
    instance = manager.launch("tiny")
    port, key = instance["port"], manager.inference_key if auth else None
    bodies = {path: body for path, (body, _) in (GENERATING | BESIDE).items()}
    bodies |= {"/v1/embeddings": {"input": "a"}, "/embedding": {"content": "a"}, "/infill": {}}
    for state, idle_timeout in (("healthy", 60), ("sleeping", 0.001)):
        manager.preset("tiny", idle_timeout_min=idle_timeout)
        manager.wait_status(instance["id"], state)
        for path, body in bodies.items():
            answer = call(port, "POST", path, key=key, body={**body, "model": "wrong-model"})
            assert (answer.status, answer.json()) == (404, WRONG), f"{path} while {state}"
    assert manager.instance(instance["id"])["status"] == "sleeping"
    for path in ("/props", "/models"):
        assert call(port, "GET", path, key=key).status == 503, "looking does not wake it either"
    assert manager.instance(instance["id"])["status"] == "sleeping"
    woken = call(port, "POST", "/tokenize", key=key, body={"content": "a", "model": "tin"})
    assert woken.status == 200
    assert manager.instance(instance["id"])["generation"] == 2


def test_embeddings_and_scores_by_model(plain_manager: Manager) -> None:
    manager = plain_manager
    write_tiny_model(manager.models / "mean.gguf", embedding=True)
    write_tiny_model(manager.models / "rank.gguf", metadata={"llama.pooling_type": 4})
    manager.manage("POST", "/api/models/rescan")
    key, port = manager.inference_key, manager.proxy_port

    def ask(path: str, body: dict[str, Any]) -> Any:
        answer = call(port, "POST", path, key=key, body=body)
        assert answer.status == 200, answer.text
        return answer.json()

    whole = ask("/v1/embeddings", {"model": "mean", "input": ["a", "b"]})["data"]
    assert len(whole[0]["embedding"]) == 64
    short = ask("/v1/embeddings", {"model": "mean", "input": "a", "dimensions": 8})["data"][0]["embedding"]
    assert len(short) == 8
    assert sum(value * value for value in short) == pytest.approx(1.0)
    assert isinstance(
        ask("/v1/embeddings", {"model": "mean", "input": "a", "encoding_format": "base64"})["data"][0][
            "embedding"
        ],
        str,
    )
    assert ask("/upstream/mean/embedding", {"content": "a"})[0]["embedding"]
    scored = {"model": "rank", "query": "a", "documents": ["b", "c"]}
    for path in ("/v1/rerank", "/rerank", "/upstream/rank/reranking"):
        assert len(ask(path, scored)["results"]) == 2
    refused = call(port, "POST", "/v1/embeddings", key=key, body={"model": "rank", "input": "a"})
    assert (refused.status, "reranker" in refused.text) == (400, True)
    refused = call(port, "POST", "/v1/rerank", key=key, body={**scored, "model": "mean"})
    assert refused.status == 400


def test_a_model_for_embeddings_generates_nothing_and_is_not_started_for_it(plain_manager: Manager) -> None:
    manager = plain_manager
    write_tiny_model(manager.models / "mean.gguf", embedding=True)
    manager.manage("POST", "/api/models/rescan")
    bodies = {path: body for path, (body, _) in GENERATING.items()}
    bodies |= {"/v1/messages": HELLO, "/upstream/mean/completion": WORDS, "/api/chat": HELLO}
    for path, body in bodies.items():
        answer = call(
            manager.proxy_port, "POST", path, key=manager.inference_key, body={**body, "model": "mean"}
        )
        assert answer.status == 400, f"{path}: {answer.text}"
    assert manager.instances() == []


def test_a_body_is_kept_when_a_client_offers_another_protocol(plain_manager: Manager) -> None:
    manager = plain_manager
    manager.launch("tiny")
    connection = http.client.HTTPConnection("127.0.0.1", manager.proxy_port, timeout=30)
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAA"}
    key = {"Authorization": f"Bearer {manager.inference_key}", "Content-Type": "application/json"}
    body = json.dumps({"model": "tiny", "content": "abc"})
    try:
        for _ in range(2):  # the connection stays in step
            connection.request("POST", "/tokenize", body, {**key, **offer})
            answer = connection.getresponse()
            assert (answer.status, len(json.loads(answer.read())["tokens"])) == (200, 3)
    finally:
        connection.close()
