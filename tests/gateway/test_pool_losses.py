"""No slot and no waiter is ever lost, whatever leaves, stops or wakes at which moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.core.demand import Demand
from llamaman.records import State

from .fleet import MODEL, Fleet, turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_waiter_cancelled_in_the_turn_of_its_grant_gives_the_slot_to_the_next(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add()
        held = await fleet.ask()
        first, second = fleet.ask_soon(), fleet.ask_soon()
        await turns()
        held.release()  # the first one's future is done, its task has not run
        first.cancel()
        (await second).release()
        assert (first.cancelled(), instance.active, instance.queued) == (True, 0, 0)

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_random_cancels_stops_and_wakes_never_leak_a_slot_or_a_waiter(run: Run, seed: int) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        fleet = Fleet()
        instances = [fleet.add(slots=3), fleet.add(slots=2)]
        served = 0

        async def one() -> None:
            nonlocal served
            weight = chance.choice((1, 1, 1, 2))
            only = chance.choice((None, None, instances[0].id, instances[1].id))
            grant = await fleet.ask(only=only, weight=weight)
            try:
                assert all(0 <= i.active <= i.capacity for i in instances)
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                served += 1
            finally:
                grant.release()

        tasks: list[asyncio.Task[None]] = []
        for _ in range(600):
            if len(fleet.pool._tickets) < 150:
                tasks.append(asyncio.create_task(one()))
            if chance.random() < 0.4:
                chance.choice(tasks).cancel()
            if chance.random() < 0.03:
                fleet.turn(chance.choice(instances), State.STOPPING)
            if chance.random() < 0.1:
                for instance in instances:
                    if instance.state is State.STOPPING:
                        fleet.turn(instance, State.SLEEPING)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        for instance in instances:
            if instance.state is State.STOPPING:
                fleet.turn(instance, State.SLEEPING)
        if not any(i.state is State.READY for i in instances):
            fleet.ask_soon().add_done_callback(lambda task: task.result().release())
        asleep = [i for i in instances if i.state is State.SLEEPING]
        tasks += [asyncio.create_task(_touch(fleet, instance.id)) for instance in asleep]
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        await turns(50)
        strange = [o for o in outcomes if o is not None and not isinstance(o, asyncio.CancelledError)]
        assert strange == []
        assert served > 50
        assert (fleet.active, [i.queued for i in instances], len(fleet.pool._tickets)) == (0, [0, 0], 0)

    run(main())


async def _touch(fleet: Fleet, only: str) -> None:
    (await fleet.ask(only=only)).release()


def test_a_changed_instance_of_a_model_that_nobody_asked_for_is_no_error(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        other = fleet.add()
        other.model_path = MODEL.path.with_name("other.gguf")
        fleet.turn(other, State.READY)
        assert fleet.starts == []

    run(main())


def test_who_comes_while_a_start_is_given_up_has_it_begun_anew() -> None:
    """A start that nobody waits for is given up; whoever comes before that is over must not wait for ever."""

    async def story() -> None:
        fleet = Fleet()
        begin = fleet.ensure_running
        given_up = 0

        async def give_up_once(demand: Demand) -> None:
            nonlocal given_up
            given_up += 1
            if given_up > 1:
                await begin(demand)

        fleet.ensure_running = give_up_once  # type: ignore[method-assign] # the first start comes to nothing
        grant = await asyncio.wait_for(fleet.ask(), 5)
        grant.release()
        assert given_up == 2

    asyncio.run(story())
