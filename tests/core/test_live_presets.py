"""What a saved preset changes for instances that run, and what it leaves for their next launch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import launch
from llamaman.errors import LaunchError
from llamaman.records import State

from .fake_runtime import World

#: The documented list of what applies without a relaunch, each with a value that is not its default.
LIVE: Mapping[str, Any] = {
    "idle_timeout_min": 7,
    "max_concurrent": 3,
    "max_queue_depth": 9,
    "share_queue": True,
    "proxy_sampling_override_enabled": True,
    "proxy_sampling_temperature": 0.1,
    "proxy_sampling_top_k": 5,
    "proxy_sampling_top_p": 0.2,
    "proxy_sampling_presence_penalty": 0.3,
    "proxy_sampling_repeat_penalty": 1.4,
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def play(world: World, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with world.manager():
            await story()
            await world.rest()
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 30))


def save(world: World, preset: Mapping[str, Any]) -> None:
    world.presets[world.models["alpha"].path] = preset
    world.instances.preset_saved("alpha")


def test_it_counts_in_place_of_what_the_launch_said(world: World) -> None:
    async def story() -> None:
        everything = {**launch.defaults(), "ctx_size": 2048}  # as a launch form sends it
        made = await world.launch("alpha", **everything)
        save(world, {**LIVE, "ctx_size": 512, "note": "mine"})
        options = world.get(made.id).options
        assert {name: options[name] for name in LIVE} == LIVE
        assert options["ctx_size"] == 2048, "that needs a relaunch"
        await world.restart(made.id)
        options = world.get(made.id).options
        assert {name: options[name] for name in LIVE} == LIVE, "and a restart does not take it back"
        assert options["ctx_size"] == 2048, "which the launch had said"

    play(world, story)


def test_one_that_is_saved_while_a_launch_is_being_planned_counts_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        made = await world.launch("alpha", max_concurrent=1)
        planning = world.instances._launching.resolve

        async def save_meanwhile(*given: Any) -> Any:
            resolved = await planning(*given)
            monkeypatch.setattr(world.instances._launching, "resolve", planning)
            save(world, {"max_concurrent": 3})
            return resolved

        await world.stop(made.id)
        monkeypatch.setattr(world.instances._launching, "resolve", save_meanwhile)
        await world.instances._launching._resolve_anew(world.get(made.id))
        assert world.get(made.id).options["max_concurrent"] == 3
        save(world, {"max_concurrent": 3})  # notes the new plan, which nobody carries out here

    play(world, story)


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
def test_one_that_is_saved_while_a_restart_waits_counts_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    async def story() -> None:
        made = await world.launch("alpha", max_concurrent=1)
        if not runs:
            await world.stop(made.id)
        planning = world.instances._launching.resolve

        async def save_meanwhile(*given: Any) -> Any:
            resolved = await planning(*given)
            monkeypatch.setattr(world.instances._launching, "resolve", planning)
            save(world, {"max_concurrent": 3})
            return resolved

        monkeypatch.setattr(world.instances._launching, "resolve", save_meanwhile)
        await world.restart(made.id, ctx_size=1024)
        await world.until(lambda: world.get(made.id).state is State.READY, "the restart")
        options = world.get(made.id).options
        assert options["max_concurrent"] == 3
        assert options["ctx_size"] == 1024, "which the restart had said"

    play(world, story)


def test_one_that_is_saved_while_a_restart_drains_leaves_nothing_of_it_when_it_fails(world: World) -> None:
    async def story() -> None:
        instance = await world.running(max_concurrent=1, ctx_size=512)
        running = await world.grant()
        restarting = asyncio.create_task(
            world.restart(instance.id, ctx_size=1024, threads=1, max_concurrent=2)
        )
        await world.until(lambda: instance.state is State.DRAINING, "the restart")
        save(world, {"max_concurrent": 3})
        world.runtime.script.stop_error = LaunchError("it is stuck")
        running.release()
        with pytest.raises(LaunchError, match="stuck"):
            await restarting
        assert instance.overrides == {"ctx_size": 512}
        assert instance.options["max_concurrent"] == 3
        world.runtime.script.stop_error = None

    play(world, story)


def test_a_higher_limit_lets_those_who_wait_run_at_once(world: World) -> None:
    async def story() -> None:
        await world.running(max_concurrent=1, parallel=2)
        first = await world.grant()
        waiting = asyncio.create_task(world.grant())
        await world.until(lambda: world.get(first.instance.id).queued == 1, "it to wait")
        save(world, {"max_concurrent": 2, "parallel": 2})
        second = await waiting
        assert world.get(first.instance.id).active == 2, "nobody had to leave first"
        for grant in (first, second):
            grant.release()

    play(world, story)


def test_what_it_does_not_name_stays_as_it_was_launched(world: World) -> None:
    async def story() -> None:
        made = await world.launch("alpha", max_concurrent=2)
        save(world, {"idle_timeout_min": 7})
        assert world.get(made.id).options["max_concurrent"] == 2
        save(world, {})
        assert world.get(made.id).options["max_concurrent"] == 2
        assert world.get(made.id).options["idle_timeout_min"] == 0, "which only the preset had said"

    play(world, story)


def test_a_model_that_is_made_for_embeddings_runs_as_one_unless_somebody_says_otherwise(world: World) -> None:
    world.models["alpha"] = model = replace(world.models["alpha"], embedding=True)

    async def story() -> None:
        assert world.instances.is_embedding(model)
        world.presets[model.path] = {"embedding_model": False}
        assert not world.instances.is_embedding(model)
        world.presets[model.path] = {"ctx_size": 512}
        assert world.instances.is_embedding(model)
        await world.launch("alpha")
        assert not world.instances.is_embedding(model), "as it was launched"

    play(world, story)
