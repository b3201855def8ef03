"""What a manager makes of the records and the processes that an earlier one left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.admission import Policy
from llamaman.core.parts import COLLECTION
from llamaman.errors import LaunchError, StoreCorrupt
from llamaman.records import Address, Exit, Handle, State

from .fake_runtime import INTERNAL, PUBLIC, STILL, World, other_pid, outcome

RAN = ("queued", "preparing", "starting", "ready", "draining", "stopping", "backoff")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def boot(world: World, story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Boot a manager on what the world holds; what it does must come to rest."""

    async def main() -> None:
        async with world.manager():
            await story(world)
            await world.rest()
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 60))


def recorded(world: World, generation: int = 3, **given: Any) -> Handle:
    """A running process and the record that knows it."""
    handle = world.runtime.spawn("one", generation, INTERNAL[2])
    facts = {"state": State.READY, "desired": "running", "generation": generation, "handle": handle}
    world.put_record("one", **(facts | given))
    return handle


# --- a process and its record ------------------------------------------------------------------------


@pytest.mark.parametrize("state", [*RAN, "sleeping", "stopped", "failed"])
def test_a_recorded_process_that_shall_run_is_adopted_whatever_state_was_noted(
    world: World, state: str
) -> None:
    handle = recorded(world, state=State(state), port=PUBLIC[3])

    async def story(world: World) -> None:
        instance = await world.reach("one", State.READY)
        assert (instance.handle, instance.generation, instance.port) == (handle, 3, PUBLIC[3])
        assert (instance.internal_port, instance.slots) == (INTERNAL[2], 2)

    boot(world, story)
    assert world.runtime.started == 1


def test_a_process_whose_start_was_intended_but_not_yet_recorded_is_adopted(world: World) -> None:
    recorded(world, state=State.PREPARING, handle=None)

    async def story(world: World) -> None:
        await world.reach("one", State.READY)

    boot(world, story)
    assert world.runtime.started == 1


def test_a_process_whose_record_still_holds_the_handle_of_the_generation_before_is_adopted(
    world: World,
) -> None:
    earlier = Handle("one", 2, 555, 5550, Address("127.0.0.1", INTERNAL[5]))
    recorded(world, state=State.PREPARING, handle=earlier)

    async def story(world: World) -> None:
        await world.reach("one", State.READY)

    boot(world, story)
    assert world.runtime.started == 1


def test_a_process_with_another_pid_than_the_recorded_one_is_ended(world: World) -> None:
    handle = recorded(world)
    world.put_record("one", state=State.READY, desired="running", generation=3, handle=other_pid(handle))

    async def story(world: World) -> None:
        assert world.get("one").state is State.STOPPED
        assert not world.runtime.live

    boot(world, story)


@pytest.mark.parametrize("generation", [2, 4])
def test_a_process_of_another_generation_is_ended(world: World, generation: int) -> None:
    world.runtime.spawn("one", generation, INTERNAL[0])
    world.put_record("one", state=State.READY, desired="running", generation=3)

    async def story(world: World) -> None:
        assert world.get("one").state is State.STOPPED
        assert not world.runtime.live

    boot(world, story)


def test_of_two_processes_only_the_current_generation_stays(world: World) -> None:
    world.runtime.spawn("one", 2, INTERNAL[0])
    current = recorded(world)
    world.runtime.faults.clear()  # two at once are the test's own doing

    async def story(world: World) -> None:
        await world.reach("one", State.READY)
        assert world.runtime.of("one") == [current]

    boot(world, story)


def test_a_process_without_a_record_is_ended(world: World) -> None:
    world.runtime.spawn("unknown", 1, INTERNAL[0])

    async def story(world: World) -> None:
        assert not world.runtime.live
        assert world.instances.views() == ()

    boot(world, story)


def test_a_process_of_another_installation_is_left_alone(world: World) -> None:
    recorded(world)
    stranger = world.runtime.spawn("one", 3, INTERNAL[4], install="install-b")

    async def story(world: World) -> None:
        await world.reach("one", State.READY)
        assert stranger in world.runtime.live.values()
        assert stranger.pid is not None
        world.runtime.exit(stranger.pid, Exit(0, None, 0.0))

    boot(world, story)


@pytest.mark.parametrize(("desired", "state"), [("sleeping", State.SLEEPING), ("stopped", State.STOPPED)])
@pytest.mark.parametrize("noted", ["ready", "stopping", "draining"])
def test_a_stop_that_was_under_way_is_completed(world: World, desired: Any, state: State, noted: str) -> None:
    recorded(world, desired=desired, state=State(noted), managed=True)

    async def story(world: World) -> None:
        await world.reach("one", state)
        assert not world.runtime.live

    boot(world, story)


