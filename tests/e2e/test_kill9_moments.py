"""The manager is killed, or told to end, at any moment: nothing is lost, doubled or leaked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from llamaman.testing import processes
from llamaman.testing.engines import TestEngine
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Request

from .conftest import NewManager
from .crashes import SETTLED, Crashes

ROUNDS = 12
LONGEST_S = 0.15
SEED = int(os.environ.get("LLAMAMAN_TEST_SEED", "7"))


def test_killed_at_any_moment_it_finds_exactly_what_it_recorded(
    real_engine: TestEngine, new_manager: NewManager
) -> None:
    manager = new_manager(binary=real_engine.binary)
    crashes = Crashes(manager, SEED, LONGEST_S)
    acts = [crashes.launch, crashes.stop, crashes.restart, crashes.start_again, crashes.wake, crashes.remove]
    for number in range(ROUNDS):
        act = acts[number % len(acts)]
        try:
            crashes.round(act)
        except AssertionError as error:
            pytest.fail(f"round {number}, {act.__name__}, seed {SEED}: {error}\n{manager.output()[-3000:]}")


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.6])
def test_told_to_end_while_it_boots_it_ends_and_leaves_no_engine(
    embedded: None, new_manager: NewManager, seconds: float
) -> None:
    manager = new_manager()
    manager.launch("tiny")
    manager.kill()
    manager.spawn()
    time.sleep(seconds)  # not to wait for anything: this is the moment of the signal
    status = manager.terminate(60)
    assert status in (0, -signal.SIGTERM), "before it listens to signals they just end it"
    if status == 0:
        assert not manager.engines()
    manager.start()
    manager.until(lambda: manager.instances()[0]["state"] in SETTLED, "the instance to settle")


@pytest.mark.parametrize("signals", [1, 2])
def test_told_to_end_while_models_load_it_ends_without_them(
    tempered: Callable[..., Manager], signals: int
) -> None:
    manager = tempered("polite", load_ms=20_000)
    loading = manager.launch("tiny", wait=None)
    manager.until(lambda: manager.instance(loading["id"])["state"] == "starting", "the load")
    waiting = manager.ask("tiny")
    with waiting:
        for _ in range(signals - 1):
            manager.running.terminate()
        assert manager.terminate(60) == 0
    assert not manager.engines()
    assert not processes.listening((*manager.public_ports, *manager.internal_ports))


def test_told_to_end_during_a_stream_it_gives_it_time_and_then_ends(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        next(request.events())
        assert manager.terminate(60) == 0
    assert not manager.engines()


def test_told_to_end_while_a_stop_is_under_way_it_completes_the_stop(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("ignores_sigterm")
    instance = manager.launch("tiny", idle_timeout_min=60)
    with Request(manager.admin_socket, "DELETE", f"/api/instances/{instance['id']}"):
        manager.until(lambda: manager.instance(instance["id"])["state"] == "stopping", "the stop to begin")
        assert manager.terminate(60) == 0
    assert not manager.engines()
    manager.start()
    assert manager.instance(instance["id"])["status"] == "stopped", (
        "and not asleep, from where a request wakes it"
    )
