"""Who gets a slot, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.errors import InvalidField, QueueFull
from llamaman.records import State

from .fleet import Fleet, turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_free_slot_is_granted_at_once_and_comes_back_with_the_release(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add()
        grant = fleet.try_now()
        assert grant is not None
        assert grant.instance is instance
        assert (instance.active, instance.last_request is not None) == (1, True)
        assert fleet.try_now() is None
        grant.release()
        assert (instance.active, fleet.left) == (0, [instance.id])
        assert instance.last_release is not None

    run(main())


def test_the_least_busy_instance_is_chosen(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        first, second = fleet.add(slots=4), fleet.add(slots=4)
        chosen = [(await fleet.ask()).instance for _ in range(4)]
        assert sorted(i.id for i in chosen) == [first.id, first.id, second.id, second.id]

    run(main())


@pytest.mark.parametrize("state", [s for s in State if s is not State.READY])
def test_only_ready_instances_are_given_out(run: Run, state: State) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add(state=state)
        assert fleet.try_now() is None

    run(main())


def test_permits_never_exceed_slots_nor_max_concurrent(run: Run) -> None:
    async def main() -> None:
        for slots, limit, most in ((2, 0, 2), (2, 1, 1), (2, 9, 2), (1, 4, 1)):
            fleet = Fleet()
            fleet.add(slots=slots, max_concurrent=limit)
            grants = [fleet.try_now() for _ in range(12)]
            assert sum(grant is not None for grant in grants) == most

    run(main())


def test_a_second_holder_keeps_the_slot_until_it_lets_go(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add()
        grant = await fleet.ask()
        grant.hold()
        waiting = fleet.ask_soon()
        await turns()
        grant.release()
        await turns()
        assert (instance.active, waiting.done()) == (1, False)
        grant.release()
        (await waiting).release()
        assert instance.active == 0

    run(main())


# --- order ----------------------------------------------------------------------------------------------


def test_waiters_are_served_in_the_order_in_which_they_came(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add()
        held = await fleet.ask()
        order: list[int] = []

        async def one(number: int) -> None:
            grant = await fleet.ask()
            order.append(number)
            await asyncio.sleep(0)
            grant.release()

        tasks = [asyncio.create_task(one(n)) for n in range(20)]
        await turns()
        held.release()
        await asyncio.gather(*tasks)
        assert order == list(range(20))

    run(main())


def test_nobody_overtakes_the_queue_through_a_slot_that_just_came_free(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add()
        held = await fleet.ask()
        first = fleet.ask_soon()
        await turns()
        held.release()
        assert fleet.try_now() is None  # promised to the first, who has not run yet
        (await first).release()

    run(main())


def test_a_heavy_request_gets_all_its_slots_or_none_and_is_not_starved_by_light_ones(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(slots=2)
        one, two = await fleet.ask(), await fleet.ask()
        heavy = fleet.ask_soon(weight=2)
        await turns()
        light = fleet.ask_soon()
        await turns()
        one.release()
        await turns()
        assert (heavy.done(), light.done(), instance.active) == (False, False, 1)
        two.release()
        await turns()
        assert (heavy.done(), light.done(), instance.active) == (True, False, 2)
        heavy.result().release()
        (await light).release()
        assert instance.active == 0

    run(main())


def test_who_waits_behind_a_heavy_request_goes_on_when_that_one_leaves(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add(slots=2)
        await fleet.ask()
        heavy = fleet.ask_soon(weight=2)
        await turns()
        light = fleet.ask_soon()
        await turns()
        assert not light.done()
        heavy.cancel()
        await turns()
        assert light.done()

    run(main())


def test_who_waits_behind_a_request_that_ran_out_of_time_goes_on(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet(timeout_s=0.1)
        fleet.add(slots=2)
        await fleet.ask()
        heavy = fleet.ask_soon(weight=2)
        await asyncio.sleep(0.08)
        light = fleet.ask_soon()
        with pytest.raises(QueueFull):
            await heavy
        assert (await light).instance.active == 2

    run(main())


def test_a_request_that_needs_more_slots_than_any_instance_has_is_refused_at_once(run: Run) -> None:
    async def main() -> None:
        for busy in (False, True):
            for by_port in (False, True):
                fleet = Fleet()
                instance = fleet.add(slots=2)
                if busy:
                    await fleet.ask()
                heavy = fleet.ask_soon(weight=3, only=instance.id if by_port else None)
                await turns()
                assert heavy.done()
                with pytest.raises(InvalidField, match="at most 2") as refused:
                    await heavy
                assert (refused.value.status, refused.value.field) == (400, "n")

    run(main())


def test_who_waits_behind_a_too_heavy_request_goes_on(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.may_start.clear()
        heavy, light = fleet.ask_soon(weight=2), fleet.ask_soon()
        await turns()
        fleet.may_start.set()
        await turns()
        with pytest.raises(InvalidField):
            await heavy
        assert (await light).instance.state is State.READY

    run(main())


def test_what_needs_no_slot_does_not_wait_for_one_and_takes_none(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add()
        await fleet.ask()
        fleet.ask_soon()
        await turns()
        grant = fleet.try_now(weight=0)
        assert grant is not None
        assert instance.active == 1
        grant.release()
        assert (instance.active, fleet.left) == (1, [])

    run(main())


def test_a_heavy_request_holds_nobody_up_on_an_instance_that_is_too_small_for_it(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        large, small = fleet.add(slots=2), fleet.add(slots=1)
        held = [await fleet.ask(only=large.id), await fleet.ask(only=small.id)]
        heavy = fleet.ask_soon(weight=2)
        await turns()
        light = fleet.ask_soon()
        await turns()
        held[1].release()
        await turns()
        assert light.done()
        assert light.result().instance is small
        held[0].release()
        assert (await heavy).instance is large

    run(main())


def test_a_too_heavy_request_behind_others_is_refused_at_once(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add()
        await fleet.ask()
        fleet.ask_soon()
        await turns()
        with pytest.raises(InvalidField, match="at most 1"):
            await fleet.ask(weight=2)

    run(main())


def test_what_needs_no_slot_waits_for_the_load_alone_not_for_those_before_it(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.may_start.clear()
        first, second = fleet.ask_soon(), fleet.ask_soon()
        await turns()
        load = fleet.ask_soon(weight=0)
        await turns()
        fleet.may_start.set()
        await turns()
        assert (first.done(), second.done(), load.done()) == (True, False, True)

    run(main())
