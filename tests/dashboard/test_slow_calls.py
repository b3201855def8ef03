"""Calls that take long (a stop that lets answers finish) never keep the quick ones waiting."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from management_door import Manager, eventually

from llamaman.access import Scope
from llamaman.dashboard.server import THREADS

SLOW = THREADS + 2


@pytest.fixture
def stopping(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stops that last until the test is over; the ids that are being stopped."""
    over, begun = threading.Event(), []

    def stop(instance_id: str, actor: str, force: bool = False) -> Any:
        begun.append(instance_id)
        over.wait(20)
        return manager.kernel.instances.all[instance_id]

    monkeypatch.setattr(manager.kernel.instances, "stop", stop)
    yield begun
    over.set()


def test_lists_answer_while_many_instances_are_being_stopped(manager: Manager, stopping: list[str]) -> None:
    key = manager.key(Scope.MANAGE)
    ids = []
    for port in range(8000, 8000 + 3):
        body = b'{"model_path": "%s", "port": %d, "ctx_size": 512}' % (str(manager.model).encode(), port)
        answer = manager.raw("POST", "/api/instances", body, {"Content-Type": "application/json"}, key)
        assert answer[0] == 201, answer
        ids.append(next(reversed(manager.kernel.instances.all)))
    calls: list[http.client.HTTPConnection] = []
    for number in range(SLOW):
        connection = http.client.HTTPConnection("127.0.0.1", manager.port, timeout=30)
        headers = {"Authorization": f"Bearer {key}"}
        connection.request("DELETE", f"/api/instances/{ids[number % 3]}", headers=headers)
        calls.append(connection)
    eventually(lambda: len(stopping) >= 2, "no stop began")
    quick = http.client.HTTPConnection("127.0.0.1", manager.port, timeout=60)
    quick.request("GET", "/api/instances", headers={"Authorization": f"Bearer {key}"})
    assert quick.getresponse().status == 200
    for connection in (*calls, quick):
        connection.close()
