"""The manager is killed, or told to end, at any moment: nothing is lost, doubled or leaked."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from llamaman.testing import processes
from llamaman.testing.engines import TestEngine
from llamaman.testing.manager import SMALL, Manager
from llamaman.testing.wire import Request, call
from llamaman_store_json.store import JsonStore

from .conftest import NewManager

ROUNDS = 12
LONGEST_S = 0.15
SEED = int(os.environ.get("LLAMAMAN_TEST_SEED", "7"))
SETTLED = {"ready", "sleeping", "stopped", "failed"}


class Crashes:
    """One manager, killed again and again."""

    def __init__(self, manager: Manager, seed: int) -> None:
        self.manager = manager
        self.random = random.Random(seed)
        self.generations: dict[str, int] = {}

    # --- what is under way when it is killed

    def send(self, method: str, path: str, body: Any = None) -> Request:
        return Request(self.manager.admin_socket, method, path, body=body)

    def launch(self) -> Request:
        options = self.random.choice([{}, {"idle_timeout_min": 60}])
        body = {"model_path": str(self.manager.models / "tiny.gguf"), **SMALL, **options}
        return self.send("POST", "/api/instances", body)

    def stop(self) -> Request:
        return self.send("DELETE", f"/api/instances/{self.one('ready')}?force=true")

    def restart(self) -> Request:
        return self.send("POST", f"/api/instances/{self.one('ready')}/restart", {})

    def start_again(self) -> Request:
        self.manager.stop(self.one("ready"), force=True)
        return self.send("POST", f"/api/instances/{self.one('stopped')}/restart", {})

    def remove(self) -> Request:
        self.manager.stop(self.one("ready"), force=True)
        return self.send("DELETE", f"/api/instances/{self.one('stopped')}/remove")

    def wake(self) -> Request:
        for instance in self.manager.instances():
            self.manager.stop(instance["id"], force=True)
        return self.manager.ask("tiny", max_tokens=4)

    def one(self, state: str) -> str:
        """An instance in that state; launched if there is none that runs."""
        found = [each["id"] for each in self.manager.instances() if each["state"] == state]
        if not found and state == "ready":
            return str(self.manager.launch("tiny")["id"])
        return str(self.random.choice(found))

    # --- a round

    def round(self, act: Callable[[], Request]) -> None:
        manager = self.manager
        if len(manager.instances()) > 3:
            manager.clear()
        request = act()
        time.sleep(
            self.random.random() * LONGEST_S
        )  # not to wait for anything: this is the moment of the crash
        manager.kill()
        with contextlib.suppress(OSError, http.client.HTTPException):
            request.disconnect()
        recorded = self.recorded()
        manager.start()
        self.settle()
        self.check(set(recorded))
        answer = manager.chat("tiny", max_tokens=2)
        assert answer.status == 200, answer.text
        assert manager.admin("GET", "/api/settings").status == 200

    def recorded(self) -> list[str]:
        store = JsonStore(self.manager.data)
        try:
            return [document.key for document in store.list("instances")]
        finally:
            store.close()

    def settle(self) -> None:
        def settled() -> bool:
            return all(each["state"] in SETTLED for each in self.manager.instances())

        self.manager.until(settled, "every instance to settle")

    def check(self, recorded: set[str]) -> None:
        manager = self.manager
        instances = manager.instances()
        assert {each["id"] for each in instances} == recorded, "exactly what was recorded is there"
        ready = {each["pid"]: each for each in instances if each["state"] == "ready"}
        engines = manager.engines()
        assert set(engines) == ready.keys(), "every engine belongs to an instance that runs, and the reverse"
        started = [pid for pid in engines if processes.parent(pid) == manager.running.pid]
        assert not started, "what runs was adopted, nothing was started by itself"
        assert not [each for each in instances if each["state"] == "failed"], instances
        inside = {int(environ["LLAMAMAN_ADDRESS"].rpartition(":")[2]) for environ in engines.values()}
        manager.until(lambda: processes.listening(manager.internal_ports) == inside, "no other engine port")
        outside = {each["port"] for each in instances if each["state"] in ("ready", "sleeping")}
        manager.until(lambda: processes.listening(manager.public_ports) == outside, "no other public port")
        for each in instances:
            assert each["generation"] >= self.generations.get(each["id"], 0), "generations never fall"
            self.generations[each["id"]] = each["generation"]
        for each in ready.values():
            assert call(each["port"], "GET", "/health", seconds=10).status == 200


def test_killed_at_any_moment_it_finds_exactly_what_it_recorded(
    real_engine: TestEngine, new_manager: NewManager
) -> None:
    manager = new_manager(binary=real_engine.binary)
    crashes = Crashes(manager, SEED)
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
    status = manager.terminate(30)
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
        assert manager.terminate(30) == 0
    assert not manager.engines()
    assert not processes.listening((*manager.public_ports, *manager.internal_ports))


def test_told_to_end_during_a_stream_it_gives_it_time_and_then_ends(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    manager.launch(slow(manager))
    with manager.ask("slow", stream=True, max_tokens=100_000) as request:
        next(request.events())
        assert manager.terminate(30) == 0
    assert not manager.engines()


def test_told_to_end_while_a_stop_is_under_way_it_completes_the_stop(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("ignores_sigterm")
    instance = manager.launch("tiny", idle_timeout_min=60)
    with Request(manager.admin_socket, "DELETE", f"/api/instances/{instance['id']}"):
        manager.until(lambda: manager.instance(instance["id"])["state"] == "stopping", "the stop to begin")
        assert manager.terminate(40) == 0
    assert not manager.engines()
    manager.start()
    assert manager.instance(instance["id"])["status"] == "stopped", (
        "and not asleep, from where a request wakes it"
    )