def test_a_stop_that_cannot_be_completed_is_failed_and_does_not_hinder_the_boot(world: World) -> None:
    recorded(world, desired="stopped")
    world.runtime.script.stop_error = LaunchError("it is stuck")

    async def story(world: World) -> None:
        await world.reach("one", State.FAILED)
        world.runtime.script.stop_error = None
        await world.stop("one")
        assert not world.runtime.live

    boot(world, story)


def test_stale_processes_are_ended_at_the_same_time_and_a_stuck_one_does_not_hinder_the_boot(
    world: World,
) -> None:
    for number in range(6):
        world.runtime.spawn(f"unknown-{number}", 1, INTERNAL[number])
    world.runtime.script.stop_s = 0.3
    recorded(world)

    async def story(world: World) -> None:
        await world.reach("one", State.READY)
        assert len(world.runtime.live) == 1

    begun = time.monotonic()
    boot(world, story)
    assert time.monotonic() - begun < 6 * 0.3

    world.runtime.spawn("unknown", 1, INTERNAL[9])
    world.runtime.script.stop_error = LaunchError("it is stuck")

    async def main() -> None:
        async with world.manager():
            await world.reach("one", State.READY)

    asyncio.run(main())


def test_a_process_that_is_not_ready_yet_goes_on_loading(world: World) -> None:
    recorded(world, state=State.STARTING)
    world.runtime.script.ready = False

    async def story(world: World) -> None:
        assert world.get("one").state is State.STARTING
        waiting = asyncio.get_running_loop().create_task(world.grant())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        world.runtime.script.ready = True
        (await outcome(waiting)).release()

    boot(world, story)


def test_what_was_adopted_can_be_restarted_and_stopped(world: World) -> None:
    recorded(world)

    async def story(world: World) -> None:
        await world.reach("one", State.READY)
        await world.restart("one")
        instance = await world.reach("one", State.READY)
        assert instance.generation == 4
        await world.stop("one")

    boot(world, story)


# --- a record without a process ----------------------------------------------------------------------


@pytest.mark.parametrize("state", RAN)
@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({}, State.STOPPED),
        ({"managed": True}, State.SLEEPING),
        ({"overrides": {"idle_timeout_min": 5}}, State.SLEEPING),
        ({"managed": True, "desired": "stopped"}, State.STOPPED),
    ],
    ids=["by hand", "managed", "may sleep", "was being stopped"],
)
def test_what_ran_sleeps_if_a_request_may_wake_it_else_it_is_stopped(
    world: World, state: str, given: dict[str, Any], becomes: State
) -> None:
    world.put_record("one", **({"state": State(state), "desired": "running", "generation": 3} | given))

    async def story(world: World) -> None:
        assert world.get("one").state is becomes

    boot(world, story)
    assert world.runtime.started == 0


@pytest.mark.parametrize("state", sorted(STILL))
@pytest.mark.parametrize("managed", [True, False])
def test_what_did_not_run_stays_as_it_was(world: World, state: State, managed: bool) -> None:
    world.put_record("one", state=state, managed=managed, reason="as it was", generation=3)

    async def story(world: World) -> None:
        assert (world.get("one").state, world.get("one").reason) == (state, "as it was")

    boot(world, story)


def test_what_sleeps_is_woken_by_a_request_on_its_port(world: World) -> None:
    world.put_record("one", state=State.SLEEPING, desired="sleeping", managed=True, generation=3)

    async def story(world: World) -> None:
        assert world.machine.open_ports == {"one": PUBLIC[0]}
        (await outcome(asyncio.ensure_future(world.grant(only="one")))).release()
        assert world.get("one").generation == 4

    boot(world, story)


@pytest.mark.parametrize("state", ["ready", "sleeping", "stopped"])
def test_start_at_boot_starts_it(world: World, state: str) -> None:
    world.put_record("one", state=State(state), generation=3, overrides={"start_at_boot": True})

    async def story(world: World) -> None:
        assert (await world.reach("one", State.READY)).generation == 4

    boot(world, story)


def test_start_at_boot_keeps_to_the_model_limit_and_pinned_ones_come_first(world: World) -> None:
    world.policy = Policy(max_models=2)
    options = {"start_at_boot": True}
    for index, (name, more) in enumerate(
        [("one", {}), ("two", {}), ("three", {"pinned": True}), ("four", {"embedding_model": True})]
    ):
        world.put_record(name, created=float(index), port=PUBLIC[index], overrides={**options, **more})

    async def main() -> None:
        async with world.manager():
            for name in ("one", "three", "four"):
                await world.reach(name, State.READY)
            assert world.get("two").state is State.STOPPED

    asyncio.run(main())


