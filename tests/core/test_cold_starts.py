"""How many models a key may start within a minute: the arithmetic, and what becomes of a start that is too many."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import Scope
from llamaman.core import cold_starts
from llamaman.core.admission import Policy
from llamaman.core.cold_starts import MINUTE_S, ColdStarts, counted_key
from llamaman.errors import TooManyRequests
from llamaman.gateway.grant import Grant
from llamaman.records import NOBODY, Identity, State

from .fake_runtime import World, outcome, play

NOW = 1000.0


def used(*begun: float, key: str = "k") -> ColdStarts:
    """A key that has begun a start at each of these moments."""
    starts = ColdStarts()
    for moment in begun:
        starts.claim(key).begun = moment
    return starts


# --- arithmetic -----------------------------------------------------------------------------------------


def test_up_to_the_limit_nobody_waits() -> None:
    assert ColdStarts().wait_s("k", 1, NOW) == 0
    assert used(NOW, NOW).wait_s("k", 3, NOW) == 0


def test_one_too_many_waits_until_the_first_is_a_minute_old() -> None:
    assert used(NOW - 50, NOW - 20, NOW).wait_s("k", 3, NOW) == 10
    assert used(NOW - 60, NOW - 20, NOW).wait_s("k", 3, NOW) == 0


def test_keys_do_not_pay_for_each_other() -> None:
    assert used(NOW, key="other").wait_s("k", 1, NOW) == 0


def test_who_waits_already_is_served_before() -> None:
    starts = used(NOW - 50, NOW - 20)
    assert [starts.wait_s("k", 2, NOW, ahead) for ahead in range(4)] == [10, 40, 70, 100]
    assert [ColdStarts().wait_s("k", 2, NOW, ahead) for ahead in range(4)] == [0, 0, 60, 60]


def test_one_that_waits_for_room_counts_as_if_it_began_now() -> None:
    starts = ColdStarts()
    claim = starts.claim("k")
    assert starts.wait_s("k", 1, NOW + 500) == MINUTE_S
    claim.begun = NOW
    assert starts.wait_s("k", 1, NOW + 1) == MINUTE_S - 1


def test_one_that_came_to_nothing_does_not_count() -> None:
    starts = ColdStarts()
    starts.give_back(starts.claim("k"))
    assert starts.wait_s("k", 1, NOW) == 0
    assert not starts.known(NOW)


def test_a_lower_limit_counts_at_once() -> None:
    assert used(NOW - 50, NOW - 40, NOW - 30).wait_s("k", 1, NOW) == 30


def test_a_key_that_has_been_idle_for_a_minute_is_forgotten() -> None:
    starts = used(NOW)
    assert starts.known(NOW + MINUTE_S - 1) == {"k"}
    starts.wait_s("other", 1, NOW + MINUTE_S)
    assert not starts.known(NOW + MINUTE_S)


def test_no_minute_ever_has_more_than_the_limit_and_no_wait_is_longer_than_needed() -> None:
    chance = random.Random(3)
    for limit in (1, 2, 6):
        starts, now, begun = ColdStarts(), 0.0, []
        for _ in range(300):
            now += chance.choice([0, 0, 0.5, 9, 40])
            wait = starts.wait_s("k", limit, now)
            if wait:
                within = [moment for moment in begun if moment > now - MINUTE_S]
                assert len(within) == limit
                assert wait == pytest.approx(min(within) + MINUTE_S - now)
                now += wait
            starts.claim("k").begun = now
            begun.append(now)
        for first, late in zip(begun, begun[limit:], strict=False):
            assert late - first >= MINUTE_S - 1e-6


@pytest.mark.parametrize(
    ("identity", "counted"),
    [
        (Identity("key", "a", Scope.INFERENCE, "1"), "1"),
        (Identity("key", "a", Scope.MANAGE, "1"), None),
        (Identity("key", "a", Scope.ADMIN, "1"), None),
        (Identity("session", "anna", Scope.ADMIN), None),
        (Identity("session", "max", Scope.VIEW), None),
        (NOBODY, None),
    ],
)
def test_only_starts_of_keys_that_may_not_manage_are_counted(identity: Identity, counted: str | None) -> None:
    assert counted_key(identity) == counted


# --- starts that wait for their key's turn --------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    world.policy = Policy(max_models=0, cold_starts_per_minute=1)
    world.request_timeout_s = 500.0
    return world


async def use(world: World, model: str, key: str | None = "k", **given: Any) -> None:
    (await world.grant(model, key=key, **given)).release()


def soon(world: World, model: str, key: str | None = "k", **given: Any) -> asyncio.Task[Grant]:
    return asyncio.get_running_loop().create_task(world.grant(model, key=key, **given))


async def waits(world: World, model: str) -> str:
    await world.until(lambda: model in dict(world.instances.waits()), f"{model} to wait")
    return dict(world.instances.waits())[model]


def states(world: World) -> dict[str, State]:
    return {view.model: view.state for view in world.instances.views()}


def test_one_too_many_waits_for_its_turn_and_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        await use(world, "alpha")
        late = soon(world, "beta")
        assert await waits(world, "beta") == (
            "a turn of its key, which may start 1 model a minute; the next is in 60 s"
        )
        (event,) = world.events.since("admission", 0)
        assert (event.kind, event.data["model"], event.data["cold_starts_per_minute"]) == (
            "waiting",
            "beta",
            1,
        )
        assert event.reason.startswith("model 'beta' waits for a turn of its key")
        assert set(states(world)) == {"alpha"}
        monkeypatch.setattr(cold_starts, "MINUTE_S", 0.1)  # and now a minute is over
        (await late).release()
        assert not world.instances.waits()

    play(world, story)


def test_what_is_loaded_is_used_without_limit(world: World) -> None:
    async def story(world: World) -> None:
        for _ in range(5):
            await use(world, "alpha")

    play(world, story)


def test_waking_counts_like_starting(world: World) -> None:
    async def story(world: World) -> None:
        await use(world, "alpha")
        world.instances.unload(world.models["alpha"].path)
        await world.until(lambda: states(world) == {"alpha": State.SLEEPING}, "it to sleep")
        again = soon(world, "alpha")
        await waits(world, "alpha")
        again.cancel()
        await world.until(lambda: not world.instances.waits(), "it to be given up")
        assert states(world) == {"alpha": State.SLEEPING}

    play(world, story)


def test_embedding_models_count_too(world: World) -> None:
    world.presets[world.models["beta"].path] = {"embedding_model": True}

    async def story(world: World) -> None:
        await use(world, "alpha")
        late = soon(world, "beta")
        await waits(world, "beta")
        late.cancel()

    play(world, story)


def test_whoever_has_no_limit_starts_what_it_wants(world: World) -> None:
    async def story(world: World) -> None:
        for model in ("alpha", "beta", "gamma"):
            await use(world, model, key=None)

    play(world, story)


def test_zero_is_no_limit(world: World) -> None:
    world.policy = Policy(max_models=0, cold_starts_per_minute=0)

    async def story(world: World) -> None:
        for model in ("alpha", "beta", "gamma"):
            await use(world, model)

    play(world, story)


def test_the_turn_of_another_key_serves_who_waits_for_the_same_model(world: World) -> None:
    async def story(world: World) -> None:
        await use(world, "alpha")
        late = soon(world, "beta")
        await waits(world, "beta")
        await use(world, "beta", key="other")
        (await late).release()
        other = soon(world, "gamma", key="other")
        assert "turn of its key" in await waits(world, "gamma"), "it was the other key's start"
        other.cancel()

    play(world, story)


def test_a_start_that_somebody_else_made_costs_nothing(world: World) -> None:
    async def story(world: World) -> None:
        world.policy = Policy(max_models=1, cold_starts_per_minute=1)
        world.drain_timeout_s = 5
        held = await world.grant("alpha", launcher="ollama")
        first = soon(world, "beta", key=None, launcher="ollama")
        await waits(world, "beta")
        second = soon(world, "beta", launcher="ollama")
        held.release()
        for each in (first, second):
            (await each).release()
        await use(world, "gamma", launcher="ollama")

    world.drain_timeout_s = 5
    play(world, story)


def test_nobody_of_another_key_waits_behind_one_that_has_to_wait_for_its_turn(world: World) -> None:
    async def story(world: World) -> None:
        await use(world, "alpha", launcher="ollama")
        late = soon(world, "beta", launcher="ollama")
        await waits(world, "beta")
        await use(world, "gamma", key="other", launcher="ollama")
        assert not late.done()
        late.cancel()

    world.drain_timeout_s = 5
    play(world, story)


def test_each_start_that_waits_counts_those_of_its_key_before_it(world: World) -> None:
    async def story(world: World) -> None:
        await use(world, "alpha")
        late = []
        for model, at_least in (("beta", 40), ("gamma", 100)):
            late.append(soon(world, model))
            told = re.search(r"in (\d+) s$", await waits(world, model))
            assert told is not None
            assert at_least <= int(told[1]) <= at_least + 20, "a minute after the one before"
        for task in late:
            task.cancel()

    play(world, story)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_key_keeps_its_own_order(world: World, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    world.policy = Policy(max_models=0, cold_starts_per_minute=limit)

    async def story(world: World) -> None:
        order: list[str] = []
        world.instances.subscribe(lambda i, before: order.append(i.model) if before is None else None)
        models = ["gamma", "alpha", "beta"]
        tasks = []
        for number, model in enumerate(models):
            tasks.append(soon(world, model))
            if number < limit:
                (await tasks[-1]).release()
            else:
                await waits(world, model)
        monkeypatch.setattr(cold_starts, "MINUTE_S", 0.3)
        for task in tasks[limit:]:
            (await task).release()
        assert order == models

    play(world, story)


def test_a_turn_that_comes_too_late_is_a_429_that_says_when_and_what_to_do(world: World) -> None:
    world.request_timeout_s = 30.0

    async def story(world: World) -> None:
        await use(world, "alpha")
        error = await outcome(soon(world, "beta"))
        assert isinstance(error, TooManyRequests)
        assert error.status == 429
        assert error.message == (
            "this key may start 1 model a minute (setting inference.cold_starts_per_minute), and its next turn is "
            "in 60 s, which is longer than a request may wait (REQUEST_TIMEOUT 30); ask for a model that is loaded, "
            "or try again then"
        )
        assert (error.retry_after, error.inputs["next_turn_s"]) == (60, 60)
        assert error.inputs["cold_starts_per_minute"] == 1
        (event,) = world.events.since("admission", 0)
        assert (event.kind, event.reason) == ("refused", error.message)
        await use(world, "alpha")

    play(world, story)


def test_a_limit_that_is_lifted_lets_those_who_wait_go_on(world: World) -> None:
    async def story(world: World) -> None:
        await use(world, "alpha")
        late = soon(world, "beta")
        await waits(world, "beta")
        world.policy = Policy(max_models=0)
        (await late).release()

    play(world, story)


def test_many_at_once_are_never_more_than_the_limit(world: World) -> None:
    world.policy = Policy(max_models=0, cold_starts_per_minute=2)

    async def story(world: World) -> None:
        pairs = itertools.product(("alpha", "beta", "gamma"), range(4))
        tasks = [soon(world, model) for model, _ in pairs]
        await world.until(lambda: len(world.instances.waits()) == 1, "the third model to wait")
        await world.until(lambda: sum(task.done() for task in tasks) >= 4, "two models")
        assert len(states(world)) == 2
        for task in tasks:
            if task.done():
                task.result().release()
            task.cancel()
        await world.until(lambda: not world.instances.waits(), "nobody to wait")
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    play(world, story)
