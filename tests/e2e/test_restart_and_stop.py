"""Stopping, restarting, removing: what running requests, waiting ones and the record see of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import refuses


def test_restart_keeps_id_and_port_and_takes_new_options(manager: Manager) -> None:
    before = manager.launch("tiny", ctx_size=2048)
    answer = manager.admin("POST", f"/api/instances/{before['id']}/restart", {"options": {"ctx_size": 1024}})
    assert answer.status == 201, answer.text
    manager.until(lambda: manager.instance(before["id"])["generation"] == 2, "the second generation")
    after = manager.wait_status(before["id"], "healthy")
    assert after["port"] == before["port"]
    assert after["pid"] != before["pid"]
    assert after["config"]["ctx_size"] == 1024
    assert after["context_length"] == 1024
    assert set(manager.engines()) == {after["pid"]}
    assert manager.chat("tiny", port=after["port"]).status == 200


def test_a_stopped_instance_restarts_under_its_id(manager: Manager) -> None:
    before = manager.launch("tiny")
    manager.stop(before["id"])
    assert refuses(before["port"])
    manager.manage("POST", f"/api/instances/{before['id']}/restart", {})
    after = manager.wait_status(before["id"], "healthy")
    assert (after["id"], after["port"]) == (before["id"], before["port"])


def test_restart_resolves_the_preset_again(plain_manager: Manager) -> None:
    manager = plain_manager
    manager.preset("tiny", ctx_size=1024)
    assert manager.chat("tiny").status == 200
    (instance,) = manager.instances()
    assert instance["config"]["ctx_size"] == 1024
    manager.preset("tiny", ctx_size=2048)
    manager.manage("POST", f"/api/instances/{instance['id']}/restart", {})
    manager.until(lambda: manager.instance(instance["id"])["generation"] == 2, "the second generation")
    assert manager.wait_status(instance["id"], "healthy")["config"]["ctx_size"] == 2048


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """No answer of the engine gets further than its first token until this is deleted."""
    path = tmp_path / "held"
    path.touch()
    return path


def test_a_stop_lets_a_running_stream_finish(
    tempered: Callable[..., Manager], held: Path, at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("polite", held_by=str(held))
    instance = manager.launch("tiny")
    with manager.ask("tiny", stream=True, max_tokens=500) as request:
        events = request.events()
        next(events)
        stop = at_once.submit(manager.stop, instance["id"])
        manager.until(lambda: manager.instance(instance["id"])["state"] == "draining", "the drain")
        assert manager.instance(instance["id"])["status"] == "healthy"
        held.unlink()
        *pieces, before_last, last = events
    assert last == "[DONE]"
    assert json.loads(before_last)["choices"][0]["finish_reason"] == "stop"
    assert len(pieces) == 499, "all 500 tokens came"
    stop.result(60)
    assert manager.instance(instance["id"])["status"] == "stopped"
    assert not manager.engines()


def test_a_newcomer_during_a_drain_is_refused_and_starts_nothing(
    manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    instance = manager.launch(slow(manager), parallel=2, **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        next(request.events())
        stop = at_once.submit(manager.stop, instance["id"])
        manager.until(lambda: manager.instance(instance["id"])["state"] == "draining", "the drain")
        newcomer = at_once.submit(manager.chat, None, port=instance["port"], max_tokens=2)
        manager.until(
            lambda: newcomer.done() or manager.instance(instance["id"])["queue"]["queued"], "it to be there"
        )
        assert manager.instance(instance["id"])["state"] == "draining"
    stop.result(60)
    answer = newcomer.result(60)
    assert answer.status == 503, answer.text
    assert "retry-after" in answer.headers
    assert "stopped" in answer.error
    assert manager.instance(instance["id"])["status"] == "stopped"


def test_a_forced_stop_ends_a_running_stream_at_once_with_the_dialects_error(
    manager: Manager,
    slow: Callable[[Manager], str],
    at_once: ThreadPoolExecutor,
    measured: Callable[[str, float], None],
) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        events = request.events()
        next(events)
        begun = time.monotonic()
        manager.stop(instance["id"], force=True)
        took = time.monotonic() - begun
        *_, last = events
    assert "stopped" in json.loads(last)["error"]["message"]
    assert took < 25, "less than the time that a drain gives"
    measured("forced stop", took)
    assert not manager.engines()
    assert refuses(instance["port"])


def test_a_stop_during_the_load_ends_the_load_and_tells_who_waits(
    tempered: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("never_ready")
    instance = manager.launch("tiny", wait=None)
    manager.until(manager.engines, "the engine")
    waiting = [at_once.submit(manager.chat, "tiny", stream=stream) for stream in (False, True)]
    manager.until(lambda: manager.instance(instance["id"])["queue"]["queued"] == 2, "two who wait")
    manager.stop(instance["id"])
    for request in waiting:
        answer = request.result(60)
        assert answer.status == 503
        assert "stopped" in answer.error
    assert manager.instance(instance["id"])["status"] == "stopped"
    assert not manager.engines()
    assert refuses(instance["port"])


def test_requests_that_come_during_a_restart_wait_for_it_and_are_answered(
    tempered: Callable[..., Manager], held: Path, at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("polite", held_by=str(held))
    instance = manager.launch("tiny")
    with manager.ask("tiny", stream=True, max_tokens=400) as request:
        events = request.events()
        next(events)
        manage = f"/api/instances/{instance['id']}/restart"
        restart = at_once.submit(manager.manage, "POST", manage, {})
        manager.until(lambda: manager.instance(instance["id"])["state"] == "draining", "the drain")
        ports = (manager.proxy_port, instance["port"], manager.proxy_port)
        waiting = [at_once.submit(manager.chat, "tiny", port=port, max_tokens=2) for port in ports]
        manager.until(lambda: manager.instance(instance["id"])["queue"]["queued"] == 3, "three waiting")
        held.unlink()
        assert list(events)[-1] == "[DONE]", "what ran was not cut"
    assert [answer.result(60).status for answer in waiting] == [200] * 3
    restart.result(60)
    assert manager.instance(instance["id"])["generation"] == 2


def test_stopping_twice_and_stopping_the_unknown(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    for _ in range(2):
        assert manager.admin("DELETE", f"/api/instances/{instance['id']}").json() == {"status": "stopped"}
    unknown = manager.admin("DELETE", "/api/instances/no-such-id")
    assert (unknown.status, unknown.error) == (404, "Not found")


def test_only_a_stopped_instance_can_be_removed_and_then_it_is_forgotten(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    path = f"/api/instances/{instance['id']}/remove"
    assert manager.admin("DELETE", path).status == 409
    manager.stop(instance["id"])
    assert manager.admin("DELETE", path).json() == {"status": "removed"}
    assert manager.instances() == []
    assert manager.admin("GET", f"/api/instances/{instance['id']}").status == 404
    manager.restart()
    assert manager.instances() == [], "it does not come back"


def test_a_crash_is_answered_by_a_restart_that_comes_ever_more_slowly(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")  # restart_policy is on-failure by default
    seen = []
    for crash in (1, 2):
        os.kill(manager.instance(instance["id"])["pid"], signal.SIGKILL)
        back_off = manager.until(lambda: in_state(manager, instance["id"], "backoff"), "the back-off")
        assert back_off["status"] == "starting"
        seen.append(float(back_off["reason"].rpartition(" in ")[2].removesuffix(" s")))
        again = manager.wait_status(instance["id"], "healthy")
        assert again["generation"] == crash + 1
        assert again["stats"]["crash_count"] == crash
        assert again["port"] == instance["port"]
    assert seen == [1, 2]
    assert manager.chat("tiny", port=instance["port"]).status == 200


def in_state(manager: Manager, instance_id: str, state: str) -> dict[str, object] | None:
    seen = manager.instance(instance_id)
    return seen if seen["state"] == state else None


def test_requests_during_the_back_off_wait_for_the_restart(
    plain_manager: Manager, at_once: ThreadPoolExecutor
) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    os.kill(instance["pid"], signal.SIGKILL)
    manager.until(lambda: in_state(manager, instance["id"], "backoff"), "the back-off")
    waiting = [at_once.submit(manager.chat, "tiny", port=port) for port in (None, instance["port"])]
    assert [request.result(60).status for request in waiting] == [200, 200]
    assert manager.instance(instance["id"])["generation"] == 2
    assert len(manager.engines()) == 1


def test_a_stop_during_the_back_off_cancels_the_restart(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    os.kill(instance["pid"], signal.SIGKILL)
    manager.until(lambda: in_state(manager, instance["id"], "backoff"), "the back-off")
    manager.stop(instance["id"])
    seen = manager.instance(instance["id"])
    assert seen["status"] == "stopped"
    time.sleep(1.5)  # longer than the pause that was announced: what must not happen takes that long
    assert manager.instance(instance["id"])["status"] == "stopped"
    assert not manager.engines()


def test_restart_policy_never_leaves_a_crashed_instance_failed(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny", restart_policy="never")
    os.kill(instance["pid"], signal.SIGKILL)
    failed = manager.until(lambda: in_state(manager, instance["id"], "failed"), "the failure")
    assert failed["exit"]["signal"] == signal.SIGKILL  # type: ignore[index] # JSON
    assert failed["reason"]
    assert not manager.engines()
    manager.until(lambda: refuses(instance["port"]), "the port to be given back")
