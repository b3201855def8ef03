"""What runs and what is recorded: which differences are acted upon, and that no start or stop is disturbed."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import reconcile
from llamaman.core.reconcile import Finding, Known, judge
from llamaman.errors import LaunchError, RuntimeLost
from llamaman.records import Address, Exit, Handle, State

from .fake_docker import FakeDocker, play
from .fake_runtime import World

ENGINE = Handle("one", 3, 100, None, Address("10.0.0.1", 8080), "c100")
READY = Known("docker", 3, State.READY, "running", ENGINE, busy=False)
FAILED = replace(READY, state=State.FAILED, handle=None)


def look(known: Known | None, *found: Handle, after: Known | str | None = "same") -> list[tuple[str, Handle]]:
    """The kinds and engines of what one look finds."""
    before = {"one": known} if known else {}
    later = before if after == "same" else {"one": after} if isinstance(after, Known) else {}
    return [(finding.kind, finding.handle) for finding in judge("docker", before, found, later)]


# --- one look -------------------------------------------------------------------------------------------


def test_what_agrees_is_no_finding() -> None:
    assert look(READY, ENGINE) == []
    assert look(FAILED) == []
    assert look(None) == []


def test_an_engine_whose_container_is_the_recorded_one_is_its_own_whatever_its_pid() -> None:
    assert look(READY, replace(ENGINE, pid=7)) == []
    other = replace(ENGINE, container_id="c200")
    assert look(READY, ENGINE, other) == [("end", other)]


def test_an_engine_without_a_record_is_ended() -> None:
    assert look(None, ENGINE) == [("end", ENGINE)]


@pytest.mark.parametrize("generation", [2, 4])
def test_an_engine_of_another_generation_is_ended(generation: int) -> None:
    other = replace(ENGINE, generation=generation, container_id="c200")
    assert look(READY, ENGINE, other) == [("end", other)]
    assert look(FAILED, other) == [("end", other)]


def test_a_wanted_engine_of_the_current_generation_that_nobody_knew_of_is_adopted() -> None:
    assert look(FAILED, ENGINE) == [("adopt", ENGINE)]


@pytest.mark.parametrize("desired", ["sleeping", "stopped"])
def test_an_engine_that_is_not_wanted_any_more_is_ended(desired: Any) -> None:
    assert look(replace(FAILED, state=State.STOPPED, desired=desired), ENGINE) == [("end", ENGINE)]
    assert look(replace(READY, desired=desired), ENGINE) == [("stop", ENGINE)]


def test_an_engine_that_is_gone_is_noted() -> None:
    assert look(READY) == [("gone", ENGINE)]
    assert look(replace(READY, state=State.FAILED)) == [("gone", ENGINE)]


@pytest.mark.parametrize("found", [[], [ENGINE], [replace(ENGINE, generation=2, container_id="c200")]])
@pytest.mark.parametrize("handle", [None, ENGINE])
@pytest.mark.parametrize("state", [State.PREPARING, State.STARTING, State.READY, State.STOPPING])
def test_nothing_is_found_while_it_is_started_or_stopped(
    found: list[Handle], handle: Handle | None, state: State
) -> None:
    assert look(replace(READY, state=state, handle=handle, busy=True), *found) == []


@pytest.mark.parametrize("state", [State.QUEUED, State.BACKOFF])
def test_an_engine_of_what_is_about_to_start_is_left_to_its_start(state: State) -> None:
    assert look(replace(FAILED, state=state), ENGINE) == []


@pytest.mark.parametrize(
    "after",
    [
        replace(READY, generation=4),
        replace(READY, handle=None, state=State.FAILED),
        replace(READY, busy=True),
        replace(READY, desired="stopped"),
        None,
    ],
)
@pytest.mark.parametrize("found", [[], [ENGINE], [replace(ENGINE, generation=4, container_id="c4")]])
def test_nothing_is_found_where_something_happened_during_the_look(
    after: Known | None, found: list[Handle]
) -> None:
    assert look(READY, *found, after=after) == []


def test_engines_that_another_runtime_has_are_none_of_this_ones() -> None:
    elsewhere = replace(READY, runtime="process")
    assert look(elsewhere) == []
    assert look(elsewhere, replace(ENGINE, generation=2)) == [("end", replace(ENGINE, generation=2))]


# --- rounds ---------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(reconcile, "LOOK_AGAIN_S", 0.02)
    return World(tmp_path, runtime=FakeDocker())


async def round_(world: World) -> None:
    """As the job does it: from a thread of its own."""
    await asyncio.to_thread(world.instances.reconcile)


def test_a_calm_world_is_looked_at_once_a_round_and_left_alone(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        running, stopped = await world.running("alpha"), await world.running("beta")
        await world.stop(stopped.id)
        before, finds = list(world.history), docker.finds
        await round_(world)
        assert docker.finds == finds + 1
        assert world.history == before
        assert running.handle in docker.live.values()

    play(world, story)


def test_strays_are_ended_and_strangers_are_not(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        running = await world.running()
        docker.spawn("unknown", 1, 0)
        stranger = docker.spawn("unknown", 1, 0, install="install-b")
        await round_(world)
        assert list(docker.live.values()) == [running.handle, stranger]
        assert stranger.pid
        docker.exit(stranger.pid, Exit(0, None, 0.0))

    play(world, story)


def test_an_end_that_nobody_told_of_is_noticed(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        running = await world.running(restart_policy="never")
        assert running.handle
        assert running.handle.pid
        del docker.live[running.handle.pid]  # no event was seen
        await round_(world)
        await world.reach(running.id, State.FAILED)
        assert running.crashes == 1

    play(world, story)


@pytest.mark.parametrize("store_delay_s", [0.0, 0.01])
def test_rounds_never_disturb_starts_restarts_and_stops(world: World, store_delay_s: float) -> None:
    world.store.delay_s = store_delay_s

    async def story(world: World, docker: FakeDocker) -> None:
        docker.script.start_s = docker.script.stop_s = 0.01
        over = asyncio.Event()

        async def rounds() -> None:
            while not over.is_set():
                await round_(world)

        looking = [asyncio.create_task(rounds()) for _ in range(2)]
        for number in range(12):
            instance = await world.running("alpha")
            assert instance.crashes == 0
            await world.restart(instance.id, ctx_size=512 + number)
            await world.reach(instance.id, State.READY)
            assert (instance.generation, instance.crashes) == (2, 0)
            await world.stop(instance.id)
            await world.remove(instance.id)
        over.set()
        await asyncio.gather(*looking)
        assert docker.started == 24

    play(world, story)


def test_a_look_that_began_before_a_start_does_not_end_what_was_started_during_it(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        finding, found = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold() -> None:
            docker.while_finding = lambda: None
            loop.call_soon_threadsafe(finding.set)
            asyncio.run_coroutine_threadsafe(found.wait(), loop).result(60)

        docker.while_finding = hold
        looking = asyncio.create_task(round_(world))
        await finding.wait()
        instance = await world.running()
        found.set()
        await looking
        assert instance.state is State.READY
        assert docker.of(instance.id) == [instance.handle]

    play(world, story)


def test_rounds_that_are_asked_for_during_one_share_the_next(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        finds = docker.finds
        gate = threading.Event()
        docker.while_finding = lambda: gate.wait(60)  # type: ignore[assignment,return-value] # nobody looks
        first = asyncio.create_task(round_(world))
        await world.until(lambda: docker.finds > finds, "the first one to ask")
        for _ in range(5):
            world.instances._reconcile.soon()
        await asyncio.sleep(0.02)
        gate.set()
        await first
        assert docker.finds == finds + 2

    play(world, story)


def test_what_is_seen_at_one_look_only_is_left_alone(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running(restart_policy="never")
        docker.script.start_error = LaunchError("the daemon is out of threads")
        await world.stop(instance.id)
        await world.restart(instance.id)
        await world.reach(instance.id, State.FAILED)
        left = docker.spawn(instance.id, instance.generation, 0)
        assert left.pid
        pid, before = left.pid, list(world.history)

        def end() -> None:
            docker.exit(pid, Exit(0, None, 0.0))

        docker.while_finding = end
        await round_(world)
        assert (instance.state, world.history) == (State.FAILED, before)

    play(world, story)


def test_what_has_changed_since_it_was_found_is_left_alone(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        instance = await world.running()
        assert instance.handle
        look = world.instances._reconcile
        for kind in ("adopt", "end", "stop", "gone"):
            finding = Finding(kind, instance.id, instance.handle, replace(READY, generation=7))
            await look._act(docker, finding)
        await asyncio.sleep(0.02)
        assert (instance.state, len(docker.live)) == (State.READY, 1)

    play(world, story)


def test_the_end_of_the_manager_ends_a_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "LOOK_AGAIN_S", 60)
    docker = world.runtime
    assert isinstance(docker, FakeDocker)

    async def main() -> None:
        async with world.manager():
            docker.spawn("unknown", 1, 0)
            world.instances._reconcile.soon()
            await world.until(lambda: docker.finds == 2, "a first look")
            round_ = world.instances._reconcile._round
        assert round_
        assert round_.cancelled()
        assert len(docker.live) == 1  # for the next manager

    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_lost_runtime_is_not_asked(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        docker.away, finds = "the daemon is away", docker.finds
        await round_(world)
        assert docker.finds == finds
        docker.away = None

    play(world, story)


def test_a_runtime_that_cannot_be_asked_is_unknown_until_it_can(world: World) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        running = await world.running()
        docker.script.find_error = RuntimeLost("the daemon hangs")  # without a word before
        await round_(world)
        assert running.view().status == "unknown"
        docker.script.find_error = None
        await round_(world)
        assert running.view().status == "healthy"

    play(world, story)


def test_a_runtime_that_fails_is_logged_and_looked_at_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        docker.spawn("unknown", 1, 0)
        docker.script.find_error = ZeroDivisionError("bug")
        await round_(world)
        assert "could not be compared" in caplog.text
        docker.script.find_error = None
        await round_(world)
        assert not docker.live

    play(world, story)
