"""Engines whose one loop gets no further while ``/health`` answers: noticed, told, replaced, and never by mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from llamaman.testing import processes
from llamaman.testing.engines import TestEngine
from llamaman.testing.manager import Manager

#: Each letter that may be left out is one more way to go on: all of them are compared, for minutes, in the one loop.
EXPANDING = {"grammar": "root ::= " + "[ -~]? " * 6000}


def test_an_engine_that_a_request_holds_fast_is_replaced_and_whoever_waited_is_served(
    real_engine: TestEngine, new_manager: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = new_manager(binary=real_engine.binary)
    manager.setting(**{"instances.frozen_after_s": 2})
    instance = manager.launch("tiny")
    sender = manager.key("inference")
    with manager.ask("tiny", key=sender.secret, stream=True, **EXPANDING) as holding:
        manager.until(lambda: manager.instance(instance["id"])["queue"]["active"] == 1, "the request")
        waiting = at_once.submit(manager.chat, "tiny", max_tokens=2)
        told = holding.answer()
    assert (told.status, told.error) == (503, "the engine was frozen for 2 s and was ended")
    assert waiting.result(60).status == 200, "by the next engine"
    again = manager.instance(instance["id"])
    assert (again["generation"], again["stats"]["crash_count"]) == (2, 0)
    refused = manager.chat("tiny", key=sender.secret, stream=True, **EXPANDING)
    assert refused.status == 422, "that would only freeze the next one"
    events = [e for e in manager.manage("GET", "/api/events?topic=instances") if e["data"]["generation"] == 1]
    assert [e["reason"] for e in events if e["kind"] == "stopping"] == [
        "frozen: the engine got no further for 2 s (instances.frozen_after_s)"
    ]
    (blamed,) = (e for e in events if e["kind"] == "frozen_by_request")
    assert blamed["data"]["key_id"] == sender.id
    assert "restarting a frozen engine" in manager.manage("GET", "/api/why?target=tiny")["answer"]


def test_an_engine_whose_process_stands_still_is_replaced_under_a_stream_that_had_begun(
    manager: Manager, slow: Callable[[Manager], str]
) -> None:
    manager.setting(**{"instances.frozen_after_s": 1})
    try:
        instance = manager.launch(slow(manager))
        with manager.ask("slow", stream=True, max_tokens=2000) as request:
            events = request.events()
            next(events)
            processes.freeze(instance["pid"])
            *_, last = events
    finally:
        manager.setting(**{"instances.frozen_after_s": 120})
    assert json.loads(last)["error"]["message"] == "the engine was frozen for 1 s and was ended"
    again = manager.until(lambda: replaced(manager, instance["id"]), "the replacement")
    assert set(manager.engines()) == {again["pid"]}
    events = manager.manage("GET", "/api/events?topic=instances")
    assert "frozen_by_request" not in [e["kind"] for e in events], "it computed nothing: no request did that"


def test_an_engine_that_takes_long_for_an_answer_but_goes_on_is_not_taken_for_a_frozen_one(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("slow", first_token_ms=2500)
    manager.setting(**{"instances.frozen_after_s": 0.4})
    instance = manager.launch("tiny")
    assert manager.chat("tiny", max_tokens=2).status == 200
    assert manager.instance(instance["id"])["generation"] == 1


def replaced(manager: Manager, instance_id: str) -> dict[str, object] | None:
    seen = manager.instance(instance_id)
    return seen if seen["generation"] == 2 and seen["status"] == "healthy" else None
