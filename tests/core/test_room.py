"""How starts wait for room, and who has to leave for them: the registry, its supervisors and the pools together."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaman.core import admission
from llamaman.core.admission import Policy
from llamaman.core.demand import Demand
from llamaman.core.library_contract import Library
from llamaman.core.room import Unwanted
from llamaman.errors import LlamaManError, ModelUnavailable
from llamaman.gateway.grant import Grant
from llamaman.gateway.preload import preload
from llamaman.records import State

from .fake_runtime import World, outcome, play


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(admission, "SHORTEST_STAY_S", 0.1)
    world = World(tmp_path)
    world.policy = Policy(max_models=1)
    return world


def ask(world: World, model: str, **given: Any) -> asyncio.Task[Grant]:
    return asyncio.get_running_loop().create_task(world.grant(model, launcher="ollama", **given))


async def waits(world: World, model: str) -> str:
    """For what a start of the model waits; returns when it does."""
    await world.until(lambda: model in dict(world.instances.waits()), f"{model} to wait")
    return dict(world.instances.waits())[model]


def running(world: World) -> set[str]:
    return {view.model for view in world.instances.views() if view.state is State.READY}


# --- one at a time ------------------------------------------------------------------------------------


def test_one_that_nobody_uses_leaves_at_once_for_another(world: World) -> None:
    async def story(world: World) -> None:
        (await ask(world, "alpha")).release()
        (await ask(world, "beta")).release()
        assert running(world) == {"beta"}
        (alpha,) = [view for view in world.instances.views() if view.model == "alpha"]
        assert (alpha.state, alpha.reason) == (State.SLEEPING, "evicted for model 'beta'")

    play(world, story)


def test_one_in_use_finishes_what_runs_before_it_leaves(world: World) -> None:
    async def story(world: World) -> None:
        world.drain_timeout_s = 5
        held = await ask(world, "alpha")
        second = ask(world, "beta")
        instance = await world.reach(held.instance.id, State.DRAINING)
        await asyncio.sleep(0.05)
        assert instance.state is State.DRAINING
        assert not second.done()
        held.release()
        (await second).release()

    world.drain_timeout_s = 5
    play(world, story)


def test_until_it_has_stayed_for_a_while_its_own_requests_go_first(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(admission, "SHORTEST_STAY_S", 0.3)
    order: list[str] = []

    async def use(model: str) -> None:
        grant = await world.grant(model, launcher="ollama")
        order.append(model)
        await asyncio.sleep(0.02)
        grant.release()

    async def story(world: World) -> None:
        first = ask(world, "alpha")
        (await first).release()
        await asyncio.gather(*(use(model) for model in ["alpha", "beta", "alpha", "alpha", "beta", "alpha"]))
        assert order == ["alpha"] * 4 + ["beta"] * 2, "two loads, not five"

    play(world, story)


def test_nobody_starves_however_many_ask_for_what_is_loaded(world: World) -> None:
    async def story(world: World) -> None:
        stop = asyncio.Event()

        async def keep_asking() -> None:
            while not stop.is_set():
                grant = await world.grant("alpha", launcher="ollama")
                await asyncio.sleep(0.01)
                grant.release()

        askers = [asyncio.create_task(keep_asking()) for _ in range(5)]
        await world.until(lambda: running(world) == {"alpha"}, "alpha")
        grant = await asyncio.wait_for(ask(world, "beta"), 10)
        grant.release()
        stop.set()
        await asyncio.gather(*askers)  # and those who were evicted are answered, too

    world.drain_timeout_s = 5
    play(world, story)


@pytest.mark.parametrize("idle_timeout_min", [0, 30])
def test_those_who_waited_for_what_had_to_leave_are_answered_when_it_is_back(
    world: World, idle_timeout_min: float
) -> None:
    """One that was launched by hand without an idle time would not wake otherwise."""

    async def story(world: World) -> None:
        world.policy = Policy(max_models=1, ollama_may_evict_admin=True)
        alpha = await world.running("alpha", idle_timeout_min=idle_timeout_min)
        held = [await ask(world, "alpha") for _ in range(alpha.capacity)]
        waiting = ask(world, "alpha")
        other = ask(world, "beta")
        await world.reach(alpha.id, State.DRAINING)
        for grant in held:
            grant.release()
        (await other).release()
        grant = await waiting
        assert (grant.instance.id, alpha.generation) == (alpha.id, 2)
        grant.release()

    world.drain_timeout_s = 5
    play(world, story)


def test_starts_come_in_the_order_of_asking(world: World) -> None:
    order: list[str] = []

    async def use(model: str) -> None:
        grant = await world.grant(model, launcher="ollama")
        order.append(model)
        await asyncio.sleep(0.01)
        grant.release()

    async def story(world: World) -> None:
        world.drain_timeout_s = 5
        held = await ask(world, "alpha")
        later = []
        for model in ("gamma", "beta"):
            later.append(asyncio.create_task(use(model)))
            await waits(world, model)
        assert [model for model, _ in world.instances.waits()] == ["gamma", "beta"]
        assert "behind gamma" in dict(world.instances.waits())["beta"]
        held.release()
        await asyncio.gather(*later)
        assert order == ["gamma", "beta"]

    world.drain_timeout_s = 5
    play(world, story)


def test_a_busy_one_that_does_not_finish_is_kept_and_the_newcomer_told(world: World) -> None:
    async def story(world: World) -> None:
        held = await ask(world, "alpha")
        error = await outcome(ask(world, "beta"))
        assert isinstance(error, ModelUnavailable)
        assert (
            error.message == "what is loaded is busy and could not be evicted within 0.15 s (DRAIN_TIMEOUT)"
        )
        assert "alpha" in str(error.detail), "which one is for those who may see it"
        assert held.instance.state is State.READY
        held.release()

    play(world, story)


def test_of_two_busy_ones_the_second_is_tried_when_the_first_does_not_finish(world: World) -> None:
    async def story(world: World) -> None:
        world.policy = Policy(max_models=2)
        held = await ask(world, "alpha")
        other = await ask(world, "beta")
        third = ask(world, "gamma")
        await world.reach(other.instance.id, State.DRAINING, seconds=10)
        other.release()
        (await third).release()
        assert held.instance.state is State.READY
        held.release()

    play(world, story)


# --- the cap -------------------------------------------------------------------------------------------


def test_never_more_than_the_limit_whoever_asks_for_what_at_once(world: World) -> None:
    async def story(world: World) -> None:
        world.policy = Policy(max_models=2)
        most = 0
        world.runtime.script.start_s = 0.005

        def look(*_: Any) -> None:
            nonlocal most
            most = max(most, len({handle.instance_id for handle in world.runtime.live.values()}))

        world.instances.subscribe(look)

        async def use(model: str) -> None:
            grant = await world.grant(model, launcher="ollama")
            await asyncio.sleep(0.002)
            grant.release()

        models = itertools.islice(itertools.cycle(["alpha", "beta", "gamma"]), 90)
        await asyncio.gather(*(use(model) for model in models))
        assert most == 2
        assert len(world.instances.views()) == 3

    world.drain_timeout_s = 5
    play(world, story)


@pytest.mark.parametrize("launcher", ["openai", "ollama"])
def test_what_may_not_be_evicted_is_a_refusal_at_once_with_its_figures(world: World, launcher: Any) -> None:
    async def story(world: World) -> None:
        await world.running("alpha")
        with pytest.raises(ModelUnavailable) as error:
            await world.grant("beta", launcher=launcher)
        assert (
            error.value.message
            == {
                "openai": "model limit reached (LLAMAMAN_MAX_MODELS=1); the OpenAI API does not evict running models",
                "ollama": "model limit reached (LLAMAMAN_MAX_MODELS=1); "
                "admin-launched models cannot be evicted via the API",
            }[launcher]
        )
        assert error.value.inputs["launched_by_hand"] == 1
        (event,) = world.events.since("admission", 0)
        assert (event.kind, event.actor, event.data["model"]) == ("refused", launcher, "beta")
        assert event.data["max_models"] == 1

    play(world, story)


def test_an_openai_refusal_does_not_take_an_ollama_request_for_the_same_model_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "SHORTEST_STAY_S", 30.0)  # nobody has to leave yet

    async def story(world: World) -> None:
        held = await ask(world, "alpha")
        ollama = ask(world, "beta")
        await waits(world, "beta")
        assert isinstance(await outcome(asyncio.create_task(world.grant("beta"))), LlamaManError)
        assert not ollama.done()
        monkeypatch.setattr(admission, "SHORTEST_STAY_S", 0.1)
        held.release()
        (await ollama).release()

    world.drain_timeout_s = 5
    play(world, story)


def test_an_embedding_model_waits_for_nobody(world: World) -> None:
    async def story(world: World) -> None:
        held = await ask(world, "alpha")
        waiting = ask(world, "beta")
        await waits(world, "beta")
        await world.running("gamma", embedding_model=True)
        held.release()
        (await waiting).release()

    world.drain_timeout_s = 5
    play(world, story)


@pytest.mark.parametrize("may", [False, True])
def test_no_model_that_is_loaded_at_the_start_makes_another_one_leave(world: World, may: bool) -> None:
    async def story(world: World) -> None:
        world.policy = Policy(max_models=1, openai_may_evict_managed=may, ollama_may_evict_admin=may)
        library = cast(Library, SimpleNamespace(find=world.models.__getitem__))
        await preload(["alpha", "beta"], library, world.pools)
        assert running(world) == {"alpha"}
        (event,) = world.events.since("admission", 0)
        assert event.reason == "model limit reached (LLAMAMAN_MAX_MODELS=1); what is preloaded evicts nothing"

    play(world, story)


# --- who leaves the queue -------------------------------------------------------------------------------


def test_a_model_that_nobody_waits_for_any_more_is_not_loaded(world: World) -> None:
    async def story(world: World) -> None:
        held = await ask(world, "alpha")
        waiting = ask(world, "beta")
        await waits(world, "beta")
        waiting.cancel()
        await asyncio.wait({waiting})
        held.release()
        await world.until(lambda: not world.instances.waits(), "the queue to be empty")
        assert {view.model for view in world.instances.views()} == {"alpha"}

    world.drain_timeout_s = 5
    play(world, story)


def test_who_asks_again_at_that_moment_is_served(world: World) -> None:
    async def story(world: World) -> None:
        held = await ask(world, "alpha")
        for _ in range(20):
            waiting = ask(world, "beta")
            await asyncio.sleep(0.003)
            waiting.cancel()
        last = ask(world, "beta")
        held.release()
        (await asyncio.wait_for(last, 10)).release()

    world.drain_timeout_s = 5
    play(world, story)


def test_patience_ends_with_what_was_waited_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(admission, "SHORTEST_STAY_S", 30.0)
    world = World(tmp_path)
    world.policy = Policy(max_models=1)
    world.request_timeout_s = 0.2

    async def story(world: World) -> None:
        held = await ask(world, "alpha")
        error = await outcome(ask(world, "beta"))
        assert isinstance(error, ModelUnavailable)
        assert error.message == "no room for model 'beta' within 0.2 s (REQUEST_TIMEOUT)"
        assert "it waited for room: alpha" in str(error.detail)
        held.release()

    play(world, story)


def test_a_manager_that_ends_sends_those_who_wait_away(world: World) -> None:
    async def main() -> None:
        async with world.manager(stop_engines=True):
            held = await ask(world, "alpha")
            waiting = ask(world, "beta")
            await waits(world, "beta")
            held.release()
        assert isinstance(await outcome(waiting), LlamaManError)

    world.drain_timeout_s = 5
    asyncio.run(asyncio.wait_for(main(), 30))


def test_an_unwanted_start_is_no_failure_of_anybody(world: World) -> None:
    assert issubclass(Unwanted, ModelUnavailable)

    async def story(world: World) -> None:
        held = await ask(world, "alpha")
        await world.instances.ensure_running(Demand(world.models["beta"], "ollama", wanted=lambda: False))
        held.release()

    world.drain_timeout_s = 5
    play(world, story)


def test_who_makes_room_is_not_overtaken_by_who_comes_meanwhile(world: World) -> None:
    order: list[str] = []

    async def use(model: str) -> None:
        grant = await world.grant(model, launcher="ollama")
        order.append(model)
        grant.release()

    async def story(world: World) -> None:
        (await ask(world, "alpha")).release()
        world.runtime.script.stop_s = 0.1
        first = asyncio.create_task(use("beta"))
        (alpha,) = world.instances.views()
        await world.reach(alpha.id, State.STOPPING)
        second = asyncio.create_task(use("gamma"))
        await asyncio.gather(first, second)
        assert order == ["beta", "gamma"]

    world.drain_timeout_s = 5
    play(world, story)


def test_a_start_for_what_has_come_meanwhile_makes_nobody_leave_and_is_not_refused(world: World) -> None:
    async def story(world: World) -> None:
        (await ask(world, "alpha")).release()
        world.runtime.script.stop_s = 0.1
        ollama = ask(world, "beta")
        (alpha,) = world.instances.views()
        await world.reach(alpha.id, State.STOPPING)
        openai = asyncio.create_task(world.grant("beta"))  # it may evict nobody, and need not
        (await ollama).release()
        (await openai).release()
        assert running(world) == {"beta"}
        assert not [event for event in world.events.since("admission", 0) if event.kind == "refused"]

    world.drain_timeout_s = 5
    play(world, story)
