"""A pool starts what is missing, once, and tells those who wait what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.errors import LlamaManError, ModelUnavailable
from llamaman.records import Exit, State

from .fleet import Fleet, turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


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
        fleet = Fleet()
        fleet.add().last_exit = Exit(None, 11, 0.0)
        assert fleet.try_now() is None

    run(main())
