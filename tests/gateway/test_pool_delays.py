"""What a request need not wait for: what is fetched first, and engines of which nobody knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.core.instance import Instance
from llamaman.errors import ModelUnavailable, RuntimeLost
from llamaman.records import State

from .fleet import Fleet, turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


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
