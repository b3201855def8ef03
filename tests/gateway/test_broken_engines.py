"""What the requests of a frozen engine are told when it has been ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from llamaman.core.instance import Instance
from llamaman.core.messages import Frozen
from llamaman.errors import EngineDied, LlamaManError
from llamaman.gateway.broken_engines import BrokenEngines
from llamaman.gateway.crash_notes import nobody_is_told
from llamaman.gateway.upstream import UpstreamError
from llamaman.records import State
from tests.core.some_instance import some_instance


@dataclass(eq=False)
class SomeExchange:
    """All that is asked of one here."""

    wrote_content: bool = False
    progress: int = 0

    def blamed(self, instance: Instance) -> bool:
        return False


@dataclass
class SomeGrant:
    instance: Instance
    generation: int


class SomeRegistry:
    def suspect(self, instance: Instance) -> None:
        raise AssertionError("what is frozen is known by now")

    def unavailable(self, instance: Instance) -> LlamaManError:
        raise AssertionError("it comes back")


@pytest.mark.parametrize(
    ("is_suspect", "wrote_content", "again"),
    [(True, False, False), (False, False, True), (False, True, False)],
    ids=["what it worked on", "what came later", "what had begun"],
)
def test_only_what_came_in_when_nothing_went_on_is_sent_to_the_next_engine(
    is_suspect: bool, wrote_content: bool, again: bool
) -> None:
    async def diagnosed() -> LlamaManError | None:
        exchange, other = SomeExchange(wrote_content), SomeExchange()
        instance = some_instance(state=State.STOPPING)
        suspects = (exchange,) if is_suspect else (other,)
        instance.frozen = Frozen(instance.generation, 120.0, suspects)
        broken = BrokenEngines(SomeRegistry(), 300, nobody_is_told)
        grant = SomeGrant(instance, instance.generation)
        reset = UpstreamError("reset", "the engine is gone", sent=True)
        return await broken.diagnose(exchange, grant, reset)  # type: ignore[arg-type] # see their docstrings

    told = asyncio.run(diagnosed())
    assert told is None if again else isinstance(told, EngineDied)
