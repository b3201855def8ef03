"""How long a request counts among those that an engine works on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from llamaman.core.instance import Instance
from llamaman.gateway import grant as module
from llamaman.gateway.engine_calls import EngineCalls
from llamaman.gateway.grant import Grant
from tests.core.some_instance import some_instance


class SomeGuest:
    progress = 0

    def blamed(self, instance: Instance) -> bool:
        return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def left(instance: Instance, *, lets_go: bool) -> Grant:
    """A request whose client left, in an engine that lets go of it or does not."""
    grant = Grant(instance, 1, lambda instance: None)
    grant.enter(SomeGuest())

    async def drain() -> bool:
        return lets_go

    EngineCalls(1.0, lambda instance: None)._abandon(grant, drain())
    grant.release()
    return grant


def test_a_request_that_an_engine_does_not_let_go_of_stays_in_it_until_that_engine_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the next one alone in there would be blamed for what holds the engine."""
    monkeypatch.setattr(module, "_LINGER_S", 0.01)

    async def main() -> None:
        instance = some_instance(slots=4)
        left(instance, lets_go=False)
        (kept,) = instance.inside
        await until(lambda: not instance.active)
        other = left(instance, lets_go=True)
        await until(lambda: instance.inside == [kept])
        assert not other.instance.active
        instance.generation += 1
        await until(lambda: not instance.inside)

    asyncio.run(main())


def test_nor_does_it_stay_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINGER_S", 0.01)
    monkeypatch.setattr(module, "_KEPT_S", 0.05)

    async def main() -> None:
        instance = some_instance(slots=4)
        left(instance, lets_go=False)
        await until(lambda: not instance.inside)

    asyncio.run(main())
