"""A manager that is killed loses nothing: its engines go on and the next manager takes them over."""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Request, call, refuses

ANSWERS_AGAIN_S = 60.0
"""Generous: the promise is 2 s on a quiet machine, and the figure is noted."""


def seconds_until_it_answers(manager: Manager, ports: list[int]) -> float:
    """Start the manager; seconds until each of these instance ports has given an answer."""
    begun = time.monotonic()
    manager.spawn()
    waiting = list(ports)
    while waiting:
        assert time.monotonic() - begun < ANSWERS_AGAIN_S, (
            f"ports {waiting} do not answer; {manager.output()}"
        )
        try:
            if manager.chat(None, port=waiting[0], max_tokens=1).status == 200:
                waiting.pop(0)
        except (OSError, http.client.HTTPException):
            time.sleep(0.005)
    return time.monotonic() - begun


def test_killed_in_the_middle_of_a_stream_it_adopts_every_instance_under_its_id(
    manager: Manager, slow: Callable[[Manager], str], measured: Callable[[str, float], None]
) -> None:
    slow(manager)
    running = [manager.launch("slow", **ENDLESS), manager.launch("tiny"), manager.launch("tiny")]
    stopped = manager.launch("tiny")
    manager.stop(stopped["id"])
    engines = set(manager.engines())
    assert engines == {instance["pid"] for instance in running}
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        events = request.events()
        next(events)
        manager.kill()
        with pytest.raises((http.client.HTTPException, OSError)):  # broken off, and seen to be
            for _ in events:
                pass
    assert set(manager.engines()) == engines, "engines outlive their manager"

    seconds = seconds_until_it_answers(manager, [instance["port"] for instance in running])
    measured("ports answer after kill -9", seconds)
    manager.wait_ready()
    assert set(manager.engines()) == engines, "none was started twice, none was lost"
    after = {instance["id"]: instance for instance in manager.instances()}
    assert set(after) == {instance["id"] for instance in (*running, stopped)}
    for before in running:
        now = manager.wait_status(before["id"], "healthy")
        for name in ("pid", "port", "generation", "config", "managed"):
            assert now[name] == before[name], name
    assert after[stopped["id"]]["status"] == "stopped"
    assert manager.chat("tiny").status == 200

    manager.stop(running[0]["id"])
    assert set(manager.engines()) == engines - {running[0]["pid"]}, "what was adopted can be stopped"
    manager.manage("POST", f"/api/instances/{running[1]['id']}/restart", {})
    restarted = manager.until(
        lambda: _is_healthy_as(manager, running[1]["id"], running[1]["generation"] + 1), "the restart"
    )
    assert restarted["pid"] != running[1]["pid"]
    assert restarted["port"] == running[1]["port"]


def _is_healthy_as(manager: Manager, instance_id: str, generation: int) -> dict[str, Any] | None:
    seen = manager.instance(instance_id)
    return seen if seen["status"] == "healthy" and seen["generation"] == generation else None


def test_the_slot_of_a_stream_that_died_with_the_manager_comes_free(
    manager: Manager, slow: Callable[[Manager], str]
) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        next(request.events())
        manager.kill()
    manager.start()
    answer = manager.chat("slow", max_tokens=2)
    assert answer.status == 200, answer.text
    manager.until(lambda: manager.busy_slots(instance["id"]) == 0, "the slot")


def test_killed_while_a_model_loads_it_adopts_the_load(tempered: Callable[..., Manager]) -> None:
    manager = tempered("polite", load_ms=1500)
    instance = manager.launch("tiny", wait=None)
    (pid,) = manager.until(manager.engines, "the engine")
    manager.kill()
    manager.start()
    now = manager.wait_status(instance["id"], "healthy")
    assert now["pid"] == pid
    assert set(manager.engines()) == {pid}
    assert manager.chat("tiny").status == 200


