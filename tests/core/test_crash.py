"""Who answers for a crash: the one request that was inside, else the model."""

from __future__ import annotations

import signal
import time

import pytest

from llamaman.core.breaker import FIRST_PAUSE_S
from llamaman.core.crash import culprit, is_crash
from llamaman.core.instance import Instance
from llamaman.core.supervisor import MOST_RESTARTS
from llamaman.records import Exit, State

from .test_supervisor import World, live

SEGV = Exit(None, signal.SIGSEGV, 0.0)


class SomeGuest:
    """A request; ``answers`` as if it came with a key."""

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        self.blames = 0
        self.progress = 0

    def blamed(self, instance: Instance) -> bool:
        self.blames += 1
        return self.answers


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "BUS", "ILL", "FPE"])
def test_an_engine_that_ends_by_a_fault_of_its_own_has_crashed_however_that_is_told(name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    assert is_crash(Exit(None, number, 0.0))
    assert is_crash(Exit(128 + number, None, 0.0)), "as a container tells it"


def test_an_engine_without_memory_has_crashed_and_one_that_somebody_killed_has_not() -> None:
    assert is_crash(Exit(None, signal.SIGKILL, 0.0, oom=True))
    assert is_crash(Exit(137, None, 0.0, oom=True))
    for other in (
        Exit(None, signal.SIGKILL, 0.0),
        Exit(None, signal.SIGTERM, 0.0, oom=False),
        Exit(137, None, 0.0),
        Exit(0, None, 0.0),
        Exit(11, None, 0.0),
        Exit(None, None, 0.0),
    ):
        assert not is_crash(other)


def test_one_request_is_the_culprit_several_are_not() -> None:
    one, other = SomeGuest(), SomeGuest()
    assert culprit(SEGV, [one]) is one
    assert culprit(SEGV, [one, one]) is one, "with two grants at a time"
    assert culprit(SEGV, [one, other]) is None
    assert culprit(SEGV, []) is None
    assert culprit(Exit(None, signal.SIGKILL, 0.0), [one]) is None


@pytest.mark.parametrize(
    ("guests", "counts"),
    [
        ([SomeGuest()], False),
        ([SomeGuest(answers=False)], True),
        ([SomeGuest(), SomeGuest()], True),
        ([], True),
    ],
)
def test_a_death_that_one_key_answers_for_does_not_open_the_breaker(
    guests: list[SomeGuest], counts: bool
) -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.instance.inside.extend(guests)
        world.exited(SEGV)
        await world.reach(State.FAILED)
        breaker = world.supervisor._s.breaker
        is_open = breaker.check(world.instance.config_hash, time.monotonic()) is not None
        assert is_open == counts
        assert [guest.blames for guest in guests] == [1 if len(guests) == 1 else 0] * len(guests)
        assert world.instance.crashes == 1

    live(main, options={"restart_policy": "never"})


def test_a_model_whose_engine_keeps_crashing_is_given_up_whoever_answers() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.instance.restarts = MOST_RESTARTS
        world.instance.inside.append(SomeGuest())
        world.exited(SEGV)
        await world.reach(State.FAILED)
        pause = world.supervisor._s.breaker.check(world.instance.config_hash, time.monotonic())
        assert pause is not None
        assert pause.seconds <= FIRST_PAUSE_S

    live(main, options={"restart_policy": "on-failure"})


def test_the_next_crash_is_judged_anew() -> None:
    async def main(world: World) -> None:
        guest = SomeGuest()
        await world.ready()
        world.instance.inside.append(guest)
        world.exited(SEGV)
        await world.reach(State.FAILED)
        world.instance.inside.remove(guest)
        assert world.instance.excused
        await world.ready()
        world.exited(SEGV)
        await world.reach(State.FAILED)
        assert not world.instance.excused
        assert guest.blames == 1

    live(main, options={"restart_policy": "never"})
