"""An engine that is not here yet: what its instance shows, what requests get, and how it ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import fetching
from llamaman.core.admission import Policy
from llamaman.errors import LaunchError, LlamaManError, ModelUnavailable, RuntimeLost
from llamaman.gateway.grant import Grant
from llamaman.records import InstanceView, State

from .fake_docker import AWAY, FakeDocker, Fetch, Story, play
from .fake_runtime import World, outcome

NOT_FOUND = LaunchError("Docker image not found: example.org/llama:server")


def play_without_image(folder: Path, story: Story) -> None:
    docker = FakeDocker()
    docker.missing = True
    play(World(folder, runtime=docker), story)


async def fetching_one(world: World, docker: FakeDocker) -> tuple[InstanceView, Fetch]:
    """An instance whose image is being fetched."""
    launched = await world.launch()
    await world.until(lambda: world.get(launched.id).fetching is not None, "the fetch to begin")
    return launched, docker.fetches[-1]


def told(world: World, kind: str) -> list[str]:
    return [event.reason for event in world.events.since("instances", 0) if event.kind == kind]


# --- an instance ----------------------------------------------------------------------------------------


def test_a_missing_image_is_fetched_while_the_instance_prepares_and_says_how_far_it_is(
    tmp_path: Path,
) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.progress("pulling image, 43 %")
        await world.until(lambda: "43 %" in world.instances.view(launched.id).reason, "its progress")
        view = world.instances.view(launched.id)
        assert (view.state, view.status) == (State.PREPARING, "starting")
        assert docker.started == 0
        docker.arrived()
        ready = await world.reach(launched.id, State.READY)
        assert ready.view().engine_digest == "sha256:abc"  # of the image that is here now
        assert (ready.fetching, ready.internal_port) == (None, None)

    play_without_image(tmp_path, story)


def test_progress_is_told_at_most_once_a_second_but_shown_at_once(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        for percent in range(50):
            fetch.progress(f"pulling image, {percent} %")
        await world.until(lambda: "49 %" in world.get(launched.id).reason, "the last word")
        assert 1 <= len(told(world, "fetching")) <= 3
        docker.arrived()
        await world.reach(launched.id, State.READY)

    play_without_image(tmp_path, story)


def test_progress_is_an_event_again_when_some_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "NEWS_EVERY_S", 0.0)

    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        for percent in range(5):
            fetch.progress(f"pulling image, {percent} %")
        await world.until(lambda: "pulling image, 4 %" in told(world, "fetching"), "an event for each")
        assert len(told(world, "fetching")) >= 6
        docker.arrived()
        await world.reach(launched.id, State.READY)

    play_without_image(tmp_path, story)


def test_the_time_to_fetch_is_no_time_to_load(tmp_path: Path) -> None:
    docker = FakeDocker()
    docker.missing = True
    world = World(tmp_path, runtime=docker)
    world.load_timeout_s = 0.1

    async def story(world: World, docker: FakeDocker) -> None:
        launched, _ = await fetching_one(world, docker)
        await asyncio.sleep(3 * world.load_timeout_s)
        assert world.get(launched.id).state is State.PREPARING
        arrived = time.monotonic()
        docker.arrived()
        await world.reach(launched.id, State.READY)
        took = world.get(launched.id).load_seconds
        assert took is not None
        assert took <= time.monotonic() - arrived + 0.001, "it is rounded"

    play(world, story)


def test_a_fetch_that_fails_fails_the_instance_and_the_next_request_gets_the_reason_without_another_fetch(
    tmp_path: Path,
) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.fail(NOT_FOUND)
        failed = await world.reach(launched.id, State.FAILED)
        assert failed.reason == NOT_FOUND.message
        for _ in range(3):
            refused = await outcome(asyncio.ensure_future(world.grant()))
            assert isinstance(refused, ModelUnavailable)
            assert NOT_FOUND.message in refused.message
            assert 20 <= (refused.retry_after or 0) <= 30
        assert len(docker.fetches) == 1

    play_without_image(tmp_path, story)


def test_after_its_time_a_request_tries_a_failed_fetch_again(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.fail(LaunchError("the registry is busy", retry_after=1))
        await world.reach(launched.id, State.FAILED)

        async def asked() -> bool:
            await outcome(asyncio.ensure_future(world.grant()))
            return len(docker.fetches) == 2

        async with asyncio.timeout(60):
            while not await asked():
                await asyncio.sleep(0.05)
        docker.arrived()
        await world.reach(launched.id, State.READY)

    play_without_image(tmp_path, story)


def test_an_administrator_may_try_a_failed_fetch_again_at_once(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.fail(NOT_FOUND)
        await world.reach(launched.id, State.FAILED)
        await world.restart(launched.id)
        await world.until(lambda: len(docker.fetches) == 2, "another fetch")
        docker.arrived()
        await world.reach(launched.id, State.READY)

    play_without_image(tmp_path, story)


def test_a_failed_fetch_is_no_death_of_the_model(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.fail(NOT_FOUND)
        failed = await world.reach(launched.id, State.FAILED)
        deaths = world.instances._breaker.death(failed.config_hash, "the first one", 0.0)
        assert deaths == 5.0  # the pause after the first death

    play_without_image(tmp_path, story)


@pytest.mark.parametrize("force", [False, True])
def test_a_stop_during_a_fetch_works_at_once_and_so_does_the_removal_after_it(
    tmp_path: Path, force: bool
) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        stopped = await asyncio.wait_for(world.stop(launched.id, force=force), 60)
        assert stopped.state is State.STOPPED
        await world.until(fetch.future.cancelled, "our part of the fetch to be given up")
        await world.remove(launched.id)
        assert world.instances.views() == ()
        fetch.progress("pulling image, 99 %")  # for others
        assert docker.started == 0

    play_without_image(tmp_path, story)


def test_a_stop_before_the_first_word_of_a_fetch_does_not_wait_for_it_either(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        docker.fetch_s = 0.2
        launched = await world.launch()
        await world.reach(launched.id, State.PREPARING)
        assert (await asyncio.wait_for(world.stop(launched.id), 60)).state is State.STOPPED
        await world.until(lambda: bool(docker.fetches), "the fetch to begin")
        await world.until(docker.fetches[0].future.cancelled, "our part of it to be given up")

    play_without_image(tmp_path, story)


def test_a_manager_that_ends_while_a_fetch_begins_lets_go_of_it(tmp_path: Path) -> None:
    docker = FakeDocker()
    docker.missing = True
    docker.fetch_s = 0.3
    world = World(tmp_path, runtime=docker)

    async def main() -> None:
        async with world.manager():
            launched = await world.launch()
            await world.reach(launched.id, State.PREPARING)
            await asyncio.sleep(0.1)
        await world.until(
            lambda: [each.future.cancelled() for each in docker.fetches] == [True], "our part's end"
        )
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_daemon_that_goes_during_a_fetch_is_no_failed_fetch(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.fail(RuntimeLost(AWAY))
        await world.reach(launched.id, State.FAILED)
        assert world.instances.pause(launched.id) is None  # the next request may try at once
        asking = asyncio.ensure_future(world.grant())
        await world.until(lambda: len(docker.fetches) == 2, "another fetch")
        await outcome(asking)
        docker.arrived()
        await world.reach(launched.id, State.READY)

    play_without_image(tmp_path, story)


def test_a_start_after_a_stop_during_a_fetch_is_not_disturbed_by_it(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, first = await fetching_one(world, docker)
        await world.stop(launched.id)
        await world.restart(launched.id)
        await world.until(lambda: len(docker.fetches) == 2, "another fetch")
        first.progress("pulling image, 7 %")
        docker.arrived()
        await world.reach(launched.id, State.READY)
        assert docker.started == 1

    play_without_image(tmp_path, story)


def test_the_end_of_the_manager_does_not_wait_for_a_fetch(tmp_path: Path) -> None:
    docker = FakeDocker()
    docker.missing = True
    world = World(tmp_path, runtime=docker)

    async def main() -> None:
        async with world.manager(stop_engines=True):
            await fetching_one(world, docker)
        assert docker.fetches[0].future.cancelled()
        docker.fetches[0].progress("pulling image, 99 %")  # a late word hurts nobody
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_fetch_that_somebody_else_gave_up_fails_the_start_and_hangs_nobody(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.future.cancel()
        failed = await world.reach(launched.id, State.FAILED)
        assert "given up" in failed.reason

    play_without_image(tmp_path, story)


# --- requests meanwhile ---------------------------------------------------------------------------------


def assert_told(refused: Any, progress: str) -> None:
    assert isinstance(refused, ModelUnavailable)
    assert refused.message == f"model 'alpha' is not loaded yet: {progress}"
    assert refused.status == 503
    assert 5 <= (refused.retry_after or 0) <= 30


@pytest.mark.parametrize("on_its_port", [False, True])
def test_a_request_during_a_fetch_is_told_at_once_how_far_it_is(tmp_path: Path, on_its_port: bool) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, fetch = await fetching_one(world, docker)
        fetch.progress("pulling image, 43 %")
        await world.until(lambda: "43 %" in world.get(launched.id).reason, "its progress")
        only = launched.id if on_its_port else None
        assert_told(await outcome(asyncio.ensure_future(world.grant(only=only))), "pulling image, 43 %")
        docker.arrived()
        await world.reach(launched.id, State.READY)
        (await world.grant(only=only)).release()

    play_without_image(tmp_path, story)


def test_those_whose_request_began_the_fetch_are_told_too(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        asking = [asyncio.ensure_future(world.grant()) for _ in range(5)]
        for refused in [await outcome(each) for each in asking]:
            assert_told(refused, "fetching its engine")
        assert len(docker.fetches) == 1
        docker.arrived()
        (view,) = world.instances.views()
        await world.reach(view.id, State.READY)  # the fetch went on without them

    play_without_image(tmp_path, story)


def test_a_request_is_served_by_another_instance_of_the_model_that_is_ready(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        docker.missing = False
        ready = await world.running()
        docker.missing = True
        fetching, _ = await fetching_one(world, docker)
        grants = [await outcome(asyncio.ensure_future(world.grant())) for _ in range(2)]
        third = asyncio.ensure_future(world.grant())  # the ready one is full: this one waits for it
        await asyncio.sleep(0.02)
        assert not third.done()
        for grant in grants:
            assert isinstance(grant, Grant)
            assert grant.instance is ready
            grant.release()
        (await third).release()
        assert_told(
            await outcome(asyncio.ensure_future(world.grant(only=fetching.id))), "fetching its engine"
        )
        docker.arrived()
        await world.reach(fetching.id, State.READY)

    play_without_image(tmp_path, story)


def test_a_fetching_instance_counts_as_running_and_is_no_victim(tmp_path: Path) -> None:
    async def story(world: World, docker: FakeDocker) -> None:
        launched, _ = await fetching_one(world, docker)
        world.policy = Policy(max_models=1, openai_may_evict_managed=True)
        refused = await outcome(asyncio.ensure_future(world.grant("beta")))
        assert isinstance(refused, LlamaManError)
        assert world.get(launched.id).state is State.PREPARING
        docker.arrived()
        await world.reach(launched.id, State.READY)

    play_without_image(tmp_path, story)
