"""``share_queue``: whether requests through one instance's port may run on another instance of the model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llamaman.testing.manager import Manager


def running(manager: Manager) -> dict[str, int]:
    """How many requests each instance has now, seen in one moment."""
    return {each["id"]: each["queue"]["active"] for each in manager.instances()}


def served(manager: Manager) -> dict[str, int]:
    return {each["id"]: each["stats"]["total_requests"] for each in manager.instances()}


def two(manager: Manager, slow: Callable[[Manager], str], **options: Any) -> tuple[dict[str, Any], str]:
    """Two instances with a slot each, and the id of the second."""
    slow(manager)
    first, second = (manager.launch("slow", ctx_size=8192, **options) for _ in range(2))
    return first, second["id"]


def test_with_it_requests_through_one_port_are_spread_over_all_instances(
    manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    first, other = two(manager, slow, share_queue=True)
    requests = [at_once.submit(manager.chat, "slow", port=first["port"], max_tokens=600) for _ in range(4)]
    manager.until(lambda: running(manager) == {first["id"]: 1, other: 1}, "one running on each")
    answers = [request.result(60) for request in requests]
    assert [answer.status for answer in answers] == [200] * 4
    assert sum(served(manager).values()) == 4
    assert min(served(manager).values()) >= 1


def test_without_it_they_stay_on_the_instance_whose_port_it_is(
    manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    first, other = two(manager, slow)
    requests = [at_once.submit(manager.chat, "slow", port=first["port"], max_tokens=300) for _ in range(4)]
    manager.until(lambda: running(manager) == {first["id"]: 1, other: 0}, "one running")
    assert manager.chat("slow", max_tokens=2).status == 200, "the other one is free for requests by name"
    assert served(manager)[other] == 1
    assert [request.result(60).status for request in requests] == [200] * 4
    assert served(manager) == {first["id"]: 4, other: 1}


def test_saved_in_the_preset_it_counts_from_the_next_request_on(
    plain_manager: Manager, slow: Callable[[Manager], str], at_once: ThreadPoolExecutor
) -> None:
    manager = plain_manager
    first, other = two(manager, slow)
    manager.preset("slow", ctx_size=8192, share_queue=True)
    manager.until(lambda: manager.instance(first["id"])["config"]["share_queue"], "the preset to arrive")
    requests = [at_once.submit(manager.chat, "slow", port=first["port"], max_tokens=600) for _ in range(2)]
    manager.until(lambda: running(manager) == {first["id"]: 1, other: 1}, "one running on each")
    assert [request.result(60).status for request in requests] == [200] * 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_with_it_a_request_to_an_instance_that_sleeps_is_served_by_one_that_is_awake(
    plain_manager: Manager, stream: bool
) -> None:
    manager = plain_manager
    sleeper = manager.launch("tiny", share_queue=True, idle_timeout_min=0.001)
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
