"""What holds when management calls, requests and the ends of processes cross each other."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import by_hand, errands, notes, supervisor
from llamaman.core.admission import Policy
from llamaman.errors import Conflict, LaunchError, LlamaManError, NotFound
from llamaman.gateway.grant import Grant
from llamaman.records import Exit, State

from .fake_runtime import PUBLIC, World, outcome, play


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(by_hand, "USER_DRAIN_S", 0.2)
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.02)
    return World(tmp_path)


def later(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


# --- a stop by an administrator stands ---------------------------------------------------------------


def test_a_request_that_comes_after_a_stop_during_the_start_does_not_undo_it(world: World) -> None:
    async def story(world: World) -> None:
        world.runtime.script.start_s = 0.1
        instance_id = (await world.launch()).id
        await world.reach(instance_id, State.STARTING)
        stopping = later(world.stop(instance_id))
        await asyncio.sleep(0.02)
        asking = later(world.grant())
        await stopping
        assert isinstance(await outcome(asking), LlamaManError)
        assert world.get(instance_id).state is State.STOPPED

    play(world, story)


def test_a_stop_that_comes_after_a_restart_wins(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running()
        world.runtime.script.stop_s = 0.1
        restarting = later(world.restart(instance.id))
        await world.reach(instance.id, State.STOPPING)
        stopping = later(world.stop(instance.id))
        await asyncio.gather(restarting, stopping)
        await asyncio.sleep(0.05)
        assert instance.state is State.STOPPED

    play(world, story)


def test_a_wake_that_waited_for_a_slot_does_not_undo_a_stop(world: World) -> None:
    async def story(world: World) -> None:
        world.managed_idle_timeout_s = 0
        sleeper = await world.running("alpha", idle_timeout_min=5)
        await put_to_sleep(world, sleeper.id)
        world.policy = Policy(max_models=1, openai_may_evict_managed=True)
        busy = await world.grant("beta")  # evictable, but not at once
        asking = later(world.grant("alpha"))
        await world.reach(busy.instance.id, State.DRAINING)
        await world.stop(sleeper.id)
        busy.release()
        assert isinstance(await outcome(asking), LlamaManError)
        await asyncio.sleep(0.05)
        assert sleeper.state is State.STOPPED

    play(world, story)


async def put_to_sleep(world: World, instance_id: str) -> None:
    """As its idle timer does."""
    instance = world.get(instance_id)
    world.managed_idle_timeout_s = 0.01
    instance.options = {**instance.options, "idle_timeout_min": 0.0005}
    world.supervisor(instance_id).options_changed()
    await world.reach(instance_id, State.SLEEPING)
    instance.options = {**instance.options, "idle_timeout_min": 5}


def test_a_shutdown_does_not_turn_a_stop_under_way_into_sleep(world: World) -> None:
    async def main() -> None:
        async with world.manager(stop_engines=True):
            instance = await world.running(idle_timeout_min=5)
            world.runtime.script.stop_s = 0.2
            stopping = later(world.stop(instance.id))
            await world.reach(instance.id, State.STOPPING)
        await outcome(stopping)
        (document,) = world.store.list("instances")
        assert (document.value["state"], document.value["desired"]) == ("stopped", "stopped")

    asyncio.run(main())


def test_a_stop_right_after_falling_asleep_is_answered_when_it_is_stopped(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running(idle_timeout_min=5)
        world.store.delay_s = 0.05
        instance.options = {**instance.options, "idle_timeout_min": 0.0005}
        world.supervisor(instance.id).options_changed()
        await world.reach(instance.id, State.SLEEPING)  # and this is being stored now
        assert (await world.stop(instance.id)).state is State.STOPPED

    play(world, story)


def test_the_death_of_a_process_that_is_found_out_late_does_not_undo_a_stop(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running()
        found_out = asyncio.Event()
        own = world.supervisor(instance.id)._errands
        original = own._s

        async def slow(function: Any, *arguments: Any) -> Any:
            await found_out.wait()
            return await original.inspect(function, *arguments)

        own._s = replace(original, inspect=slow)
        assert instance.handle
        assert instance.handle.pid
        world.runtime.exit(instance.handle.pid, Exit(1, None, 0.0))
        await world.until(lambda: instance.last_exit is not None, "the exit to be heard of")
        await world.stop(instance.id)
        found_out.set()
        await asyncio.sleep(0.05)
        assert (instance.state, instance.crashes) == (State.STOPPED, 0)

    play(world, story)


# --- restarts ----------------------------------------------------------------------------------------


def test_requests_that_queue_during_a_restart_meet_the_new_options(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running()
        world.store.delay_s = 0.03
        holding = [await world.grant(), await world.grant()]
        restarting = later(world.restart(instance.id, ctx_size=1234))
        await world.reach(instance.id, State.DRAINING)
        asking = [later(world.grant()) for _ in range(5)]
        for grant in holding:
            grant.release()
        await restarting
        for each in asking:
            grant = await outcome(each)
            assert isinstance(grant, Grant), grant
            grant.release()
        await world.reach(instance.id, State.READY)
        assert instance.options["ctx_size"] == 1234
        assert instance.generation == 2

    play(world, story)


def test_two_restarts_and_a_stop_at_once_leave_one_process_or_none(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running()
        world.store.delay_s = 0.01
        calls = [
            later(world.restart(instance.id)),
            later(world.stop(instance.id)),
            later(world.restart(instance.id)),
        ]
        for call in calls:
            result = await outcome(call)
            assert not isinstance(result, KeyError)
        await world.reach(instance.id, State.READY, State.STOPPED)

    play(world, story)


def test_a_restart_right_after_a_stop_finds_its_port(world: World) -> None:
    async def story(world: World) -> None:
        for _ in range(10):
            instance = await world.running()
            world.store.delay_s = 0.005
            stopping = later(world.stop(instance.id))
            await world.reach(instance.id, State.STOPPED)
            await world.restart(instance.id)  # while the stop still gives the port back
            await stopping
            await world.reach(instance.id, State.READY)
            await world.stop(instance.id)
            await world.remove(instance.id)

    play(world, story)


def test_a_restart_for_which_there_is_no_port_changes_nothing(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running(ctx_size=512)
        await world.stop(instance.id)
        world.machine.taken = set(PUBLIC)
        with pytest.raises(Conflict):
            await world.restart(instance.id, ctx_size=1024)
        assert instance.overrides == {"ctx_size": 512}
        assert instance.options["ctx_size"] == 512
        world.machine.taken.clear()

    play(world, story)


# --- processes that do not end -----------------------------------------------------------------------


def test_what_could_not_be_stopped_is_stopped_before_it_is_started_again(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running()
        world.runtime.script.stop_error = LaunchError("it is stuck")
        await world.stop(instance.id)
        assert instance.state is State.FAILED
        assert world.runtime.of(instance.id), "the process is still there"
        with pytest.raises(Conflict):
            await world.remove(instance.id)
        await world.stop(instance.id)
        assert instance.state is State.FAILED, "a second stop that fails does not say that it is stopped"
        world.runtime.script.stop_error = None
        await world.restart(instance.id)
        await world.reach(instance.id, State.READY)
        assert instance.generation == 2

    play(world, story)


def test_a_second_stop_ends_what_the_first_could_not(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running()
        world.runtime.script.stop_error = LaunchError("it is stuck")
        await world.stop(instance.id)
        world.runtime.script.stop_error = None
        await world.stop(instance.id)
        assert instance.state is State.STOPPED
        assert not world.runtime.live

    play(world, story)


def test_a_restart_of_what_cannot_be_stopped_says_so(world: World) -> None:
    async def story(world: World) -> None:
        instance = await world.running()
        world.runtime.script.stop_error = LaunchError("it is stuck")
        answer = await outcome(later(world.restart(instance.id, ctx_size=77)))
        assert isinstance(answer, LlamaManError)
        assert "stuck" in answer.message
        assert len(world.runtime.of(instance.id)) == 1
        assert instance.overrides == {}

    play(world, story)


# --- eviction ----------------------------------------------------------------------------------------


def test_what_was_evicted_comes_back_only_through_admission(world: World) -> None:
    async def story(world: World) -> None:
        world.policy = Policy(max_models=1, openai_may_evict_managed=True)
        first = await world.grant("alpha")
        evictor = later(world.grant("beta"))
        await world.reach(first.instance.id, State.DRAINING)
        waiter = later(world.grant("alpha"))  # comes while its model is on its way out
        await asyncio.sleep(0.02)
        first.release()
        most = 0
        granted = await outcome(evictor)
        while not waiter.done():
            most = max(most, len(world.runtime.live))
            if isinstance(granted, Grant):
                granted.release()
                granted = None
            await asyncio.sleep(0.002)
        for held in (granted, await outcome(waiter)):
            if isinstance(held, Grant):
                held.release()
        assert most <= 1, "two models ran although only one may"

    play(world, story)


def test_an_eviction_that_gives_up_leaves_an_instance_that_still_falls_asleep(world: World) -> None:
    async def story(world: World) -> None:
        world.policy = Policy(max_models=1, openai_may_evict_managed=True)
        busy = await world.grant("alpha")
        evictor = later(world.grant("beta"))
        await world.reach(busy.instance.id, State.DRAINING)
        assert isinstance(await outcome(evictor), LlamaManError)
        await world.reach(busy.instance.id, State.READY)
        busy.release()
        await world.reach(busy.instance.id, State.SLEEPING)
        await asyncio.sleep(0.05)
        assert busy.instance.state is State.SLEEPING, "and nobody wakes it again"

    world.managed_idle_timeout_s = 0.1
    play(world, story)


# --- removal -----------------------------------------------------------------------------------------


def test_a_request_during_a_removal_never_starts_what_is_forgotten(world: World) -> None:
    async def story(world: World) -> None:
        for _ in range(10):
            instance = await world.running()
            await world.stop(instance.id)
            world.store.delay_s = 0.01
            removing = later(world.remove(instance.id))
            asking = [later(world.grant()) for _ in range(3)]
            removed = await outcome(removing)
            assert removed is None or isinstance(removed, Conflict)
            for each in asking:
                grant = await outcome(each)
                assert isinstance(grant, Grant), grant
                grant.release()
            await world.rest()
            for view in world.instances.views():
                await world.stop(view.id)
                await world.remove(view.id)

    play(world, story)


def test_stop_restart_and_remove_at_once_are_all_answered(world: World) -> None:
    async def story(world: World) -> None:
        for _ in range(10):
            instance = await world.running()
            await world.stop(instance.id)
            world.store.delay_s = 0.005
            calls = [
                later(world.remove(instance.id)),
                later(world.stop(instance.id)),
                later(world.restart(instance.id)),
                later(world.remove(instance.id)),
            ]
            for call in calls:
                result = await outcome(call)
                assert (
                    result is None
                    or not isinstance(result, Exception)
                    or isinstance(result, Conflict | NotFound)
                )
            for view in world.instances.views():
                await world.stop(view.id)
                await world.remove(view.id)

    play(world, story)


# --- what can go wrong inside ------------------------------------------------------------------------


def test_a_listener_that_fails_does_not_end_the_supervision(world: World) -> None:
    async def story(world: World) -> None:
        def bad(*_: Any) -> None:
            raise ZeroDivisionError

        world.instances.subscribe(bad)
        instance = await world.running()
        await world.stop(instance.id)
        assert instance.state is State.STOPPED

    play(world, story)


def test_a_health_answer_that_makes_no_sense_does_not_load_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bad(health: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(errands, "await_ready", bad)

    async def story(world: World) -> None:
        instance_id = (await world.launch()).id
        await world.reach(instance_id, State.FAILED)

    play(world, story)


def test_twenty_first_requests_share_one_start(world: World) -> None:
    async def story(world: World) -> None:
        grants = [later(world.grant()) for _ in range(20)]
        for each in grants:
            grant = await outcome(each)
            assert isinstance(grant, Grant)
            grant.release()
        assert world.runtime.started == 1

    play(world, story)


@pytest.mark.parametrize("refuse_after", range(8))
def test_a_store_that_stops_writing_at_any_moment_hangs_nobody(world: World, refuse_after: int) -> None:
    async def main() -> None:
        world.store.refuse_after = refuse_after
        async with world.manager():
            first = await outcome(later(world.launch()))
            asked = [later(world.grant("beta")) for _ in range(3)]
            for each in asked:
                grant = await outcome(each)
                assert isinstance(grant, Grant | LlamaManError)
                if isinstance(grant, Grant):
                    grant.release()
            if not isinstance(first, Exception):
                await outcome(later(world.restart(first.id)))
                await outcome(later(world.stop(first.id)))
                await world.until(lambda: not world.runtime.of(first.id), "its process to be gone")
            for view in world.instances.views():
                await outcome(later(world.stop(view.id)))
            await world.until(lambda: not world.runtime.live, "every process to be gone")
            world.store.refuse_after = None
            for view in world.instances.views():
                await world.stop(view.id)
            await world.rest()
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_stop_that_could_not_be_stored_is_stored_when_the_disk_has_room_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "FIRST_WRITE_PAUSE_S", 0.02)

    async def story(world: World) -> None:
        instance = await world.running(idle_timeout_min=5)
        world.store.read_only = True
        await world.stop(instance.id)
        assert instance.state is State.STOPPED
        world.store.read_only = False  # else the next manager would let a request wake it

    play(world, story)


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02, 0.05])
def test_ending_in_the_middle_of_everything_leaves_no_process_and_no_caller(
    world: World, moment: float
) -> None:
    async def main() -> None:
        world.runtime.script.start_s = 0.02
        world.runtime.script.stop_s = 0.02
        async with world.manager(stop_engines=True):
            running = await world.running()
            calls = [
                later(world.launch("beta")),
                later(world.restart(running.id)),
                later(world.grant("gamma")),
                later(world.grant("alpha")),
            ]
            await asyncio.sleep(moment)
        assert not world.runtime.live
        for call in calls:
            try:
                grant = await asyncio.wait_for(call, 5)
                if isinstance(grant, Grant):
                    grant.release()
            except LlamaManError:
                pass
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 60))
