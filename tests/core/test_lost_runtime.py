"""A daemon that goes away: silence is never failure, nothing is begun, and all is looked at when it is back."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import errands, supervisor
from llamaman.core.admission import Policy
from llamaman.errors import ModelUnavailable, RuntimeLost
from llamaman.gateway.grant import Grant
from llamaman.records import Address, Exit, State

from .fake_docker import AWAY, FakeDocker, play
from .fake_runtime import PUBLIC, World, outcome


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(supervisor, "LOST_PAUSE_S", 0.05)
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr(errands, "WEDGE_PAUSE_S", 0.02)
    return World(tmp_path, runtime=FakeDocker())


def later(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


async def go(world: World, docker: FakeDocker) -> None:
    docker.go()
    await asyncio.sleep(0.01)  # the news is on its way through the loop


async def come(world: World, docker: FakeDocker) -> None:
    docker.come()
    await world.until(lambda: world.instances._reach.reason("docker") is None, "all to be known again")


def told(world: World, instance_id: str) -> list[str]:
    events = world.events.since("instances", 0)
    return [event.kind for event in events if event.data["instance_id"] == instance_id]


def assert_untouched(world: World) -> None:
    """Nobody has even tried to end anything."""
    assert not any(state in (State.STOPPING, State.DRAINING) for _, state, _ in world.history)


def assert_lost(refused: Any) -> None:
    assert isinstance(refused, RuntimeLost), refused
    assert AWAY in refused.message
    assert (refused.status, refused.retry_after is not None) == (503, True)


# --- what it looks like ---------------------------------------------------------------------------------


def test_what_has_an_engine_is_shown_as_unknown_with_the_reason_and_keeps_its_state(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        running, stopped = await world.running("alpha"), await world.running("beta")
        await world.stop(stopped.id)
        await go(world, docker)
        view = running.view()
        assert (view.status, view.state, view.reason) == ("unknown", State.READY, AWAY)
        assert stopped.view().status == "stopped"  # nobody has to ask a daemon for that
        assert told(world, running.id)[-1] == "unknown"
        assert "unknown" not in told(world, stopped.id)
        await come(world, docker)
        assert (running.view().status, running.view().reason) == ("healthy", "ready")
        assert told(world, running.id)[-1] == "known"

    play(world, story)


def test_what_is_loading_is_unknown_too_and_becomes_ready_when_it_says_so(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        docker.script.ready = False
        launched = await world.launch()
        await world.reach(launched.id, State.STARTING)
        await world.until(lambda: world.get(launched.id).handle is not None, "its engine")
        await go(world, docker)
        assert world.get(launched.id).view().status == "unknown"
        docker.script.ready = True
        await world.reach(launched.id, State.READY)
        await come(world, docker)

    play(world, story)


def test_the_process_runtime_beside_it_is_not_concerned(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running()
        instance.runtime = "process"
        await go(world, docker)
        assert instance.view().status == "healthy"
        instance.runtime = "docker"
        await come(world, docker)

    play(world, story)


# --- silence is never failure ---------------------------------------------------------------------------


def test_requests_to_what_is_ready_are_still_served(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        await world.running()
        await go(world, docker)
        grant = await outcome(later(world.grant()))
        assert isinstance(grant, Grant)
        grant.release()
        await come(world, docker)

    play(world, story)


def test_nothing_falls_asleep_meanwhile_but_does_so_afterwards(world: World) -> None:
    world.managed_idle_timeout_s = 0.05

    async def story(world: World, docker: FakeDocker) -> None:
        grant = await world.grant()
        await go(world, docker)
        grant.release()
        await asyncio.sleep(0.2)
        assert grant.instance.state is State.READY
        assert_untouched(world)
        await come(world, docker)
        await world.reach(grant.instance.id, State.SLEEPING)

    play(world, story)


def test_what_does_not_answer_is_not_restarted_meanwhile(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running()
        await go(world, docker)
        docker.script.ready = False
        world.instances.suspect(instance)
        await asyncio.sleep(0.1)
        assert (instance.state, instance.generation) == (State.READY, 1)
        assert_untouched(world)
        docker.script.ready = True
        await come(world, docker)

    play(world, story)


def test_a_check_that_was_under_way_when_it_went_restarts_nothing(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running()
        docker.script.ready = False
        asked = docker.asked
        world.instances.suspect(instance)
        await world.until(lambda: docker.asked > asked, "the check to begin")
        docker.go()
        await asyncio.sleep(0.1)
        assert (instance.state, instance.generation) == (State.READY, 1)
        assert_untouched(world)
        docker.script.ready = True
        await come(world, docker)

    play(world, story)


def test_what_takes_long_to_load_meanwhile_is_not_given_up(world: World) -> None:
    world.load_timeout_s = 0.1

    async def story(world: World, docker: FakeDocker) -> None:
        docker.script.ready = False
        answers = docker.answers

        def goes_when_asked(address: Address) -> bool:
            docker.answers = answers  # type: ignore[method-assign] # the first question alone
            docker.go()
            return answers(address)

        docker.answers = goes_when_asked  # type: ignore[method-assign] # before its time to load can be over
        launched = await world.launch()
        await world.until(lambda: docker.away is not None, "it to go")
        await asyncio.sleep(3 * world.load_timeout_s)
        assert world.get(launched.id).state is State.STARTING
        assert world.instances.pause(launched.id) is None
        assert_untouched(world)
        docker.script.ready = True
        await come(world, docker)
        await world.reach(launched.id, State.READY)

    play(world, story)


def test_nobody_is_evicted_who_cannot_be_reached(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        (await world.grant("alpha")).release()
        (victim,) = world.instances.views()
        world.policy = Policy(max_models=1, openai_may_evict_managed=True)
        await go(world, docker)
        assert isinstance(await outcome(later(world.grant("beta"))), ModelUnavailable)
        assert world.get(victim.id).state is State.READY
        assert_untouched(world)
        await come(world, docker)

    play(world, story)


def test_an_end_that_is_heard_of_meanwhile_is_believed(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running(restart_policy="never")
        await go(world, docker)
        assert instance.handle
        assert instance.handle.pid
        docker.exit(instance.handle.pid, Exit(137, None, 0.0, cause="somebody removed its container"))
        await world.reach(instance.id, State.FAILED)
        assert instance.reason == "somebody removed its container"
        await come(world, docker)

    play(world, story)


# --- nothing is begun -----------------------------------------------------------------------------------


def test_a_launch_is_refused_at_once_and_leaves_nothing(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        await go(world, docker)
        assert_lost(await outcome(later(world.launch())))
        assert_lost(await outcome(later(world.grant())))
        assert world.instances.views() == ()
        assert world.store.list("instances") == []
        await come(world, docker)
        await world.running()

    play(world, story)


def test_a_wake_is_refused_at_once_and_works_when_it_is_back(world: World) -> None:
    world.managed_idle_timeout_s = 0.05

    async def story(world: World, docker: FakeDocker) -> None:
        (await world.grant()).release()
        (view,) = world.instances.views()
        await world.reach(view.id, State.SLEEPING)
        await go(world, docker)
        assert_lost(await outcome(later(world.grant())))
        assert (world.get(view.id).state, world.get(view.id).generation) == (State.SLEEPING, 1)
        await come(world, docker)
        (await world.grant()).release()

    play(world, story)


@pytest.mark.parametrize("running", [True, False])
def test_a_restart_is_refused_at_once_and_changes_nothing(world: World, running: bool) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running()
        if not running:
            await world.stop(instance.id)
        before = instance.state
        await go(world, docker)
        assert_lost(await outcome(later(world.restart(instance.id, ctx_size=77))))
        assert (instance.state, instance.generation, instance.overrides) == (before, 1, {})
        await come(world, docker)

    play(world, story)


@pytest.mark.parametrize("force", [True, False])
def test_a_stop_fails_with_the_reason_and_changes_nothing(world: World, force: bool) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running()
        await go(world, docker)
        assert_lost(await outcome(later(world.stop(instance.id, force=force))))
        assert (instance.state, instance.desired) == (State.READY, "running")
        await come(world, docker)
        assert (await world.stop(instance.id)).state is State.STOPPED

    play(world, story)


def test_a_stop_in_the_middle_of_which_it_goes_keeps_the_engine_serving(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running()
        docker.away = AWAY  # and nobody has told of it yet
        lost, docker.lost = docker.lost, lambda: None  # type: ignore[method-assign] # not even the runtime knows
        assert_lost(await outcome(later(world.stop(instance.id))))
        await world.reach(instance.id, State.READY)
        assert instance.desired == "running"
        (await world.grant()).release()
        docker.lost = lost  # type: ignore[method-assign]
        await go(world, docker)
        await come(world, docker)
        assert (await world.stop(instance.id)).state is State.STOPPED

    play(world, story)


def test_a_start_in_the_middle_of_which_it_goes_is_no_death_and_what_was_left_is_adopted(
    world: World,
) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        docker.script.start_when = threading.Event()
        launched = await world.launch()
        await world.reach(launched.id, State.STARTING)
        docker.script.start_error = RuntimeLost(AWAY, retry_after=5)
        asking = later(world.grant())
        await go(world, docker)
        docker.script.start_when.set()
        instance = await world.reach(launched.id, State.FAILED)
        assert isinstance(await outcome(asking), ModelUnavailable)
        assert world.instances.pause(launched.id) is None
        docker.script.start_error = None
        left = docker.spawn(launched.id, 1, 0)  # the daemon had begun it all the same
        await come(world, docker)
        await world.reach(launched.id, State.READY)
        assert instance.handle == left
        assert docker.started == 1

    play(world, story)


def test_a_crashed_one_is_restarted_when_it_is_back_and_requests_are_told_until_then(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running(restart_policy="on-failure")
        await go(world, docker)
        assert instance.handle
        assert instance.handle.pid
        docker.exit(instance.handle.pid, Exit(1, None, 0.0))
        await world.reach(instance.id, State.BACKOFF)
        assert_lost(await outcome(later(world.grant())))
        await asyncio.sleep(0.15)
        assert (instance.state, instance.generation) == (State.BACKOFF, 1)
        await come(world, docker)
        await world.reach(instance.id, State.READY)
        assert instance.generation == 2

    play(world, story)


def test_the_end_of_the_manager_is_not_held_up_and_leaves_engines_for_the_next(world: World) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)

    async def main() -> None:
        async with world.manager(stop_engines=True):
            instance = await world.running()
            await go(world, docker)
        assert len(docker.live) == 1
        docker.come()
        async with world.manager():
            assert (await world.reach(instance.id, State.READY)).generation == 1
            await world.rest()
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 120))


# --- a boot without it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "starting", "stopping", "backoff", "failed"])
def test_records_keep_what_they_were_until_it_is_back_and_are_then_adopted(world: World, state: str) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    handle = docker.spawn("one", 3, 0)
    record = world.put_record("one", state=State(state), desired="running", generation=3, handle=handle)
    docker.away = AWAY

    async def story(world: World, docker: FakeDocker) -> None:
        view = world.instances.view("one")
        assert (view.status, view.state, view.reason) == ("unknown", State(state), AWAY)
        assert world.store.get("instances", "one").value == json.loads(json.dumps(record.document()))
        assert_lost(await outcome(later(world.grant())))
        assert_lost(await outcome(later(world.grant(only="one"))))
        assert_lost(await outcome(later(world.stop("one"))))
        assert_lost(await outcome(later(world.restart("one"))))
        assert ("one" in world.machine.open_ports) is (state != "failed")  # to be told so there as well
        await come(world, docker)
        assert (await world.reach("one", State.READY)).handle == handle
        assert world.get("one").internal_port is None
        (await world.grant()).release()
        assert docker.started == 1

    play(world, story)


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({}, State.STOPPED),
        ({"managed": True}, State.SLEEPING),
        ({"managed": True, "desired": "stopped"}, State.STOPPED),
    ],
    ids=["by hand", "managed", "was being stopped"],
)
def test_records_whose_engine_is_gone_are_resettled_when_it_is_back(
    world: World, given: dict[str, Any], becomes: State
) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    docker.away = AWAY
    world.put_record("one", **({"state": State.READY, "desired": "running", "generation": 3} | given))

    async def story(world: World, docker: FakeDocker) -> None:
        assert world.instances.view("one").status == "unknown"
        await come(world, docker)
        await world.reach("one", becomes)
        assert world.instances.view("one").status == becomes.value
        assert told(world, "one")[-1] == "known"

    play(world, story)


@pytest.mark.parametrize("state", [State.SLEEPING, State.STOPPED, State.FAILED])
def test_records_that_need_no_engine_are_as_after_any_boot(world: World, state: State) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    docker.away = AWAY
    desired = "sleeping" if state is State.SLEEPING else "stopped"
    world.put_record("one", state=state, desired=desired, managed=True, generation=3)

    async def story(world: World, docker: FakeDocker) -> None:
        assert world.instances.view("one").status == state.value
        await come(world, docker)
        assert world.get("one").state is state

    play(world, story)


def test_a_stop_that_was_under_way_is_completed_when_it_is_back(world: World) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    handle = docker.spawn("one", 3, 0)
    world.put_record("one", state=State.STOPPING, desired="stopped", generation=3, handle=handle)
    docker.away = AWAY

    async def story(world: World, docker: FakeDocker) -> None:
        await come(world, docker)
        await world.reach("one", State.STOPPED)
        assert not docker.live

    play(world, story)


def test_start_at_boot_waits_for_it(world: World) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    docker.away = AWAY
    world.put_record("one", state=State.STOPPED, generation=3, overrides={"start_at_boot": True})

    async def story(world: World, docker: FakeDocker) -> None:
        await asyncio.sleep(0.05)
        assert (world.get("one").state, world.get("one").generation) == (State.STOPPED, 3)
        await come(world, docker)
        assert (await world.reach("one", State.READY)).generation == 4

    play(world, story)


def test_engines_without_a_record_are_ended_when_it_is_back(world: World) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    docker.spawn("unknown", 1, 0)
    docker.away = AWAY

    async def story(world: World, docker: FakeDocker) -> None:
        await come(world, docker)
        await world.until(lambda: not docker.live, "it to be ended")

    play(world, story)


def test_a_runtime_that_came_back_during_the_boot_is_not_waited_for_a_minute(world: World) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    docker.spawn("one", 3, 0)
    world.put_record("one", state=State.READY, desired="running", generation=3, port=PUBLIC[1])

    original = docker.find

    def find(node: str, install: str) -> Any:
        docker.find = original  # type: ignore[method-assign]
        raise RuntimeLost(AWAY)

    docker.find = find  # type: ignore[method-assign]

    async def story(world: World, docker: FakeDocker) -> None:
        await world.reach("one", State.READY)

    play(world, story)
