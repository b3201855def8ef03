"""How many slots a request takes that is several tasks for its engine."""

from __future__ import annotations

import asyncio

import pytest

from llamaman.errors import InvalidField

from .fleet import Fleet, turns


def test_it_takes_a_slot_for_each_task_or_all_that_there_are() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        instance = fleet.add(slots=4)
        for most, taken in ((1, 1), (3, 3), (4, 4), (100, 4)):
            grant = await fleet.ask(most=most)
            assert instance.active == taken
            grant.release()
        assert instance.active == 0

    asyncio.run(scenario())


def test_it_waits_until_nobody_else_is_inside_where_it_needs_all_slots() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        instance = fleet.add(slots=2)
        light = await fleet.ask()
        many = fleet.ask_soon(most=7)
        behind = fleet.ask_soon()
        await turns()
        assert not many.done()
        assert not behind.done(), "nobody overtakes it"
        light.release()
        await turns()
        assert instance.active == 2
        (await many).release()
        (await behind).release()
        assert instance.active == 0

    asyncio.run(scenario())


def test_it_takes_what_a_narrowed_instance_has_and_is_never_refused_for_it() -> None:
    async def scenario() -> None:
        fleet = Fleet()
        fleet.add(slots=4, max_concurrent=1)
        (await fleet.ask(most=9)).release()
        with pytest.raises(InvalidField, match="n must be at most 1"):
            await fleet.ask(weight=2, most=9)

    asyncio.run(scenario())