def test_start_at_boot_waits_until_a_process_of_an_older_generation_is_gone(world: World) -> None:
    world.runtime.spawn("one", 2, INTERNAL[0])
    world.put_record("one", state=State.READY, generation=3, overrides={"start_at_boot": True})
    world.runtime.script.stop_s = 0.1

    async def story(world: World) -> None:
        await world.reach("one", State.READY)

    boot(world, story)


def test_start_at_boot_does_not_start_what_already_runs(world: World) -> None:
    recorded(world, overrides={"start_at_boot": True})

    async def story(world: World) -> None:
        await world.reach("one", State.READY)

    boot(world, story)
    assert world.runtime.started == 1


# --- ports -------------------------------------------------------------------------------------------


def test_a_running_instance_whose_port_is_taken_is_served_on_another(world: World) -> None:
    recorded(world)
    world.machine.taken.add(PUBLIC[0])

    async def story(world: World) -> None:
        assert (await world.reach("one", State.READY)).port == PUBLIC[1]

    boot(world, story)


def test_an_instance_that_has_to_move_does_not_take_the_port_of_another(world: World) -> None:
    recorded(world)
    world.machine.taken.add(PUBLIC[0])
    world.put_record("two", state=State.SLEEPING, managed=True, port=PUBLIC[1])

    async def story(world: World) -> None:
        assert (await world.reach("one", State.READY)).port == PUBLIC[2]
        assert world.get("two").state is State.SLEEPING
        assert world.get("two").port == PUBLIC[1]

    boot(world, story)


def test_a_running_instance_is_stopped_when_no_port_is_left_for_it(world: World) -> None:
    recorded(world)
    world.machine.taken.update(PUBLIC)

    async def story(world: World) -> None:
        instance = await world.reach("one", State.STOPPED)
        assert "port" in instance.reason
        assert not world.runtime.live

    boot(world, story)


def test_a_sleeping_instance_whose_port_is_taken_is_stopped_and_says_so(world: World) -> None:
    world.put_record("one", state=State.SLEEPING, managed=True)
    world.machine.taken.add(PUBLIC[0])

    async def story(world: World) -> None:
        assert world.get("one").state is State.STOPPED
        assert "port" in world.get("one").reason

    boot(world, story)


def test_ports_outside_ranges_that_were_changed_do_not_hinder_the_boot(world: World) -> None:
    handle = world.runtime.spawn("one", 3, 17_500)
    world.put_record("one", state=State.READY, desired="running", generation=3, handle=handle, port=17_400)
    world.put_record("two", state=State.SLEEPING, managed=True, port=17_401)

    async def story(world: World) -> None:
        assert (await world.reach("one", State.READY)).port in PUBLIC
        assert world.get("two").state is State.STOPPED
        await world.stop("one")

    boot(world, story)


def test_two_records_with_one_port_are_both_kept(world: World) -> None:
    recorded(world)
    world.put_record("two", state=State.SLEEPING, managed=True, port=PUBLIC[0])

    async def story(world: World) -> None:
        await world.reach("one", State.READY)
        assert {view.id for view in world.instances.views()} == {"one", "two"}

    boot(world, story)


# --- the store ---------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_does_not_hinder_the_boot(world: World) -> None:
    recorded(world)
    world.put_record("two", state=State.READY, generation=1, port=PUBLIC[1])
    world.store.read_only = True

    async def main() -> None:
        async with world.manager():
            await world.reach("one", State.READY)
            assert world.get("two").state is State.STOPPED

    asyncio.run(main())


def test_a_record_that_cannot_be_read_stops_the_boot_by_name_and_touches_no_process(world: World) -> None:
    recorded(world)
    world.store.put(COLLECTION, "two", {"id": "two", "state": "dreaming"})

    async def main() -> None:
        async with world.manager():
            raise AssertionError("it booted")

    with pytest.raises(StoreCorrupt, match="two"):
        asyncio.run(main())
    assert len(world.runtime.live) == 1


def test_a_manager_that_is_killed_again_and_again_loses_and_doubles_nothing(world: World) -> None:
    async def main() -> None:
        async with world.manager():
            first, second = await world.running("alpha"), await world.running("beta", idle_timeout_min=5)
            third = await world.running("gamma")
            await world.stop(third.id)
            await world.rest()
        before = set(world.runtime.live)
        for _ in range(3):
            async with world.manager():
                for one in (first, second):
                    await world.reach(one.id, State.READY)
                assert world.get(third.id).state is State.STOPPED
                await world.rest()
                assert set(world.runtime.live) == before

    asyncio.run(main())
