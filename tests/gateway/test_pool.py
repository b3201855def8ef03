"""Demand, tickets and grants: who gets a slot, in which order, and that no slot is ever lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.core.demand import Demand
from llamaman.core.instance import Instance
from llamaman.errors import InvalidField, LlamaManError, ModelUnavailable, QueueFull, RuntimeLost
from llamaman.records import State

from .fleet import MODEL, Fleet, turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


# --- granting at once -----------------------------------------------------------------------------------


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


# --- requests through the port of one instance ----------------------------------------------------------


def test_a_request_of_one_port_is_served_by_that_instance_only(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        first, second = fleet.add(), fleet.add()
        grant = await fleet.ask(only=second.id)
        assert grant.instance is second
        waiting = fleet.ask_soon(only=second.id)
        await turns()
        assert (waiting.done(), first.active) == (False, 0)
        grant.release()
        assert (await waiting).instance is second

    run(main())


def test_a_port_does_not_overtake_its_own_queue(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(slots=2)
        await fleet.ask()
        heavy = fleet.ask_soon(only=instance.id, weight=2)
        await turns()
        assert fleet.try_now(only=instance.id) is None
        assert not heavy.done()

    run(main())


def test_a_port_does_not_overtake_those_who_ask_by_name(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(slots=2)
        held = await fleet.ask()
        by_name = fleet.ask_soon(weight=2)
        await turns()
        by_port = fleet.ask_soon(only=instance.id)
        await turns()
        assert (by_name.done(), by_port.done()) == (False, False)
        held.release()
        await turns()
        assert (by_name.done(), by_port.done()) == (True, False)

    run(main())


def test_a_heavy_request_of_a_port_is_not_starved_by_those_who_ask_by_name(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(slots=2)
        one, two = await fleet.ask(), await fleet.ask()
        heavy = fleet.ask_soon(only=instance.id, weight=2)
        await turns()
        by_name = fleet.ask_soon()
        await turns()
        one.release()
        await turns()
        assert (heavy.done(), by_name.done()) == (False, False)
        two.release()
        await turns()
        assert (heavy.done(), by_name.done()) == (True, False)

    run(main())


def test_a_busy_port_does_not_hold_up_those_who_ask_by_name_while_another_instance_is_free(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        busy, free = fleet.add(), fleet.add()
        await fleet.ask(only=busy.id)
        by_port = fleet.ask_soon(only=busy.id)
        await turns()
        by_name = fleet.ask_soon()
        await turns()
        assert by_name.done()
        assert by_name.result().instance is free
        assert not by_port.done()

    run(main())


# --- the queue's limits ---------------------------------------------------------------------------------


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


# --- starting -------------------------------------------------------------------------------------------


def test_20_first_requests_start_one_instance_and_are_all_served(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.may_start.clear()

        async def one() -> None:
            grant = await fleet.ask()
            await asyncio.sleep(0)
            grant.release()

        tasks = [asyncio.create_task(one()) for _ in range(20)]
        await turns()
        assert fleet.starts == [None]
        fleet.may_start.set()
        await asyncio.gather(*tasks)
        assert (fleet.starts, len(fleet.instances), fleet.active) == ([None], 1, 0)

    run(main())


def test_a_running_instance_is_waited_for_not_doubled(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.add()
        await fleet.ask()
        fleet.ask_soon()
        await turns()
        assert fleet.starts == []

    run(main())


def test_a_start_that_is_refused_is_told_to_every_waiter(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.start_error = ModelUnavailable("model limit reached", retry_after=30)
        outcomes = await asyncio.gather(*(fleet.ask() for _ in range(20)), return_exceptions=True)
        assert {str(o) for o in outcomes} == {"model limit reached"}
        assert (len(outcomes), fleet.starts, fleet.active) == (20, [None], 0)

    run(main())


def test_a_bug_while_starting_is_told_without_its_text_and_reported_to_the_loop(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.start_error = ZeroDivisionError("secret")
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        with pytest.raises(LlamaManError) as told:
            await fleet.ask()
        assert (told.value.status, "secret" in told.value.message) == (500, False)
        assert isinstance(reported[0]["exception"], ZeroDivisionError)

    run(main())


def test_after_a_refused_start_the_next_request_tries_again(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.start_error = ModelUnavailable("not now")
        with pytest.raises(ModelUnavailable):
            await fleet.ask()
        fleet.start_error = None
        assert (await fleet.ask()).instance.state is State.READY
        assert fleet.starts == [None, None]

    run(main())


def test_a_waiter_that_leaves_does_not_stop_the_start_for_the_others(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        fleet.may_start.clear()
        first, second = fleet.ask_soon(), fleet.ask_soon()
        await turns()
        first.cancel()
        await turns()
        fleet.may_start.set()
        (await second).release()
        assert (fleet.starts, fleet.active) == ([None], 0)

    run(main())


def test_a_load_that_fails_is_told_to_its_waiters_at_once(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(state=State.STARTING)
        tasks = [fleet.ask_soon() for _ in range(5)] + [fleet.ask_soon(only=instance.id)]
        await turns()
        fleet.turn(instance, State.FAILED, "not a GGUF file")
        await turns()
        assert all(task.done() for task in tasks)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {str(o) for o in outcomes} == {"failed: not a GGUF file"}

    run(main())


def test_a_failed_instance_does_not_fail_waiters_that_another_one_will_serve(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        failing, loading = fleet.add(state=State.STARTING), fleet.add(state=State.STARTING)
        anyone, by_port = fleet.ask_soon(), fleet.ask_soon(only=failing.id)
        await turns()
        fleet.turn(failing, State.FAILED)
        await turns()
        assert (anyone.done(), by_port.done()) == (False, True)
        by_port.exception()
        fleet.turn(loading, State.READY)
        assert (await anyone).instance is loading

    run(main())


@pytest.mark.parametrize("state", [State.BACKOFF, State.STOPPING, State.DRAINING, State.STARTING])
def test_waiters_stay_while_an_instance_is_on_its_way(run: Run, state: State) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add()
        await fleet.ask()
        waiting = fleet.ask_soon()
        await turns()
        fleet.turn(instance, state)
        await turns()
        assert not waiting.done()

    run(main())


def test_waiters_of_an_instance_that_an_administrator_stops_are_told_why(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add()
        await fleet.ask()
        waiting = fleet.ask_soon()
        await turns()
        fleet.turn(instance, State.STOPPED, "stopped by an administrator")
        with pytest.raises(ModelUnavailable, match="stopped by an administrator"):
            await waiting

    run(main())


def test_an_instance_that_falls_asleep_under_a_waiter_is_woken_again(run: Run) -> None:
    async def main() -> None:
        for by_port in (False, True):
            fleet = Fleet()
            instance = fleet.add()
            held = await fleet.ask()
            only = instance.id if by_port else None
            waiting = [fleet.ask_soon(only=only), fleet.ask_soon(only=only)]
            await turns()
            fleet.turn(instance, State.STOPPING)
            held.release()
            fleet.turn(instance, State.SLEEPING)
            for task in waiting:
                (await task).release()
            assert (fleet.starts, fleet.active) == ([only], 0)

    run(main())


def test_an_instance_whose_process_just_ended_is_not_given_out(run: Run) -> None:
    async def main() -> None:
        from llamaman.records import Exit

        fleet = Fleet()
        fleet.add().last_exit = Exit(None, 11, 0.0)
        assert fleet.try_now() is None

    run(main())


# --- what need not be waited for ------------------------------------------------------------------------

PULLING = "pulling image, 43 %"


def begin_fetch(fleet: Fleet, instance: Instance, text: str = PULLING) -> None:
    """As a supervisor does."""
    instance.fetching = text
    fleet.turn(instance, State.PREPARING, text)


def test_a_request_for_what_is_fetched_is_told_at_once_how_far_that_is(run: Run) -> None:
    async def main() -> None:
        for by_port in (False, True):
            fleet = Fleet()
            instance = fleet.add(state=State.PREPARING)
            begin_fetch(fleet, instance)
            with pytest.raises(ModelUnavailable) as told:
                await fleet.ask(only=instance.id if by_port else None)
            assert told.value.message == "model 'tiny' is not loaded yet: pulling image, 43 %"
            assert (told.value.status, told.value.code) == (503, "model_unavailable")
            assert 5 <= (told.value.retry_after or 0) <= 30
            assert (fleet.starts, instance.queued) == ([], 0)

    run(main())


def test_those_who_wait_already_are_told_when_the_fetch_begins(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(state=State.PREPARING)
        tasks = [fleet.ask_soon() for _ in range(5)] + [fleet.ask_soon(only=instance.id)]
        await turns()
        assert not any(task.done() for task in tasks)
        begin_fetch(fleet, instance)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {str(o) for o in outcomes} == {"model 'tiny' is not loaded yet: pulling image, 43 %"}
        assert instance.queued == 0

    run(main())


def test_a_fetch_sends_nobody_away_whom_another_instance_will_serve(run: Run) -> None:
    async def main() -> None:
        for other in (State.READY, State.STARTING):
            fleet = Fleet()
            fetching, coming = fleet.add(state=State.PREPARING), fleet.add(state=other)
            if other is State.READY:
                held = await fleet.ask()
            anyone, by_port = fleet.ask_soon(), fleet.ask_soon(only=fetching.id)
            await turns()
            begin_fetch(fleet, fetching)
            late = fleet.ask_soon()
            await turns()
            assert (anyone.done(), by_port.done(), late.done()) == (False, True, False)
            by_port.exception()
            if other is State.READY:
                held.release()
            else:
                fleet.turn(coming, State.READY)
            for task in (anyone, late):
                grant = await task
                assert grant.instance is coming
                grant.release()

    run(main())


def test_after_the_fetch_requests_wait_for_the_load_as_ever(run: Run) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(state=State.PREPARING)
        begin_fetch(fleet, instance)
        instance.fetching = None
        fleet.turn(instance, State.STARTING)
        waiting = fleet.ask_soon()
        await turns()
        assert not waiting.done()
        fleet.turn(instance, State.READY)
        assert (await waiting).instance is instance

    run(main())


@pytest.mark.parametrize("state", [State.READY, State.STARTING, State.STOPPING])
def test_nobody_is_given_to_nor_waits_for_an_engine_of_which_nobody_knows_whether_it_runs(
    run: Run, state: State
) -> None:
    async def main() -> None:
        fleet = Fleet()
        instance = fleet.add(state=state)
        instance.unsettled, instance.lost = True, "the Docker daemon is away"
        assert fleet.try_now() is None
        with pytest.raises(RuntimeLost, match="the Docker daemon is away"):
            await fleet.ask()
        known = fleet.add()
        assert (await fleet.ask()).instance is known

    run(main())


def test_while_a_runtime_is_lost_its_ready_engines_serve_and_its_loading_ones_are_waited_for(
    run: Run,
) -> None:
    async def main() -> None:
        fleet = Fleet()
        ready, loading = fleet.add(), fleet.add(state=State.STARTING)
        for instance in (ready, loading):
            instance.lost = "the Docker daemon is away"
            fleet.turn(instance, instance.state)
        (await fleet.ask()).release()
        waiting = fleet.ask_soon(only=loading.id)
        await turns()
        assert not waiting.done()
        fleet.turn(loading, State.READY)
        assert (await waiting).instance is loading

    run(main())


# --- nothing is ever lost -------------------------------------------------------------------------------


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