@pytest.mark.parametrize("delay_ms", [0, 5, 10, 15, 20, 30, 45])
def test_killed_at_any_moment_of_a_launch_it_leaves_no_engine_without_a_record(
    embedded: object, new_manager: Any, delay_ms: int
) -> None:
    manager = new_manager()
    made = manager.launch("tiny", wait=None)
    time.sleep(delay_ms / 1000)  # not to wait for anything: the moment of the crash is what varies
    manager.kill()
    manager.start()
    (instance,) = manager.instances()
    assert instance["id"] == made["id"]
    manager.until(
        lambda: manager.instance(made["id"])["state"] in ("ready", "stopped", "sleeping", "failed"),
        "the instance to settle",
    )
    settled = manager.instance(made["id"])
    engines = manager.engines()
    assert set(engines) == ({settled["pid"]} if settled["state"] == "ready" else set())
    answer = manager.chat("tiny")
    assert answer.status == 200, answer.text
    assert len(manager.engines()) == 1


def test_an_instance_whose_engine_died_with_the_manager_is_stopped_or_asleep(plain_manager: Manager) -> None:
    manager = plain_manager
    by_hand = manager.launch("tiny")
    sleeper = manager.launch("tiny", idle_timeout_min=60)
    manager.kill()
    for pid in manager.engines():
        os.kill(pid, signal.SIGKILL)
    manager.until(lambda: not manager.engines(), "the engines to be gone")
    manager.start()
    assert manager.instance(by_hand["id"])["status"] == "stopped"
    assert manager.instance(sleeper["id"])["status"] == "sleeping"
    assert refuses(by_hand["port"]), "a stopped instance holds no port"
    assert manager.chat(None, port=sleeper["port"]).status == 200, "a request wakes the sleeping one"
    assert manager.instance(sleeper["id"])["status"] == "healthy"


def test_a_stop_that_was_under_way_is_completed_by_the_next_manager(tempered: Callable[..., Manager]) -> None:
    manager = tempered("ignores_sigterm")
    instance = manager.launch("tiny")
    key = manager.key("manage")
    with Request(manager.port, "DELETE", f"/api/instances/{instance['id']}?force=true", key=key.secret):
        manager.until(lambda: manager.instance(instance["id"])["state"] == "stopping", "the stop to begin")
        manager.kill()
    assert len(manager.engines()) == 1
    manager.start()
    manager.wait_status(instance["id"], "stopped")
    assert not manager.engines()


def test_keys_settings_and_presets_survive_a_kill(plain_manager: Manager) -> None:
    manager = plain_manager
    key = manager.key("manage")
    manager.setting(require_auth=False)
    manager.preset("tiny", ctx_size=1024)
    manager.kill()
    manager.start()
    assert manager.http("GET", "/api/instances", key=key.secret).status == 200
    assert manager.manage("GET", "/api/settings")["require_auth"] is False
    answer = call(manager.proxy_port, "GET", "/v1/models")
    assert answer.status == 200, "require_auth is still off"
    assert manager.chat("tiny").status == 200
    assert manager.instances()[0]["config"]["ctx_size"] == 1024


def test_an_orderly_end_stops_the_engines_and_the_next_start_remembers(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    sleeper = manager.launch("tiny", idle_timeout_min=60)
    assert manager.terminate() == 0
    assert not manager.engines()
    assert refuses(manager.port)
    manager.start()
    assert manager.instance(instance["id"])["status"] == "stopped"
    assert manager.instance(sleeper["id"])["status"] == "sleeping"


def test_a_second_manager_on_the_same_data_is_refused(plain_manager: Manager) -> None:
    second = Manager(plain_manager.folder, env={"DATA_DIR": str(plain_manager.data)})
    second.env["LLAMAMAN_NODE_NAME"] = plain_manager.node
    second.log = plain_manager.folder / "second.log"
    try:
        second.spawn()
        assert second.running.wait(60) == 78
        assert "DATA_DIR" in second.output()
    finally:
        second.node = "nobody"
        second.env["LLAMAMAN_NODE_NAME"] = "nobody"  # its engines are the first one's
        second.close()
    assert plain_manager.admin("GET", "/api/instances").status == 200
