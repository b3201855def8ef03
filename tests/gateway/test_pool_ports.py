"""Requests through the port of one instance, beside those that ask for the model by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.core.instance import Instance
from llamaman.gateway import placing

from .fleet import Fleet, turns

Run = Callable[[Coroutine[Any, Any, Any]], Any]


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


@pytest.mark.parametrize("others", [0, 100])
def test_a_long_queue_of_one_port_is_not_looked_through_for_every_request_that_ends(
    run: Run, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    async def main() -> None:
        fleet = Fleet()
        busy, other = fleet.add(max_queue_depth=1000), fleet.add(max_queue_depth=1000)
        held = [await fleet.ask(only=busy.id), await fleet.ask(only=other.id)]
        looks = 0
        choose = placing.choose

        def look(*given: Any) -> Instance | None:
            nonlocal looks
            looks += 1
            return choose(*given)

        monkeypatch.setattr(placing, "choose", look)

        async def one(only: str) -> None:
            (await fleet.ask(only=only)).release()

        waiting = [asyncio.create_task(one(busy.id)) for _ in range(200)]
        waiting += [asyncio.create_task(one(other.id)) for _ in range(others)]
        await turns()
        for grant in held:
            grant.release()
        await asyncio.gather(*waiting)
        assert looks < 4 * len(waiting)

    run(main())
