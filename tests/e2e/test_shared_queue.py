"""``share_queue``: whether requests through one instance's port may run on another instance of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Request


def running(manager: Manager) -> dict[str, int]:
    """How many requests each instance has now, seen in one moment."""
    return {each["id"]: each["queue"]["active"] for each in manager.instances()}


def served(manager: Manager) -> dict[str, int]:
    return {each["id"]: each["stats"]["total_requests"] for each in manager.instances()}


def two(manager: Manager, slow: Callable[[Manager], str], **options: Any) -> tuple[dict[str, Any], str]:
    """Two instances with a slot each, and the id of the second."""
    slow(manager)
    first, second = (manager.launch("slow", **ENDLESS, **options) for _ in range(2))
    return first, second["id"]


@pytest.fixture
def endless() -> Iterator[Callable[[Manager, dict[str, Any], int], list[Request]]]:
    """Sends streams to an instance's port that end when they are left, at the latest with the test."""
    with ExitStack() as stack:

        def send(manager: Manager, instance: dict[str, Any], count: int) -> list[Request]:
            asked = (
                manager.ask("slow", port=instance["port"], stream=True, max_tokens=FOR_EVER)
                for _ in range(count)
            )
            return [stack.enter_context(request) for request in asked]

        yield send


Endless = Callable[[Manager, dict[str, Any], int], list[Request]]


def test_with_it_requests_through_one_port_are_spread_over_all_instances(
    manager: Manager, slow: Callable[[Manager], str], endless: Endless
) -> None:
    first, other = two(manager, slow, share_queue=True)
    held = endless(manager, first, 2)
    manager.until(lambda: running(manager) == {first["id"]: 1, other: 1}, "one running on each")
    waiting = [manager.ask("slow", port=first["port"], max_tokens=2) for _ in range(2)]
    for each in held:
        each.disconnect()
    assert [each.answer().status for each in waiting] == [200] * 2
    assert sum(served(manager).values()) == 4
    assert min(served(manager).values()) >= 1


def test_without_it_they_stay_on_the_instance_whose_port_it_is(
    manager: Manager, slow: Callable[[Manager], str], endless: Endless
) -> None:
    first, other = two(manager, slow)
    (held,) = endless(manager, first, 1)
    manager.until(lambda: running(manager) == {first["id"]: 1, other: 0}, "one running")
    waiting = [manager.ask("slow", port=first["port"], max_tokens=2) for _ in range(3)]
    manager.until(lambda: manager.instance(first["id"])["queue"]["queued"] == 3, "three waiting")
    assert running(manager) == {first["id"]: 1, other: 0}
    assert manager.chat("slow", max_tokens=2).status == 200, "the other one is free for requests by name"
    assert served(manager)[other] == 1
    held.disconnect()
    assert [each.answer().status for each in waiting] == [200] * 3
    assert served(manager) == {first["id"]: 4, other: 1}


def test_saved_in_the_preset_it_counts_from_the_next_request_on(
    plain_manager: Manager, slow: Callable[[Manager], str], endless: Endless
) -> None:
    manager = plain_manager
    first, other = two(manager, slow)
    manager.preset("slow", share_queue=True, **ENDLESS)
    manager.until(lambda: manager.instance(first["id"])["config"]["share_queue"], "the preset to arrive")
    held = endless(manager, first, 2)
    manager.until(lambda: running(manager) == {first["id"]: 1, other: 1}, "one running on each")
    assert [each.begun.status for each in held] == [200] * 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_with_it_a_request_to_an_instance_that_sleeps_is_served_by_one_that_is_awake(
    plain_manager: Manager, stream: bool
) -> None:
    manager = plain_manager
    sleeper = manager.launch("tiny", wait=None, share_queue=True, idle_timeout_min=0.001)
    manager.wait_status(sleeper["id"], "sleeping")
    awake = manager.launch("tiny", share_queue=True)
    answer = manager.chat("tiny", port=sleeper["port"], stream=stream)
    assert answer.status == 200, answer.text
    assert served(manager) == {sleeper["id"]: 0, awake["id"]: 1}
    assert manager.instance(sleeper["id"])["status"] == "sleeping"


def test_conversations_that_take_turns_find_their_prompts_in_the_cache_of_an_instance_each(
    manager: Manager,
) -> None:
    instances = [manager.launch("tiny", cache_ram=0)["id"] for _ in range(2)]
    talks = {who: [{"role": "user", "content": f"{who} asks. " * 40}] for who in ("one", "other")}

    def cached(who: str) -> tuple[int, int]:
        answer = manager.chat("tiny", messages=talks[who], max_tokens=2, temperature=0).json()
        talks[who] += [answer["choices"][0]["message"], {"role": "user", "content": "and then?"}]
        usage = answer["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    before = {who: cached(who)[0] for who in talks}
    for _ in range(2):
        for who in talks:
            tokens, found = cached(who)
            assert found >= before[who] - 1, "all of the turns before"
            before[who] = tokens
    assert served(manager) == dict.fromkeys(instances, 3)
