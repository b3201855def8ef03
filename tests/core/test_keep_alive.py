"""How long clients may keep a model, unload it, and ask for more context."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.demand import Demand
from llamaman.core.instance import Instance
from llamaman.errors import LlamaManError
from llamaman.records import State

from .fake_runtime import World, play


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def use(world: World, keep_alive: float | None = None, **given: Any) -> Instance:
    """One request, as the pipeline ends it."""
    grant = await world.grant(**given)
    grant.release()
    world.instances.keep_alive(grant.instance, keep_alive)
    return grant.instance


# --- keep_alive -----------------------------------------------------------------------------------------


def test_a_model_sleeps_after_the_time_that_a_client_asked_for(world: World) -> None:
    async def story(world: World) -> None:
        instance = await use(world, 0.05)
        await world.reach(instance.id, State.SLEEPING)
        assert instance.reason.startswith("idle for")

    play(world, story)


def test_zero_means_as_soon_as_nobody_needs_it(world: World) -> None:
    async def story(world: World) -> None:
        held = await world.grant()
        instance = held.instance
        world.instances.keep_alive(instance, 0)
        await asyncio.sleep(0.1)
        assert instance.state is State.READY, "a running request is not cut"
        held.release()
        await world.reach(instance.id, State.SLEEPING)
        assert instance.reason == "unloaded by a client"

    play(world, story)


def test_for_ever_outlasts_the_managers_own_time(world: World) -> None:
    world.managed_idle_timeout_s = 0.05

    async def story(world: World) -> None:
        instance = await use(world, math.inf)
        assert instance.view().expires is None
        await asyncio.sleep(0.2)
        assert instance.state is State.READY
        world.instances.keep_alive(instance, 0.05)
        await world.reach(instance.id, State.SLEEPING)

    play(world, story)


def test_a_request_without_it_changes_nothing_and_a_new_load_begins_anew(world: World) -> None:
    async def story(world: World) -> None:
        instance = await use(world, 100.0)
        await use(world)
        assert instance.view().expires == pytest.approx(time.time() + 100, abs=5)
        world.instances.unload(world.models["alpha"].path)
        await world.reach(instance.id, State.SLEEPING)
        await use(world)
        assert instance.view().expires is None
        assert instance.state is State.READY

    play(world, story)


def test_what_was_asked_of_a_run_that_has_ended_meanwhile_does_not_count_for_the_next(world: World) -> None:
    async def story(world: World) -> None:
        grant = await world.grant()
        instance = grant.instance
        await asyncio.to_thread(world.instances.stop, instance.id, "test", True)
        grant.release()
        world.instances.keep_alive(instance, 100.0)
        await use(world)
        assert instance.view().expires is None

    play(world, story)


def test_what_was_launched_by_hand_keeps_its_own_time(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running(idle_timeout_min=5)
        await use(world, 0)
        world.instances.unload(world.models["alpha"].path)
        await asyncio.sleep(0.1)
        assert instance.state is State.READY
        assert instance.view().expires == pytest.approx(time.time() + 300, abs=5)

    play(world, story)


@pytest.mark.parametrize("generation", [0, 1], ids=["before its start", "during its start"])
def test_an_unload_during_the_load_is_done_when_those_who_wait_were_served(
    world: World, generation: int
) -> None:
    world.runtime.script.start_s = 0.1

    async def story(world: World) -> None:
        asking = asyncio.create_task(world.grant())
        while [view.generation for view in world.instances.views()] != [generation]:
            await asyncio.sleep(0)
        world.instances.unload(world.models["alpha"].path)
        grant = await asking
        await asyncio.sleep(0.05)
        assert grant.instance.state is State.READY
        grant.release()
        await world.reach(grant.instance.id, State.SLEEPING)

    play(world, story)


# --- context -------------------------------------------------------------------------------------------


def test_a_start_by_request_has_the_context_that_was_asked_for_but_never_less_than_usual(
    world: World,
) -> None:
    async def story(world: World) -> None:
        assert (await use(world, context=9000)).options["ctx_size"] == 9000
        assert (await use(world, model="beta", context=512)).options["ctx_size"] == 4096

    play(world, story)


def test_a_preset_wins_over_what_clients_ask_for(world: World) -> None:
    world.presets[world.models["alpha"].path] = {"ctx_size": 2048}

    async def story(world: World) -> None:
        assert (await use(world, context=9000)).options["ctx_size"] == 2048

    play(world, story)


def test_a_wish_under_which_the_model_did_not_load_does_not_last(world: World) -> None:
    async def story(world: World) -> None:
        world.runtime.script.dies_at_once = True
        with pytest.raises(LlamaManError):
            await use(world, context=9000)
        (instance,) = world.instances.views()
        await world.reach(instance.id, State.FAILED, seconds=20)
        world.runtime.script.dies_at_once = False
        assert (await use(world)).options["ctx_size"] == 4096, (
            "others pay neither with memory nor with a pause"
        )

    play(world, story)


def test_it_comes_back_with_more_only_where_that_is_allowed_and_nobody_uses_it(world: World) -> None:
    async def story(world: World) -> None:
        instance = await use(world)
        instance.context_length = 4096
        demand = Demand(world.models["alpha"], "ollama", context=9000)
        await world.instances.enlarge(demand)
        assert instance.state is State.READY, "the setting is off"
        world.may_enlarge = True
        held = await world.grant()
        await world.instances.enlarge(demand)
        assert instance.state is State.READY, "it is in use"
        held.release()
        await world.instances.enlarge(Demand(world.models["alpha"], "ollama", context=4096))
        assert instance.state is State.READY, "it has that much"
        await world.instances.enlarge(demand)
        assert instance.state is State.SLEEPING
        await use(world, context=9000)
        assert instance.options["ctx_size"] == 9000
        await use(world, context=100)
        assert (instance.generation, instance.options["ctx_size"]) == (2, 9000), "never a restart for less"

    play(world, story)
