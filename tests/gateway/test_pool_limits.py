"""How many may wait in a pool's queue, how long, and how that shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.errors import QueueFull
from llamaman.records import State

from .fleet import Fleet, turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_full_queue_refuses_with_429(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add(max_queue_depth=3)
        await fleet.ask()
        waiting = [fleet.ask_soon() for _ in range(3)]
        await turns()
        with pytest.raises(QueueFull) as full:
            await fleet.ask()
        assert (full.value.status, full.value.message, full.value.retry_after) == (
            429,
            "request queue full",
            1,
        )
        waiting[0].cancel()
        await turns()
        assert not (place := fleet.ask_soon()).done()  # a place came free
        await turns()
        assert not place.done()

    run(main())


def test_without_a_limit_of_its_own_200_may_wait(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add()
        await fleet.ask()
        for _ in range(200):
            fleet.ask_soon()
        await turns()
        with pytest.raises(QueueFull):
            await fleet.ask()

    run(main())


def test_where_nobody_may_wait_a_free_slot_is_given_and_a_busy_one_is_a_429(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add(max_queue_depth=0)
        grant = await fleet.ask()
        with pytest.raises(QueueFull):
            await fleet.ask()
        grant.release()
        (await fleet.ask()).release()

    run(main())


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_those_whom_a_sleeping_instance_will_have_slots_for_take_no_place_in_its_queue(
    run: Run, depth: int
) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add(state=State.SLEEPING, slots=2, max_queue_depth=depth)
        fleet.may_start.clear()
        waiting = [fleet.ask_soon() for _ in range(5)]
        await turns()
        refused = [task for task in waiting if task.done()]
        assert len(refused) == 5 - 2 - depth
        assert all(isinstance(task.exception(), QueueFull) for task in refused)
        fleet.may_start.set()
        for task in waiting[: 2 + depth]:
            (await task).release()
        assert fleet.starts == [None]

    run(main())


def test_a_full_queue_of_one_port_turns_nobody_away_from_another(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        full, free = fleet.add(max_queue_depth=1), fleet.add(max_queue_depth=1)
        held = await fleet.ask(only=full.id)
        waiting = fleet.ask_soon(only=full.id)
        await turns()
        assert (full.queued, free.queued) == (1, 0), "nobody waits for the other one"
        with pytest.raises(QueueFull):
            await fleet.ask(only=full.id)
        (await fleet.ask(only=free.id)).release()
        (await fleet.ask()).release()
        held.release()
        (await waiting).release()

    run(main())


def test_an_instance_that_is_stopped_has_no_queue_to_wait_in(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add(max_queue_depth=1)
        fleet.add(state=State.STOPPED)
        await fleet.ask()
        fleet.ask_soon()
        await turns()
        with pytest.raises(QueueFull):
            await fleet.ask()

    run(main())


def test_the_wait_for_a_slot_ends_after_request_timeout(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet(timeout_s=0.05)
        instance = fleet.add()
        await fleet.ask()
        with pytest.raises(QueueFull, match="REQUEST_TIMEOUT") as late:
            await fleet.ask()
        assert (late.value.status, late.value.retry_after) == (429, 5)
        assert instance.queued == 0

    run(main())


def test_waiting_for_a_load_is_not_bounded_by_request_timeout(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet(timeout_s=0.02)
        instance = fleet.add(state=State.STARTING)
        waiting = fleet.ask_soon()
        await asyncio.sleep(0.15)
        assert (waiting.done(), fleet.pool.loading) == (False, True)
        fleet.turn(instance, State.READY)
        assert (await waiting).instance is instance

    run(main())


def test_every_instance_shows_how_many_wait(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        one, two = fleet.add(), fleet.add()
        grants = [await fleet.ask(), await fleet.ask()]
        waiting = [fleet.ask_soon() for _ in range(3)]
        await turns()
        assert (one.queued, two.queued) == (3, 3)
        grants[0].release()
        await turns()
        assert (one.queued, two.queued) == (2, 2)
        for task in waiting:
            task.cancel()
        await turns()
        assert (one.queued, two.queued) == (0, 0)

    run(main())


def test_an_instance_that_was_started_for_waiters_shows_them_so_that_it_is_no_victim(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.may_start.clear()
        fleet.ask_soon()
        fleet.ask_soon()
        await turns()
        instance = fleet.add(state=State.QUEUED)
        fleet.turn(instance, State.PREPARING)
        assert instance.queued == 2

    run(main())
