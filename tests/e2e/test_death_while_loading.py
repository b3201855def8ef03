"""A model that dies while loading: everybody who waits is told at once and in words, and nobody loads it again
for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llamaman.testing.manager import CHAT, Manager
from llamaman.testing.wire import Answer, call, refuses

TOLD_S = 20.0
"""Generous: the promise is 1 s after the death, and the figure is noted."""

CAUSE = "is not a GGUF file"


def answered(manager: Manager, **options: Any) -> tuple[Answer, float]:
    """An answer and when it was complete."""
    answer = manager.chat("tiny", **options)
    return answer, time.time()


def engine_generations(manager: Manager) -> list[int]:
    return [instance["generation"] for instance in manager.instances()]


def test_all_waiters_are_told_the_cause_within_a_second_of_the_death(
    tempered: Callable[..., Manager],
    at_once: ThreadPoolExecutor,
    measured: Callable[[str, float], None],
) -> None:
    manager = tempered("dies_loading", after_ms=1200)
    waiting = [
        at_once.submit(answered, manager, stream=number % 2 == 0, path=path)
        for number, path in enumerate([CHAT, CHAT, CHAT, CHAT, "/v1/completions", "/v1/completions"])
    ]
    results = [each.result(60) for each in waiting]
    (instance,) = manager.instances()
    died = instance["exit"]["at"]
    for answer, at in results:
        assert answer.status == 503, answer.text
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["content-type"].startswith("application/json"), "no stream had begun"
        error = answer.json()["error"]
        assert error["code"] == "engine_died"
        assert CAUSE in error["message"]
        assert "invalid magic" not in answer.text, "log lines are for those who may manage"
        assert str(manager.models) not in answer.text
        assert at - died < TOLD_S
    measured("last waiter told after the death", max(at for _, at in results) - died)
    assert len(manager.instances()) == 1
    assert not manager.engines()
    assert instance["status"] == "failed"
    assert CAUSE in instance["reason"]
    assert instance["exit"]["code"] == 1


def test_log_lines_are_shown_to_those_who_may_manage_only(tempered: Callable[..., Manager]) -> None:
    manager = tempered("dies_loading")
    assert manager.chat("tiny").status == 503
    (instance,) = manager.instances()
    path = f"/api/instances/{instance['id']}/logs"
    lines = manager.http("GET", path, key=manager.key("manage").secret).json()["lines"]
    assert any("invalid magic" in line for line in lines)
    for scope in ("inference", "view"):
        assert manager.http("GET", path, key=manager.key(scope).secret).status == 403
    assert manager.http("GET", path).status == 401


def test_the_next_request_is_refused_without_another_process(tempered: Callable[..., Manager]) -> None:
    manager = tempered("dies_loading")
    first = manager.chat("tiny")
    assert first.status == 503
    assert engine_generations(manager) == [1]
    for stream in (False, True):
        again = manager.chat("tiny", stream=stream)
        assert again.status == 503
        assert 1 <= int(again.headers["retry-after"]) <= 10
        assert CAUSE in again.error
    (instance,) = manager.instances()
    assert engine_generations(manager) == [1], "no new process was started"
    started = manager.logs / f"{instance['id']}.log"
    assert started.read_text().count("=== ") == 1, "the log of its starts agrees"
    assert not manager.engines()


def test_after_the_pause_the_next_request_tries_again_and_the_pause_doubles(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("dies_loading")
    pauses = [int(manager.chat("tiny").headers["retry-after"])]
    manager.until(lambda: _tried_again(manager, pauses), "another try after the pause")
    assert engine_generations(manager) == [2]
    assert pauses[-1] > pauses[0]


def _tried_again(manager: Manager, pauses: list[int]) -> bool:
    answer = manager.chat("tiny")
    assert answer.status == 503
    pauses.append(int(answer.headers["retry-after"]))
    time.sleep(0.2)
    return engine_generations(manager) == [2]


def test_a_changed_preset_or_an_administrator_may_try_at_once(tempered: Callable[..., Manager]) -> None:
    manager = tempered("dies_loading")
    assert manager.chat("tiny").status == 503
    manager.preset("tiny", ctx_size=1024)
    assert manager.chat("tiny").status == 503
    assert engine_generations(manager) == [2], "another configuration gets its chance"
    (instance,) = manager.instances()
    manager.manage("POST", f"/api/instances/{instance['id']}/restart", {})
    manager.until(lambda: engine_generations(manager) == [3], "the restart by hand")
    manager.until(lambda: manager.instances()[0]["status"] == "failed", "its death")


def test_a_file_that_is_no_model_fails_in_words_with_the_real_engine(manager: Manager) -> None:
    broken = manager.models / "broken.gguf"
    whole = (manager.models / "tiny.gguf").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    manager.manage("POST", "/api/models/rescan")
    answer = manager.chat("broken")
    assert answer.status in (400, 503), answer.text
    assert "broken" in answer.error
    assert not manager.engines()
    assert all(refuses(port) for port in manager.internal_ports)


def test_a_failed_instance_gives_its_port_back(tempered: Callable[..., Manager]) -> None:
    manager = tempered("dies_loading")
    made = manager.launch("tiny", wait=None)
    manager.until(lambda: manager.instance(made["id"])["status"] == "failed", "the death")
    manager.until(lambda: refuses(made["port"]), "the port to be given back")
    assert manager.manage("GET", "/api/next-port")["port"] == made["port"]
    manager.remove(made["id"])
    assert manager.instances() == []
    listed = call(manager.proxy_port, "GET", "/v1/models", key=manager.inference_key)
    assert listed.status == 200
