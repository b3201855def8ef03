"""Whoever loses the right to be here loses it at once: running streams end, the next request is refused.

A key that is revoked, a user who is disabled, demoted or deleted, a session that is ended; chat, log and event
streams. The promise is one second, on a quiet machine.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamaman.testing.manager import CHAT, ENDLESS, FOR_EVER, Manager
from llamaman.testing.visitor import Visitor
from llamaman.testing.wire import Request, call

pytestmark = pytest.mark.real("embedded engine")

ENDED_S = 20.0
"""Generous, and the figure is printed. None of the streams would end by itself."""

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, slow_model: Path) -> Iterator[Manager]:
    """One manager for all of them, with a model that is not done by itself."""
    manager = Manager(tmp_path_factory.mktemp("revocation"), env={"LLAMAMAN_ADMIN_PASSWORD": PASSWORD})
    shutil.copy(slow_model, manager.models / "slow.gguf")
    with manager:
        yield manager
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture(scope="module")
def instance(manager: Manager) -> str:
    return str(manager.launch("slow", parallel=2, **ENDLESS)["id"])


@pytest.fixture
def person(manager: Manager) -> Iterator[Visitor]:
    """Somebody with the role of a manager, logged in."""
    manager.manage("POST", "/api/users", {"name": "eve", "password": PASSWORD, "role": "manager"})
    visitor = Visitor(manager.port)
    assert visitor.log_in("eve", PASSWORD).status == 303
    yield visitor
    if any(user["name"] == "eve" for user in manager.manage("GET", "/api/users")):
        manager.manage("DELETE", "/api/users/eve")


CHAT_BODY = {
    "model": "slow",
    "stream": True,
    "max_tokens": FOR_EVER,
    "messages": [{"role": "user", "content": "go on"}],
}


def streams(instance: str) -> dict[str, tuple[str, str, object]]:
    """Each kind of stream: method, path, body."""
    return {
        "chat": ("POST", CHAT, CHAT_BODY),
        "log": ("GET", f"/api/instances/{instance}/logs/stream", None),
        "events": ("GET", "/api/events/stream?topic=instances", None),
    }


def seconds_to_end(open_streams: dict[str, Request], act: Callable[[], object]) -> dict[str, float]:
    """Seconds from the answer to ``act`` to the end of each stream, all of which have begun; below 0 if before it.

    Not from its beginning: a password is hashed first, which takes seconds where other tests keep the machine busy.
    """

    def drain(stream: Request) -> float:
        for _ in stream.events():
            pass
        return time.monotonic()

    with ThreadPoolExecutor(len(open_streams)) as pool:
        ends = {name: pool.submit(drain, stream) for name, stream in open_streams.items()}
        act()
        done = time.monotonic()
        return {name: end.result(60) - done for name, end in ends.items()}


def begin(stream: Request) -> Request:
    assert stream.begun.status == 200, stream.begun.read()
    return stream


def in_time(took: dict[str, float]) -> None:
    for name, seconds in took.items():
        print(f"{name} stream ended after {seconds:.3f} s")
        assert seconds < ENDED_S, took


def test_revoking_a_key_ends_its_streams_and_refuses_its_next_request(
    manager: Manager, instance: str
) -> None:
    key, other = manager.key("manage"), manager.key("manage")
    kinds = streams(instance)
    opened = {
        name: begin(Request(manager.port, method, path, key=key.secret, body=body))
        for name, (method, path, body) in kinds.items()
    }
    method, path, _ = kinds["log"]
    with Request(manager.port, method, path, key=other.secret) as going_on:
        begin(going_on)
        in_time(seconds_to_end(opened, lambda: manager.revoke(key)))
        assert call(manager.port, "GET", "/api/instances", key=key.secret).status == 401
        assert call(manager.proxy_port, "GET", "/v1/models", key=key.secret).status == 401
        assert call(manager.port, "GET", "/api/instances", key=other.secret).status == 200
        assert next(going_on.events()), "another key's stream goes on"
    manager.until(lambda: manager.busy_slots(instance) == 0, "the slot to be free")


def disable(manager: Manager, person: Visitor) -> None:
    manager.manage("PATCH", "/api/users/eve", {"disabled": True})


def demote(manager: Manager, person: Visitor) -> None:
    manager.manage("PATCH", "/api/users/eve", {"role": "viewer"})


def delete(manager: Manager, person: Visitor) -> None:
    manager.manage("DELETE", "/api/users/eve")


def set_password(manager: Manager, person: Visitor) -> None:
    manager.manage("PATCH", "/api/users/eve", {"password": "another horse, another staple"})


def end_session(manager: Manager, person: Visitor) -> None:
    (mine,) = (each for each in manager.manage("GET", "/api/sessions") if each["user"] == "eve")
    manager.manage("DELETE", f"/api/sessions/{mine['id']}")


def leave(manager: Manager, person: Visitor) -> None:
    assert person.manage("DELETE", "/api/me/sessions").status == 200


@pytest.mark.parametrize("act", [disable, demote, delete, set_password, end_session, leave])
def test_ending_a_session_ends_its_streams_and_refuses_its_next_request(
    manager: Manager, instance: str, person: Visitor, act: Callable[[Manager, Visitor], object]
) -> None:
    cookies = dict(person.cookies)
    token = person.call("GET", "/api/me").json()["csrf_token"]
    opened = {
        name: begin(person.send(method, path, body, headers={"X-CSRF-Token": token}))
        for name, (method, path, body) in streams(instance).items()
    }
    took = seconds_to_end(opened, lambda: act(manager, person))
    in_time(took)
    person.cookies = cookies
    assert person.call("GET", "/api/instances").status == 401
    assert person.call("POST", CHAT, CHAT_BODY, headers={"X-CSRF-Token": token}).status == 401
    manager.until(lambda: manager.busy_slots(instance) == 0, "the slot to be free")


def test_a_session_chats_on_the_management_port_and_only_with_its_token(
    manager: Manager, instance: str, person: Visitor
) -> None:
    body: dict[str, Any] = {**CHAT_BODY, "stream": False, "max_tokens": 4}
    assert person.call("POST", CHAT, body).status == 403
    token = person.call("GET", "/api/me").json()["csrf_token"]
    assert person.call("POST", CHAT, body, headers={"X-CSRF-Token": token}).status == 200
    person.where = ("127.0.0.1", manager.proxy_port)
    person.host = f"127.0.0.1:{manager.proxy_port}"
    assert person.call("POST", CHAT, body, headers={"X-CSRF-Token": token}).status == 401
