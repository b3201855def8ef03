"""What an operator asks in trouble: what is being answered now, end it, why is it down, who did what.

Real managers and engines. The slot of a cancelled request is looked at in the engine itself.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Request, call

FREE_S = 30.0
"""Generous: the promise is 2 s, and the figure is noted."""


def requests(manager: Manager) -> list[dict[str, Any]]:
    return list(manager.manage("GET", "/api/requests"))


def audit(manager: Manager, action: str) -> dict[str, Any]:
    """The newest entry of an action, once it is written."""

    def found() -> dict[str, Any] | None:
        entries = manager.manage("GET", f"/api/audit?action={action}&limit=1")["entries"]
        return entries[0] if entries else None

    return dict(manager.until(found, f"the audit log to have {action}"))


def test_a_running_stream_is_listed_and_cancelled_and_its_slot_is_free(
    manager: Manager, slow: Callable[[Manager], str], measured: Callable[[str, float], None]
) -> None:
    instance = manager.launch(slow(manager), **ENDLESS)
    manage = manager.key("manage")
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER, prompt="my secret plan") as running:
        events = running.events()
        next(events)
        (seen,) = manager.until(
            lambda: [each for each in requests(manager) if each["phase"] == "generate"],
            "the request to be listed",
        )
        assert (seen["model"], seen["instance_id"], seen["stream"]) == ("slow", instance["id"], True)
        assert (seen["path"], seen["surface"], seen["address"]) == (
            "/v1/chat/completions",
            "proxy",
            "127.0.0.1",
        )
        assert seen["actor"] == "key:bootstrap"
        assert "secret plan" not in json.dumps(seen)
        begun = time.monotonic()
        ended = manager.http("DELETE", f"/api/requests/{seen['id']}", key=manage.secret)
        assert (ended.status, ended.json()) == (200, {"ok": True})
        last = [event for event in events if "error" in event][-1]
        assert f"cancelled by key:{key_name(manager, manage.id)}" in last
        assert json.loads(last)["error"]["code"] == "cancelled"
    manager.until(
        lambda: manager.busy_slots(instance["id"]) == 0, "the engine's slot to be free", seconds=FREE_S
    )
    measured("slot free after", time.monotonic() - begun)
    assert manager.until(lambda: requests(manager) == [], "the list to be empty")
    assert manager.admin("DELETE", f"/api/requests/{seen['id']}").status == 404
    assert manager.chat("slow", max_tokens=2).status == 200
    assert audit(manager, "requests.cancel")["object"] == seen["id"]


def key_name(manager: Manager, key_id: str) -> str:
    return next(str(key["name"]) for key in manager.manage("GET", "/api/api-keys") if key["id"] == key_id)


def test_one_that_waits_in_the_queue_can_be_cancelled_and_never_reaches_the_engine(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager = plain_manager
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as running:
        next(running.events())
        waiting = manager.ask("slow", max_tokens=2000)
        (queued,) = manager.until(
            lambda: [each for each in requests(manager) if each["phase"] == "queue"], "one in the queue"
        )
        manager.manage("DELETE", f"/api/requests/{queued['id']}")
        answer = waiting.answer()
        assert answer.status == 403
        assert "cancelled by local:uid:" in answer.error
        next(running.events())
    log = (manager.logs / f"{instance['id']}.log").read_text()
    assert log.count("processing task") == 1


def test_why_of_a_model_that_dies_while_loading(tempered: Callable[..., Manager]) -> None:
    manager = tempered("dies_loading")
    assert "is not loaded" in manager.manage("GET", "/api/why?target=tiny")["answer"]
    assert manager.chat("tiny").status == 503
    viewer, manager_key = manager.key("view").secret, manager.key("manage").secret
    seen = manager.http("GET", "/api/why?target=tiny", key=viewer).json()
    assert "tiny is failed: " in seen["answer"]
    assert "is not a GGUF file" in seen["answer"]
    assert "requests are refused for another" in seen["answer"]
    assert seen["breaker"]["seconds"] > 0
    assert [event["kind"] for event in seen["events"]][:2] == ["failed", "starting"]
    assert seen["detail"] is None
    assert "invalid magic" not in json.dumps(seen)
    detail = manager.http("GET", "/api/why?target=tiny", key=manager_key).json()["detail"]
    assert any("invalid magic" in line for line in detail["log_lines"])
    (instance,) = manager.instances()
    assert manager.manage("GET", f"/api/why?target={instance['id']}")["kind"] == "instance"


def test_why_of_one_that_sleeps_was_woken_and_was_stopped(plain_manager: Manager) -> None:
    manager = plain_manager
    made = manager.launch("tiny", wait=None, idle_timeout_min=0.01)

    def why() -> str:
        return str(manager.manage("GET", "/api/why?target=tiny")["answer"])

    manager.until(lambda: "tiny sleeps" in why(), "it to sleep")
    assert "(idle_timeout_min 0.01); the next request wakes it" in why()
    manager.stop(made["id"])
    assert "tiny is stopped: stopped by an administrator (local:uid:" in why()
    assert why().endswith("the next request starts it again")


def test_an_engine_s_start_is_in_the_audit_log_with_its_command_line(plain_manager: Manager) -> None:
    manager = plain_manager
    made = manager.launch("tiny", ctx_size=512)
    started = audit(manager, "engine.start")
    assert (started["object"], started["outcome"]) == (made["id"], "ok")
    assert started["actor"].startswith("local:uid:")
    argv = started["changes"]["argv"]
    assert argv[argv.index("--model") + 1].endswith("tiny.gguf")
    assert "512" in argv


def test_whom_the_door_turns_away_is_in_the_audit_log(plain_manager: Manager) -> None:
    manager = plain_manager
    assert manager.http("GET", "/api/instances", key="llm-" + "x" * 43).status == 401
    assert manager.chat("tiny", key="llm-" + "y" * 43).status == 401
    refused = audit(manager, "request.refused")
    assert (refused["actor"], refused["address"], refused["outcome"]) == ("none", "127.0.0.1", "refused")
    assert "Invalid API key" in refused["detail"]


def test_what_happens_comes_as_a_stream_and_goes_on_where_it_broke_off(plain_manager: Manager) -> None:
    manager = plain_manager
    viewer = manager.key("view").secret
    path = "/api/events/stream?topic=instances"
    with Request(manager.port, "GET", path, key=viewer) as stream:
        assert stream.begun.status == 200
        assert stream.begun.getheader("content-type") == "text/event-stream"
        made = manager.launch("tiny", wait=None)
        first = json.loads(next(stream.events()))
    assert (first["data"]["instance_id"], first["kind"]) == (made["id"], "queued")
    manager.wait_status(made["id"], "healthy")
    headers = {"Last-Event-ID": str(first["id"])}
    with Request(manager.port, "GET", path, key=viewer, headers=headers) as again:
        kinds = [json.loads(event)["kind"] for event in itertools.islice(again.events(), 3)]
    assert kinds == ["preparing", "starting", "ready"]
    assert call(manager.port, "GET", "/api/events/stream?topic=users", key=viewer).status == 400
    assert call(manager.port, "GET", "/api/events/stream").status == 401
