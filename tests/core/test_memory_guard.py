"""A start that takes far more memory than its model can need is ended before it takes all there is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llamaman.core import memory_guard
from llamaman.core.memory_guard import allowance, verdict
from llamaman.records import State

from .fake_docker import FakeDocker
from .fake_runtime import World

GB = 1 << 30


def test_twice_the_estimate_and_two_gigabytes_may_be_taken() -> None:
    assert allowance(3 * GB, 100 * GB).most == 8 * GB
    assert allowance(0, 100 * GB).most == 2 * GB


def test_without_an_estimate_the_size_of_the_files_has_to_do() -> None:
    assert allowance(None, 5 * GB).most == 12 * GB


def test_what_takes_more_is_told_how_much_it_took_and_should_have() -> None:
    allowed = allowance(1 * GB, 0)
    assert verdict(None, allowed) is None
    assert verdict(4 * GB, allowed) is None
    assert verdict(9 * GB, allowed) == (
        "it took 9.0 GB of memory while loading, far more than its 1.0 GB estimate: the model file may be "
        "hostile or damaged"
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(memory_guard, "CHECK_EVERY_S", 0.01)
    return World(tmp_path, runtime=FakeDocker())


@pytest.mark.parametrize(("estimate", "fine"), [(GB, 4 * GB), (None, 2 * GB)])
def test_a_start_that_takes_too_much_is_ended_and_counts_as_a_death(
    world: World, estimate: int | None, fine: int
) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    world.memory_estimate = estimate
    docker.script.ready = False

    async def main() -> None:
        async with world.manager():
            docker.memory = fine
            launched = await world.launch()
            await world.until(lambda: docker.measured > 2, "it to be measured")
            assert world.get(launched.id).state is State.STARTING
            docker.memory = 5 * GB
            failed = await world.reach(launched.id, State.FAILED)
            assert "took 5.0 GB of memory while loading" in failed.reason
            pause = world.instances.pause(launched.id)
            assert pause is not None
            assert pause.reason == failed.reason
            assert not docker.live
            await world.rest()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_an_adopted_start_is_guarded_by_the_estimate_of_its_record(world: World) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    docker.script.ready = False
    docker.memory = 5 * GB
    handle = docker.spawn("one", 3, 0)
    facts = {"state": State.STARTING, "desired": "running", "generation": 3, "handle": handle}
    world.put_record("one", **facts, memory_estimate=10 * GB)

    async def main() -> None:
        async with world.manager():
            await world.until(lambda: docker.measured > 2, "it to be measured")
            assert world.get("one").state is State.STARTING
            docker.memory = 23 * GB
            await world.reach("one", State.FAILED)

    asyncio.run(asyncio.wait_for(main(), 120))


def test_what_is_ready_is_measured_no_more(world: World) -> None:
    docker = world.runtime
    assert isinstance(docker, FakeDocker)
    docker.memory = None  # nobody knows

    async def main() -> None:
        async with world.manager():
            instance = await world.running()
            docker.memory = 500 * GB
            await asyncio.sleep(0.05)
            assert instance.state is State.READY
            measured = docker.measured
            await asyncio.sleep(0.1)
            assert docker.measured <= measured + 1, "one may have been under way"

    asyncio.run(asyncio.wait_for(main(), 120))
