"""One manager that is killed again and again, in the middle of something: what is checked after each time."""

from __future__ import annotations

import contextlib
import http.client
import random
import time
from collections.abc import Callable
from typing import Any

from llamaman.testing import processes
from llamaman.testing.manager import SMALL, Manager
from llamaman.testing.wire import Request, call
from llamaman_store_json.store import JsonStore

SETTLED = {"ready", "sleeping", "stopped", "failed"}


class Crashes:
    """One manager, killed again and again."""

    def __init__(self, manager: Manager, seed: int, longest_s: float) -> None:
        self.manager = manager
        self.longest_s = longest_s
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
            self.random.random() * self.longest_s
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
        ready = [each for each in instances if each["state"] == "ready"]
        self.check_engines(ready)
        assert not [each for each in instances if each["state"] == "failed"], instances
        outside = {each["port"] for each in instances if each["state"] in ("ready", "sleeping")}
        manager.until(lambda: processes.listening(manager.public_ports) == outside, "no other public port")
        for each in instances:
            assert each["generation"] >= self.generations.get(each["id"], 0), "generations never fall"
            self.generations[each["id"]] = each["generation"]
        for each in ready:
            assert call(each["port"], "GET", "/health", seconds=10).status == 200

    def check_engines(self, ready: list[dict[str, Any]]) -> None:
        """That exactly the engines of the instances that run are there, and that none of them was started anew."""
        manager = self.manager
        engines = manager.engines()
        pids = {each["pid"] for each in ready}
        assert set(engines) == pids, "every engine belongs to an instance that runs, and the reverse"
        started = [pid for pid in engines if processes.parent(pid) == manager.running.pid]
        assert not started, "what runs was adopted, nothing was started by itself"
        inside = {int(environ["LLAMAMAN_ADDRESS"].rpartition(":")[2]) for environ in engines.values()}
        manager.until(lambda: processes.listening(manager.internal_ports) == inside, "no other engine port")
