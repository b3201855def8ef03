"""A conversation goes back to the instance that has its beginning in the prompt cache."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llamaman.gateway import affinity
from llamaman.gateway.affinity import Homes, conversation
from llamaman.gateway.placing import CLEARLY_BUSIER

from .fleet import Fleet

FIRST = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"messages": [FIRST]}, {"messages": [FIRST, {"role": "assistant", "content": "hi"}, FIRST]}),
        ({"system": "be kind", "messages": [FIRST]}, {"system": "be kind", "messages": [FIRST, FIRST]}),
        (
            {"messages": [{"role": "system", "content": "be kind"}, FIRST]},
            {"messages": [{"role": "system", "content": "be kind"}, FIRST, FIRST], "temperature": 1},
        ),
        ({"instructions": "be kind", "input": [FIRST]}, {"instructions": "be kind", "input": [FIRST, FIRST]}),
        ({"prompt": "once upon"}, {"prompt": "once upon", "n_predict": 3}),
    ],
)  # fmt: skip
def test_a_conversation_keeps_its_key_while_it_grows(first: Any, later: Any) -> None:
    assert conversation(first) is not None
    assert conversation(first) == conversation(later)


def test_other_beginnings_are_other_conversations() -> None:
    bodies: list[Any] = [
        {"messages": [FIRST]},
        {"messages": [{"role": "user", "content": "other"}]},
        {"system": "x", "messages": [FIRST]},
        {"messages": [{"role": "system", "content": "y"}, FIRST]},
        {"prompt": "hello there"},
        {"input": "hello again"},
    ]
    assert len({conversation(body) for body in bodies}) == len(bodies)


@pytest.mark.parametrize(
    "body", [{}, {"messages": []}, {"messages": 7}, {"messages": [7, None]}, {"prompt": ""}, {"input": None}]
)
def test_strange_bodies_are_no_error(body: Any) -> None:
    conversation(body)


def test_what_was_not_heard_of_for_long_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "REMEMBERED", 2)
    homes = Homes()
    for name in ("a", "b"):
        homes.note(name, "i0")
    homes.note("a", "i1")
    homes.note("c", "i0")
    assert [homes.of(name) for name in ("a", "b", "c")] == ["i1", None, "i0"]


def test_a_conversation_goes_back_to_where_it_was() -> None:
    async def story() -> None:
        fleet = Fleet()
        fleet.add(slots=4), fleet.add(slots=4)
        first = fleet.try_now(home="talk")
        assert first
        first.release()
        busy = fleet.try_now(home="other")
        assert busy
        for _ in range(3):
            grant = fleet.try_now(home="talk")
            assert grant
            assert grant.instance is first.instance
            grant.release()

    asyncio.run(story())


def test_conversations_that_take_turns_have_an_instance_each() -> None:
    async def story() -> None:
        fleet = Fleet()
        fleet.add(), fleet.add()
        served: dict[str, set[str]] = {"mine": set(), "yours": set()}
        for _ in range(3):
            for talk, where in served.items():
                grant = fleet.try_now(home=talk)
                assert grant
                where.add(grant.instance.id)
                grant.release()
        assert sorted(map(len, served.values())) == [1, 1]
        assert served["mine"] != served["yours"]

    asyncio.run(story())


def test_unless_that_one_is_clearly_busier() -> None:
    async def story() -> None:
        fleet = Fleet()
        home, other = fleet.add(slots=8), fleet.add(slots=8)
        grant = fleet.try_now(home="talk")
        assert grant
        assert grant.instance is home
        home.active = CLEARLY_BUSIER
        again = fleet.try_now(home="talk")
        assert again
        assert again.instance is home
        home.active = CLEARLY_BUSIER + 2
        elsewhere = fleet.try_now(home="talk")
        assert elsewhere
        assert elsewhere.instance is other
        back = fleet.try_now(home="talk")
        assert back
        assert back.instance is other, "the newer cache counts"

    asyncio.run(story())


def test_a_full_home_is_not_waited_for() -> None:
    async def story() -> None:
        fleet = Fleet()
        home, other = fleet.add(slots=1), fleet.add(slots=1)
        grant = fleet.try_now(home="talk")
        assert grant
        assert grant.instance is home
        second = fleet.try_now(home="talk")
        assert second
        assert second.instance is other

    asyncio.run(story())
