"""Sleeping after idle time, waking on request, and what must not wake a model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import call

SHORT = 0.001
"""Minutes: 60 ms, too short for anybody who wants to see it awake."""


def asleep(manager: Manager, **options: object) -> dict[str, object]:
    """An instance that sleeps; once it is awake it stays so, however long a busy machine takes to look at it."""
    instance = manager.launch("tiny", wait=None, idle_timeout_min=SHORT, **options)
    manager.wait_status(instance["id"], "sleeping")
    manager.preset("tiny", idle_timeout_min=60, **options)
    manager.until(lambda: manager.instance(instance["id"])["config"]["idle_timeout_min"] == 60, "the preset")
    return manager.wait_status(instance["id"], "sleeping")


def test_an_idle_instance_sleeps_and_wakes_under_its_id_on_its_port_and_by_name(manager: Manager) -> None:
    instance = asleep(manager)
    assert not manager.engines(), "asleep means that the memory is free"
    assert instance["pid"] is None
    answer = manager.chat(None, port=instance["port"])  # type: ignore[arg-type] # JSON
    assert answer.status == 200, answer.text
    awake = manager.instance(str(instance["id"]))
    assert (awake["status"], awake["port"], awake["generation"]) == ("healthy", instance["port"], 2)
    manager.preset("tiny", idle_timeout_min=SHORT)
    manager.wait_status(str(instance["id"]), "sleeping")
    assert manager.chat("tiny").status == 200, "by name"
    assert manager.instance(str(instance["id"]))["generation"] == 3
    assert len(manager.instances()) == 1


def test_a_stream_wakes_it_too_and_is_complete(manager: Manager) -> None:
    instance = asleep(manager)
    with manager.ask("tiny", port=int(str(instance["port"])), stream=True, max_tokens=6) as request:
        *_, before_last, last = request.events()
    assert last == "[DONE]"
    assert json.loads(before_last)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/completion", "/chat/completions"]
)
def test_a_wrong_model_name_on_a_port_is_404_and_wakes_nothing(plain_manager: Manager, path: str) -> None:
    manager = plain_manager
    running = manager.launch("tiny")
    sleeping = asleep(manager)
    before = set(manager.engines())
    for instance in (running, sleeping):
        for stream in (False, True):
            body = {"model": "wrong-model", "messages": [], "prompt": "x", "stream": stream}
            answer = call(instance["port"], "POST", path, key=manager.inference_key, body=body)  # type: ignore[arg-type] # JSON
            assert answer.status == 404
            assert answer.json() == {"error": "model 'wrong-model' is not loaded on this port"}
    assert manager.instance(str(sleeping["id"]))["status"] == "sleeping"
    assert set(manager.engines()) == before


def test_a_prefix_of_the_models_name_is_enough_on_its_port(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = asleep(manager)
    for name in ("tiny", "TIN", "tiny:latest"):
        assert manager.chat(name, port=int(str(instance["port"]))).status == 200, name


def test_only_inference_wakes_or_keeps_awake(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = asleep(manager)
    port = int(str(instance["port"]))
    key = manager.inference_key
    assert call(port, "GET", "/health").status == 200
    assert call(port, "GET", "/v1/models", key=key).status == 200
    assert call(manager.proxy_port, "GET", "/v1/models", key=key).status == 200
    manager.manage("GET", f"/api/instances/{instance['id']}/logs")
    assert call(port, "POST", "/v1/chat/completions", key=key, body=b"{").status == 400
    assert manager.chat(None, port=port, key="llm-wrong").status == 401
    assert manager.instance(str(instance["id"]))["status"] == "sleeping"
    assert not manager.engines()


def test_a_busy_instance_does_not_sleep(manager: Manager, slow: Callable[[Manager], str]) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        events = request.events()
        next(events)
        manager.preset("slow", idle_timeout_min=SHORT, **ENDLESS)
        manager.until(
            lambda: manager.instance(instance["id"])["config"]["idle_timeout_min"] == SHORT, "the preset"
        )
        deadline = time.monotonic() + 10 * SHORT * 60
        while time.monotonic() < deadline:
            assert "error" not in json.loads(next(events))
        seen = manager.instance(instance["id"])
        assert (seen["status"], seen["generation"]) == ("healthy", 1)
    manager.wait_status(instance["id"], "sleeping")


def test_a_request_that_meets_an_instance_falling_asleep_is_answered(
    tempered: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("polite", tokens=2)
    instance = manager.launch("tiny", wait=None, idle_timeout_min=SHORT)
    begun = time.monotonic()
    answers: list[int] = []
    # 60 ms of idleness: many of these meet the moment of falling asleep
    while time.monotonic() < begun + 4 or manager.instance(instance["id"])["generation"] <= 3:
        assert time.monotonic() < begun + 120, "it does not fall asleep"
        answers.append(at_once.submit(manager.chat, "tiny", port=instance["port"]).result(120).status)
        time.sleep(0.05 + 0.002 * (len(answers) % 20))
    assert set(answers) == {200}


def is_leaving(manager: Manager, instance_id: str) -> bool:
    return manager.instance(instance_id)["state"] in ("stopping", "sleeping")


def test_a_stop_that_meets_an_instance_falling_asleep_is_done_when_it_is_answered(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("polite")
    for number in range(15):
        instance = manager.launch("tiny", wait=None, idle_timeout_min=0.002)
        manager.until(lambda i=instance: is_leaving(manager, i["id"]), "it to fall asleep")  # type: ignore[misc] # a default binds the instance
        time.sleep(0.001 * number)  # not to wait for anything: the moment of the stop is what varies
        manager.stop(instance["id"], force=True)
        assert manager.instance(instance["id"])["state"] == "stopped"
        manager.remove(instance["id"])


def test_an_instance_stopped_by_hand_does_not_wake_on_its_port_but_its_model_can_be_asked_by_name(
    plain_manager: Manager,
) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    manager.stop(instance["id"])
    assert manager.chat("tiny").status == 200
    assert len(manager.engines()) == 1


def test_sleeping_instances_count_neither_as_running_nor_as_lost(
    embedded: object, new_manager: Callable[..., Manager]
) -> None:
    manager = new_manager(env={"LLAMAMAN_MAX_MODELS": "1"})
    instance = asleep(manager)
    manager.launch("tiny")
    assert manager.instance(str(instance["id"]))["status"] == "sleeping"
    assert len(manager.instances()) == 2


def test_a_sleeping_instance_can_be_stopped_and_its_port_comes_free(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = asleep(manager)
    manager.stop(str(instance["id"]))
    assert manager.instance(str(instance["id"]))["status"] == "stopped"
    assert manager.manage("GET", "/api/next-port")["port"] == instance["port"]
