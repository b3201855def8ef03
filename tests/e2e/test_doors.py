"""Who is let in where: require_auth on and off, keys revoked in the middle of an answer, model limits of keys."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamaman.testing.manager import CHAT, ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Request, call

ENDED_S = 20.0
"""Generous: the promise is 1 s, and the figure is noted."""


def test_instance_ports_need_a_key_when_require_auth_is_on_and_are_open_when_off(manager: Manager) -> None:
    instance = manager.launch("tiny")
    ports = (instance["port"], manager.proxy_port)
    for port in ports:
        for key in ("", "llm-wrong"):
            refused = manager.chat("tiny", port=port, key=key)
            assert refused.status == 401
            assert refused.error == ("Invalid API key" if key else "API key required")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert manager.chat("tiny", port=port).status == 200
    manager.setting(require_auth=False)
    for port in ports:
        assert manager.chat("tiny", port=port, key="").status == 200
    manager.setting(require_auth=True)
    for port in ports:
        assert manager.chat("tiny", port=port, key="").status == 401


def test_opening_inference_opens_nothing_else(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    manager.setting(require_auth=False)
    for method, path in (
        ("GET", "/api/instances"),
        ("POST", "/api/instances"),
        ("DELETE", f"/api/instances/{instance['id']}"),
        ("GET", f"/api/instances/{instance['id']}/logs"),
        ("GET", f"/api/instances/{instance['id']}/logs/stream"),
        ("GET", "/api/settings"),
        ("POST", "/api/settings"),
        ("GET", "/api/api-keys"),
        ("GET", "/api/presets"),
    ):
        assert manager.http(method, path, {} if method == "POST" else None).status == 401, path
    for method, path in (
        ("POST", "/props"),
        ("POST", "/lora-adapters"),
        ("GET", "/slots"),
        ("GET", "/metrics"),
    ):
        answer = call(instance["port"], method, path, body={} if method == "POST" else None)
        assert answer.status == 401, path
    assert manager.instance(instance["id"])["status"] == "healthy"


def test_the_engine_itself_serves_nobody_without_its_own_key(manager: Manager) -> None:
    instance = manager.launch("tiny")
    (environ,) = manager.engines(instance["id"]).values()
    host, _, port = environ["LLAMAMAN_ADDRESS"].rpartition(":")
    assert host == "127.0.0.1"
    for key in ("", manager.inference_key, manager.key("admin").secret):
        assert call(int(port), "POST", CHAT, key=key, body={"messages": []}).status == 401
    line = Path(f"/proc/{instance['pid']}/cmdline").read_text()
    assert environ["LLAMA_API_KEY"] not in line, "a secret in argv is seen by every user of the machine"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_key_revoked_in_the_middle_of_an_answer_ends_it(
    manager: Manager,
    slow: Callable[[Manager], str],
    measured: Callable[[str, float], None],
    stream: bool,
) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    key = manager.key("inference")
    with manager.ask("slow", stream=stream, max_tokens=FOR_EVER, key=key.secret) as request:
        manager.until(lambda: manager.busy_slots(instance["id"]), "the request to run")
        if stream:
            next(request.events())
        begun = time.monotonic()
        manager.revoke(key)
        if stream:
            *_, last = request.events()
            assert json.loads(last)["error"]["message"] == "Invalid API key"
        else:
            answer = request.answer()
            assert (answer.status, answer.error) == (401, "Invalid API key")
        took = time.monotonic() - begun
    measured("answer ended after the revocation", took)
    assert took < ENDED_S
    manager.until(lambda: manager.busy_slots(instance["id"]) == 0, "the slot")
    assert manager.chat("slow", key=key.secret).status == 401


def test_a_revoked_key_ends_its_log_stream_and_no_other(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    mine, other = manager.key("manage"), manager.key("manage")
    path = f"/api/instances/{instance['id']}/logs/stream"
    with (
        Request(manager.port, "GET", path, key=mine.secret) as ended,
        Request(manager.port, "GET", path, key=other.secret) as going_on,
    ):
        assert "lines" in json.loads(next(ended.events()))
        events = going_on.events()
        next(events)
        manager.revoke(mine)
        begun = time.monotonic()
        assert list(ended.events()) == []
        assert time.monotonic() - begun < ENDED_S
        manager.chat("tiny")
        assert json.loads(next(events))["lines"], "the other one still gets new lines"


def test_a_key_for_one_model_serves_that_model_only(plain_manager: Manager) -> None:
    manager = plain_manager
    (manager.models / "other.gguf").write_bytes((manager.models / "tiny.gguf").read_bytes())
    manager.manage("POST", "/api/models/rescan")
    tiny, other = manager.launch("tiny"), manager.launch("other")
    key = manager.key("inference", models=["tiny"]).secret
    assert manager.chat("tiny", key=key).status == 200
    assert manager.chat("tiny", key=key, port=tiny["port"]).status == 200
    assert manager.chat("other", key=key).status == 403
    assert manager.chat(None, key=key, port=other["port"]).status == 403
    listed = call(manager.proxy_port, "GET", "/v1/models", key=key).json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]


def test_an_expired_key_is_no_key(plain_manager: Manager) -> None:
    manager = plain_manager
    manager.launch("tiny")
    end = int(time.time()) + 4
    key = manager.key("inference", expires=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))).secret
    status = manager.chat("tiny", key=key, max_tokens=1).status
    assert status == 200 or time.time() >= end, "until then it is one"
    manager.until(lambda: manager.chat("tiny", key=key, max_tokens=1).status == 401, "the key to expire")
    assert time.time() >= end


def test_the_admin_socket_is_for_the_owner_only(plain_manager: Manager) -> None:
    path = plain_manager.admin_socket
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert plain_manager.admin("GET", "/api/api-keys").status == 200


def test_management_is_not_served_on_inference_ports(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    key = manager.key("admin").secret
    for port in (manager.proxy_port, instance["port"]):
        for path in ("/api/instances", "/api/settings", "/api/api-keys", "/login"):
            assert call(port, "GET", path, key=key).status == 404, path


def test_no_secret_appears_in_the_managers_output_or_in_stored_files(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    key = manager.key("manage")
    manager.chat("tiny", key=key.secret)
    (environ,) = manager.engines(instance["id"]).values()
    secrets = [key.secret, manager.inference_key, environ["LLAMA_API_KEY"]]
    manager.terminate()
    texts = [manager.output(), (manager.logs / f"{instance['id']}.log").read_text()]
    texts += [each.read_text() for each in manager.data.rglob("*") if each.is_file()]
    for secret in secrets:
        assert not any(secret in text for text in texts)
