"""From a launch to an answer, on every port; and what a launch that is refused leaves behind: nothing."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import Manager
from llamaman.testing.wire import call, refuses

#: The launch body of the feature specification, except for path and port.
DOCUMENTED_BODY: dict[str, Any] = {
    "n_gpu_layers": -1,
    "ctx_size": 4096,
    "threads": None,
    "memory_limit": None,
    "parallel": None,
    "extra_args": "--flash-attn",
    "gpu_devices": "",
    "idle_timeout_min": 0,
    "max_concurrent": 0,
    "max_queue_depth": 200,
    "share_queue": False,
    "proxy_sampling_override_enabled": False,
    "proxy_sampling_temperature": 0.8,
    "proxy_sampling_top_k": 40,
    "proxy_sampling_top_p": 0.95,
    "proxy_sampling_presence_penalty": 0.0,
    "proxy_sampling_repeat_penalty": 0.0,
}


def nothing_is_left(manager: Manager) -> bool:
    return (
        manager.instances() == []
        and not manager.engines()
        and all(refuses(port) for port in manager.public_ports)
        and manager.manage("GET", "/api/next-port")["port"] == manager.public_ports[0]
    )


def test_a_launched_model_answers_by_name_and_on_its_own_port(manager: Manager) -> None:
    instance = manager.launch("tiny")
    assert instance["state"] == "ready"
    assert instance["slots"] == 1
    assert instance["context_length"] == 4096
    assert instance["pid"] in manager.engines(instance["id"])
    for port in (manager.proxy_port, manager.port, instance["port"]):
        answer = manager.chat("tiny", port=port, max_tokens=5)
        assert answer.status == 200, answer.text
        body = answer.json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert len(body["choices"][0]["message"]["content"]) == 5, "one byte is one token"
        assert body["usage"]["completion_tokens"] == 5
    assert manager.chat(None, port=instance["port"]).status == 200, "an instance port needs no model name"
    assert manager.instance(instance["id"])["stats"]["total_requests"] == 4


def test_a_stream_carries_the_same_tokens_as_the_whole_answer(manager: Manager) -> None:
    manager.launch("tiny")
    same = {"seed": 7, "temperature": 0, "max_tokens": 12, "prompt": "count"}
    whole = manager.chat("tiny", **same).json()["choices"][0]["message"]["content"]
    with manager.ask("tiny", stream=True, **same) as request:
        assert request.begun.getheader("content-type", "").startswith("text/event-stream")
        *events, last = request.events()
    assert last == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(pieces) == whole


def test_completions_and_embeddings_answer_too(manager: Manager) -> None:
    write_tiny_model(manager.models / "embed.gguf", embedding=True)
    manager.manage("POST", "/api/models/rescan")
    manager.launch("tiny")
    manager.launch("embed", embedding_model=True)
    text = manager.chat("tiny", path="/v1/completions", max_tokens=4).json()["choices"][0]["text"]
    assert len(text) == 4
    answer = call(
        manager.proxy_port,
        "POST",
        "/v1/embeddings",
        key=manager.inference_key,
        body={"model": "embed", "input": "llama"},
    )
    assert answer.status == 200, answer.text
    assert len(answer.json()["data"][0]["embedding"]) == 64
    wrong = manager.chat("embed")
    assert wrong.status == 400
    assert "embedding model" in wrong.error


def test_model_lists_and_answers_name_models_as_the_client_did(plain_manager: Manager) -> None:
    manager = plain_manager
    manager.launch("tiny")
    listed = call(manager.proxy_port, "GET", "/v1/models", key=manager.inference_key).json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    for name in ("tiny", "TINY", "tiny:latest"):
        answer = manager.chat(name)
        assert answer.status == 200, answer.text
        assert answer.json()["model"] == name
    unknown = manager.chat("no-such-model")
    assert unknown.status == 404
    assert unknown.error == "model 'no-such-model' not found"


def test_the_documented_launch_body_succeeds_verbatim(manager: Manager) -> None:
    body = {
        "model_path": str(manager.models / "tiny.gguf"),
        "port": manager.public_ports[3],
        **DOCUMENTED_BODY,
    }
    made = manager.manage("POST", "/api/instances", body)
    instance = manager.wait_status(made["id"], "healthy")
    assert instance["port"] == manager.public_ports[3]
    assert manager.chat("tiny", port=instance["port"]).status == 200


def test_a_launch_over_http_needs_a_key_that_may_manage(plain_manager: Manager) -> None:
    manager = plain_manager
    body = {"model_path": str(manager.models / "tiny.gguf"), "threads": 1}
    assert manager.http("POST", "/api/instances", body).status == 401
    assert manager.http("POST", "/api/instances", body, key=manager.inference_key).status == 403
    assert nothing_is_left(manager)
    key = manager.key("manage")
    made = manager.http("POST", "/api/instances", body, key=key.secret)
    assert made.status == 201
    manager.wait_status(made.json()["id"], "healthy")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_path": "/nowhere.gguf"}, "model_path"),
        ({"model_path": None}, "model_path"),
        ({"ctx_size": "many"}, "ctx_size"),
        ({"ctx_size": -5}, "ctx_size"),
        ({"port": 22}, "port"),
        ({"port": "abc"}, "port"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"extra_args": "--host 0.0.0.0"}, "--host"),
        ({"extra_args": "'unbalanced"}, "extra_args"),
        ({"engine": "no-such-engine"}, "engine"),
        ({"spec_enabled": True}, "spec_enabled"),
        ({"proxy_sampling_temperature": float("nan")}, "NaN"),
        ({"proxy_sampling_temperature": 3.5e300}, "proxy_sampling_temperature"),
        ({"threads": True}, "threads"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_refused_launch_names_the_field_and_leaves_nothing(
    plain_manager: Manager, change: dict[str, Any], field: str
) -> None:
    body = {"model_path": str(plain_manager.models / "tiny.gguf"), "threads": 1, **change}
    answer = plain_manager.admin("POST", "/api/instances", body)
    assert answer.status == 400, answer.text
    assert field in answer.error
    assert nothing_is_left(plain_manager)


@pytest.mark.parametrize("body", [b"{", b"[1]", b"null", b'"text"', b"\xff\xfe", b""])
def test_a_body_that_is_no_object_is_refused(plain_manager: Manager, body: bytes) -> None:
    answer = call(
        plain_manager.admin_socket,
        "POST",
        "/api/instances",
        body=body,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status == 400, answer.text
    assert answer.error
    assert nothing_is_left(plain_manager)


def test_another_content_type_is_refused(plain_manager: Manager) -> None:
    body = json.dumps({"model_path": str(plain_manager.models / "tiny.gguf")}).encode()
    answer = call(
        plain_manager.admin_socket,
        "POST",
        "/api/instances",
        body=body,
        headers={"Content-Type": "text/plain"},
    )
    assert answer.status == 415, answer.text
    assert nothing_is_left(plain_manager)


def test_a_port_that_another_program_holds_is_a_conflict_and_leaves_nothing(plain_manager: Manager) -> None:
    manager = plain_manager
    taken = manager.public_ports[2]
    body = {"model_path": str(manager.models / "tiny.gguf"), "threads": 1, "port": taken}
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        other.listen()
        answer = manager.admin("POST", "/api/instances", body)
    assert answer.status == 409, answer.text
    assert str(taken) in answer.error
    assert nothing_is_left(manager)
    first = manager.launch("tiny", port=taken)
    assert first["port"] == taken
    again = manager.admin("POST", "/api/instances", body)
    assert (again.status, again.error) == (409, f"Port {taken} is already in use")
    assert len(manager.instances()) == 1


def test_a_launch_without_a_free_port_is_a_conflict(embedded: object, new_manager: Any) -> None:
    manager = new_manager(instance_ports=1)
    manager.launch("tiny")
    answer = manager.admin("POST", "/api/instances", {"model_path": str(manager.models / "tiny.gguf")})
    assert answer.status == 409
    assert answer.error.startswith("No ports available")
    assert len(manager.instances()) == 1
    assert manager.admin("GET", "/api/next-port").status == 409


@contextmanager
def no_more_bytes_on_disk(pid: int) -> Iterator[None]:
    """The process can write to no file, as on a full disk."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_launch_that_cannot_be_stored_leaves_nothing(plain_manager: Manager) -> None:
    manager = plain_manager
    body = {"model_path": str(manager.models / "tiny.gguf"), "threads": 1}
    with no_more_bytes_on_disk(manager.running.pid):
        answer = manager.admin("POST", "/api/instances", body)
    assert answer.status in (503, 507), answer.text
    assert answer.error
    assert nothing_is_left(manager)
    again = manager.until(lambda: _accepted(manager, body), "a launch once the disk can be written again")
    manager.wait_status(again["id"], "healthy")


def test_an_engine_that_cannot_be_started_leaves_no_process_and_says_why(
    new_manager: Any, tmp_path: Path
) -> None:
    script = tmp_path / "llama-server"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    manager = new_manager(binary=script)
    made = manager.launch("tiny", wait=None)
    failed = manager.until(lambda: _failed(manager, made["id"]), "the failure")
    assert "could not be started" in failed["reason"]
    assert not manager.engines()
    assert all(refuses(port) for port in (*manager.public_ports, *manager.internal_ports))


def _accepted(manager: Manager, body: dict[str, Any]) -> dict[str, Any] | None:
    answer = manager.admin("POST", "/api/instances", body)
    return answer.json() if answer.status == 201 else None


def _failed(manager: Manager, instance_id: str) -> dict[str, Any] | None:
    seen = manager.instance(instance_id)
    return seen if seen["status"] == "failed" else None
