"""Many first requests at once start one engine, and all of them are answered by it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from llamaman.testing.manager import Manager


def answers(manager: Manager, pool: ThreadPoolExecutor, count: int, **options: object) -> list[int]:
    requests = [pool.submit(manager.chat, "tiny", **options) for _ in range(count)]  # type: ignore[arg-type] # a bag of keyword arguments
    return [request.result(120).status for request in requests]


def test_twenty_first_requests_start_one_engine_and_all_succeed(
    manager: Manager, at_once: ThreadPoolExecutor
) -> None:
    manager.preset("tiny", parallel=4)
    assert manager.instances() == []
    assert answers(manager, at_once, 20) == [200] * 20
    (instance,) = manager.instances()
    assert set(manager.engines()) == {instance["pid"]}
    assert instance["generation"] == 1
    assert instance["managed"] is True
    assert instance["stats"]["total_requests"] == 20
    assert instance["queue"]["active"] == instance["queue"]["queued"] == 0
    assert len(manager.public_ports) > 1, "a second one would have found a port"


def test_streamed_and_whole_requests_on_both_ports_share_the_one_start(
    tempered: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("polite", load_ms=600, tokens=3)
    ports = [manager.proxy_port, manager.port]
    requests = [
        at_once.submit(manager.chat, "tiny", port=ports[number % 2], stream=number % 3 == 0)
        for number in range(20)
    ]
    assert [request.result(120).status for request in requests] == [200] * 20
    assert len(manager.instances()) == 1
    assert len(manager.engines()) == 1


def test_twenty_requests_wake_a_sleeping_instance_once(manager: Manager, at_once: ThreadPoolExecutor) -> None:
    instance = manager.launch("tiny", wait=None, parallel=4, idle_timeout_min=0.001)
    manager.wait_status(instance["id"], "sleeping")
    manager.preset("tiny", parallel=4, idle_timeout_min=60)  # it shall not fall asleep again meanwhile
    manager.until(lambda: manager.instance(instance["id"])["config"]["idle_timeout_min"] == 60, "the preset")
    assert answers(manager, at_once, 20, port=instance["port"]) == [200] * 20
    (awake,) = manager.instances()
    assert awake["id"] == instance["id"]
    assert awake["generation"] == 2
    assert set(manager.engines()) == {awake["pid"]}


def test_a_first_caller_that_leaves_does_not_cancel_the_start_for_the_others(
    tempered: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("polite", load_ms=800)
    with manager.ask("tiny"):
        manager.until(manager.engines, "the engine to start")
        others = [at_once.submit(manager.chat, "tiny") for _ in range(3)]
    assert [other.result(120).status for other in others] == [200] * 3
    assert manager.instances()[0]["generation"] == 1


def test_two_models_asked_for_at_once_start_beside_each_other(
    manager: Manager, at_once: ThreadPoolExecutor, slow: Callable[[Manager], str]
) -> None:
    slow(manager)
    manager.preset("slow")
    manager.preset("tiny")
    requests = [at_once.submit(manager.chat, name, max_tokens=2) for name in ["tiny", "slow"] * 5]
    assert [request.result(120).status for request in requests] == [200] * 10
    assert len(manager.engines()) == 2
