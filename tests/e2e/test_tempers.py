"""Engines that misbehave: every client gets a clear end, and the manager keeps everything under control."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llamaman.testing import processes
from llamaman.testing.manager import CHAT, ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import refuses


def test_an_engine_that_never_gets_ready_is_ended_and_its_waiters_are_told(
    tempered: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("never_ready", env={"MODEL_LOAD_TIMEOUT": "1.5"})
    waiting = [at_once.submit(manager.chat, "tiny", stream=stream) for stream in (False, True, False)]
    for request in waiting:
        answer = request.result(60)
        assert answer.status == 503
        assert "did not become ready within 1.5 s" in answer.error
        assert "MODEL_LOAD_TIMEOUT" in answer.error
    (instance,) = manager.instances()
    assert instance["status"] == "failed"
    assert not manager.engines()
    manager.until(lambda: refuses(instance["port"]), "the port to be given back")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_an_engine_that_dies_in_the_middle_of_a_stream_ends_it_with_an_error_event(
    tempered: Callable[..., Manager], path: str
) -> None:
    manager = tempered("dies_mid_stream", chunks=3, chunk_ms=20)
    instance = manager.launch("tiny", restart_policy="never")
    with manager.ask("tiny", stream=True, path=path) as request:
        assert request.begun.status == 200
        events = list(request.events())
    assert events[-1] != "[DONE]"
    assert len(events) >= 2, "some of the answer had come"
    assert json.loads(events[-1])["error"]["code"] == "engine_died"
    manager.until(lambda: manager.instance(instance["id"])["status"] == "failed", "the failure")
    assert manager.instance(instance["id"])["exit"]["signal"] == signal.SIGSEGV


def test_an_engine_that_dies_in_the_middle_of_a_whole_answer_is_an_error_never_half_a_text(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("dies_mid_stream", chunks=3, chunk_ms=20)
    manager.launch("tiny", restart_policy="never")
    answer = manager.chat("tiny")
    assert answer.status == 503, answer.text
    assert answer.json()["error"]["code"] == "engine_died"
    assert "word" not in answer.text


def test_a_request_whose_engine_dies_under_it_is_not_tried_on_the_next_engine(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("crash_on_request")
    instance = manager.launch("tiny")
    answer = manager.chat("tiny")
    assert answer.status == 503, answer.text
    assert answer.json()["error"]["code"] == "engine_died"
    again = manager.wait_status(instance["id"], "healthy")
    assert again["generation"] == 2
    assert again["stats"]["crash_count"] == 1, "one request kills one engine, not one after the other"


def test_a_model_that_keeps_crashing_is_given_up_in_the_end(tempered: Callable[..., Manager]) -> None:
    manager = tempered("crash_on_request", signal="SIGKILL")
    instance = manager.launch("tiny", restart_policy="never")
    assert manager.chat("tiny").status == 503
    manager.until(lambda: manager.instance(instance["id"])["status"] == "failed", "the failure")
    refused = manager.chat("tiny")
    assert refused.status == 503
    assert "retry-after" in refused.headers
    assert manager.instance(instance["id"])["generation"] == 1


def test_a_slow_engine_is_waited_for_and_streams_as_it_speaks(
    tempered: Callable[..., Manager], tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.touch()
    manager = tempered("slow", load_ms=400, first_token_ms=300, chunk_ms=0, held_by=str(held))
    with manager.ask("tiny", stream=True, max_tokens=6) as request:
        events = request.events()
        next(events)  # event by event, not all at the end: the engine has said no more than this
        held.unlink()
        assert len(list(events)) == 7
    assert manager.instances()[0]["stats"]["model_load_time_s"] >= 0.4


def test_an_engine_that_ignores_sigterm_is_killed_and_its_stop_returns(
    tempered: Callable[..., Manager], measured: Callable[[str, float], None]
) -> None:
    manager = tempered("ignores_sigterm")
    instance = manager.launch("tiny")
    begun = time.monotonic()
    manager.stop(instance["id"])
    measured("stop of an engine that ignores SIGTERM", time.monotonic() - begun)
    assert time.monotonic() - begun < 60
    stopped = manager.instance(instance["id"])
    assert stopped["status"] == "stopped"
    assert stopped["exit"]["signal"] == signal.SIGKILL
    assert not manager.engines()
    assert refuses(instance["port"])


def test_a_forced_stop_does_not_wait_for_an_engine_that_ignores_sigterm(
    tempered: Callable[..., Manager], measured: Callable[[str, float], None]
) -> None:
    manager = tempered("ignores_sigterm")
    instance = manager.launch("tiny")
    begun = time.monotonic()
    manager.stop(instance["id"], force=True)
    measured("forced stop of an engine that ignores SIGTERM", time.monotonic() - begun)
    assert time.monotonic() - begun < 30
    assert not manager.engines()


def test_an_engine_that_hangs_is_given_up_after_the_allowed_silence(tempered: Callable[..., Manager]) -> None:
    manager = tempered("hangs", env={"REQUEST_TIMEOUT": "1"})
    instance = manager.launch("tiny")
    for stream in (False, True):
        answer = manager.chat("tiny", stream=stream)
        assert answer.status == 504
        assert answer.error == "the engine was silent for 1 s (REQUEST_TIMEOUT)"
    manager.until(lambda: manager.instance(instance["id"])["queue"]["active"] == 0, "the permits", seconds=60)
    manager.stop(instance["id"], force=True)


def test_a_client_that_leaves_a_hanging_engine_can_be_followed_by_a_stop(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("hangs")
    instance = manager.launch("tiny")
    with manager.ask("tiny"):
        manager.until(lambda: manager.instance(instance["id"])["queue"]["active"] == 1, "the request")
    manager.stop(instance["id"], force=True)
    assert not manager.engines()


def test_a_frozen_engine_is_noticed_and_replaced(
    embedded: object, new_manager: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = new_manager(env={"REQUEST_TIMEOUT": "3", "HEALTH_CHECK_TIMEOUT": "1"})
    instance = manager.launch("tiny")
    processes.freeze(instance["pid"])
    answer = at_once.submit(manager.chat, "tiny").result(60)
    assert answer.status == 504
    again = manager.until(lambda: _second_generation(manager, instance["id"]), "the replacement")
    assert again["pid"] != instance["pid"]
    assert set(manager.engines()) == {again["pid"]}
    assert manager.chat("tiny").status == 200


def _second_generation(manager: Manager, instance_id: str) -> dict[str, object] | None:
    seen = manager.instance(instance_id)
    return seen if seen["generation"] == 2 and seen["status"] == "healthy" else None


def test_an_engine_killed_while_idle_is_noticed_without_a_request(manager: Manager) -> None:
    instance = manager.launch("tiny")
    os.kill(instance["pid"], signal.SIGKILL)
    again = manager.until(lambda: _second_generation(manager, instance["id"]), "the restart")
    assert again["port"] == instance["port"]


def test_an_engine_killed_under_a_real_stream_ends_it_with_an_error_event(
    manager: Manager, slow: Callable[[Manager], str]
) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        events = request.events()
        next(events)
        os.kill(instance["pid"], signal.SIGKILL)
        *_, last = events
    assert json.loads(last)["error"]["code"] == "engine_died"
    manager.wait_status(instance["id"], "healthy")
    assert manager.chat("slow", max_tokens=2).status == 200
