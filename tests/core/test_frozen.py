"""When an engine whose loop says nothing is taken for frozen, and when it is only at work for long."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import messages as m
from llamaman.core.frozen import Signs, computes, is_at_work, signs, watch
from llamaman.records import State, WorkDone

from .some_instance import some_instance
from .test_crash import SomeGuest
from .test_supervisor import ADMIN, Answer, World, live

TICKS = os.sysconf("SC_CLK_TCK")
#: Hashing a large text leaves the interpreter to other threads, so that as many work as there are.
WORK = """
import hashlib, sys, threading
text = bytes(1 << 22)
def work():
    while True: hashlib.blake2b(text)
for _ in range(int(sys.argv[1])): threading.Thread(target=work).start()
"""


def unasked() -> WorkDone | None:
    raise AssertionError("its process can be seen")


def standing() -> WorkDone | None:
    return WorkDone(1.0, 0)


@pytest.fixture
def at_work(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process in which so many threads work; its id."""
    process = subprocess.Popen([sys.executable, "-c", WORK, str(request.param)])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize(("at_work", "several"), [(1, False), (2, True)], indirect=["at_work"])
def test_several_threads_at_work_are_a_batch_and_a_single_one_is_a_grammar(
    at_work: int, several: bool, tmp_path: Path
) -> None:
    def look() -> Signs:
        return signs(tmp_path / "log", at_work, unasked)

    def spent(now: Signs, before: Signs) -> int:
        return sum(now.ticks.values()) - sum(before.ticks.values())

    deadline = time.monotonic() + 30
    while sum(look().ticks.values()) < TICKS // 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # it has started
    begun, before = time.monotonic(), look()
    while spent(after := look(), before) < TICKS // 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    assert is_at_work(before, after, seconds) is several
    assert computes(before, after, seconds)


def test_a_process_that_stands_still_or_only_takes_requests_is_not_at_work() -> None:
    before = Signs(b"x", 7, {"1": 0, "2": 0})
    assert not is_at_work(before, Signs(b"x", 7, {"1": 0, "2": 0}), 10)
    assert not is_at_work(before, Signs(b"x", 7, {"1": 1, "2": 1}), 10), "two looks into two sockets"
    assert not is_at_work(before, Signs(b"x", 7, {"1": 10 * TICKS, "2": TICKS}), 10)


def test_an_engine_of_which_nothing_can_be_seen_is_not_taken_for_a_frozen_one() -> None:
    assert is_at_work(Signs(), Signs(), 10)
    assert is_at_work(Signs(b"x", 7), Signs(b"x", 7), 10), (
        "it has just ended, and there was no more to be read"
    )


def test_of_a_container_the_time_of_all_threads_together_tells_whether_several_work() -> None:
    before = Signs(b"x", 7, cpu_s=100.0)
    for cpu_s, several, any_works in (
        (140, True, True),
        (112, True, True),
        (110.5, False, True),
        (100.1, False, False),
    ):
        after = Signs(b"x", 7, cpu_s=cpu_s)
        assert is_at_work(before, after, 10) is several
        assert computes(before, after, 10) is any_works
    assert is_at_work(before, Signs(b"x", 8, cpu_s=100.0), 10), "its weights come from disk"


def test_an_engine_that_was_suspended_computes_nothing_that_a_request_could_be_blamed_for() -> None:
    before = Signs(b"x", 7, {"1": 5, "2": 3})
    assert not computes(before, Signs(b"x", 7, {"1": 6, "2": 3}), 10)
    assert computes(before, Signs(b"x", 7, {"1": 5 + 9 * TICKS, "2": 3}), 10)


def test_weights_that_come_from_disk_and_a_log_that_goes_on_are_work() -> None:
    assert is_at_work(Signs(b"x", 7), Signs(b"x", 8), 10)
    assert is_at_work(Signs(b"x", 7), Signs(b"y", 7), 10)
    assert is_at_work(Signs(), Signs(b"y"), 10)


def test_what_the_log_says_about_connections_is_no_sign_of_its_loop(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("0.01.000.000 I slot launch_slot_: id  1 | processing task\n")
    before = signs(log, None, standing)
    with log.open("a") as file:
        file.write("0.08.032.554 W srv          stop: cancel task, id_task = 2\n" * 1000)
    assert not is_at_work(before, signs(log, None, standing), 10)
    with log.open("a") as file:
        file.write("0.09.000.000 I slot      release: id  1 | stop processing\n")
    assert is_at_work(before, signs(log, None, standing), 10)


# --- how long it is silent --------------------------------------------------------------------------------


class Silent:
    """An engine whose loop answers a moment after it was asked, or never."""

    def __init__(self, answers_after_s: float | None) -> None:
        self.answers_after_s = answers_after_s
        self.asked = asyncio.Event()

    async def request(self, method: str, target: bytes, headers: Any, body: bytes = b"", **_: Any) -> Answer:
        self.asked.set()
        await (
            asyncio.Event().wait() if self.answers_after_s is None else asyncio.sleep(self.answers_after_s)
        )
        return Answer(b"[]")

    async def close(self) -> None: ...

    def abort(self) -> None: ...


def verdicts(client: Silent, held_up_s: float, work: Callable[[], WorkDone | None]) -> list[m.Message]:
    """What is said of an engine that was allowed 0.4 s, while the manager itself stood still for so long."""

    async def story() -> list[m.Message]:
        instance = some_instance(client=client)
        instance.inside.append(SomeGuest())
        posted: list[m.Message] = []

        def post(message: m.Message) -> None:
            posted.append(message)
            instance.state = State.STOPPING

        async def inspect(function: Callable[..., Any], *arguments: Any) -> Any:
            return function(*arguments)

        watching = asyncio.create_task(watch(instance, instance.generation, lambda: 0.4, inspect, work, post))
        await client.asked.wait()
        time.sleep(held_up_s)
        client.asked.clear()
        await asyncio.wait(
            (watching, again := asyncio.create_task(client.asked.wait())),
            timeout=20,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in (watching, again):
            task.cancel()
        await asyncio.gather(watching, again, return_exceptions=True)
        return posted

    return asyncio.run(story())


def test_time_in_which_the_manager_itself_stood_still_is_no_silence_of_an_engine() -> None:
    assert verdicts(Silent(0.1), 1.0, standing) == []


@pytest.mark.parametrize("held_up_s", [0.0, 1.0])
def test_an_engine_that_never_answers_is_frozen_all_the_same(held_up_s: float) -> None:
    (said,) = verdicts(Silent(None), held_up_s, standing)
    assert isinstance(said, m.Frozen)
    assert said.suspects == (), "it computed nothing"


def test_a_request_is_suspected_where_its_engine_has_worked_on_something() -> None:
    spent = iter((WorkDone(0.0, 0), WorkDone(0.4, 0)))
    (said,) = verdicts(Silent(None), 0.0, lambda: next(spent))
    assert isinstance(said, m.Frozen)
    assert len(said.suspects) == 1


# --- what becomes of one that is frozen -------------------------------------------------------------------


async def frozen(world: World, *suspects: SomeGuest) -> None:
    await world.supervisor.tell(m.Frozen(world.instance.generation, 120.0, suspects))


def test_a_frozen_engine_is_ended_and_started_again_and_the_one_request_in_it_answers_for_it() -> None:
    async def main(world: World) -> None:
        await world.ready()
        alone = SomeGuest()
        await frozen(world, alone, alone)
        assert world.instance.state is State.STOPPING
        assert world.instance.reason.startswith("frozen: the engine got no further for 120 s")
        assert world.instance.frozen is not None
        await world.reach(State.READY)
        assert (world.instance.generation, alone.blames, world.instance.frozen) == (2, 1, None)

    live(main)


def test_of_several_requests_in_a_frozen_engine_none_answers_for_it() -> None:
    async def main(world: World) -> None:
        await world.ready()
        several = SomeGuest(), SomeGuest()
        await frozen(world, *several)
        assert world.instance.state is State.STOPPING
        assert [guest.blames for guest in several] == [0, 0]

    live(main)


def test_a_verdict_on_an_engine_that_is_being_stopped_anyway_or_is_gone_changes_nothing() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.instance.active = 1
        guest = SomeGuest()
        await world.supervisor.tell(m.Stop("stopped", "key:admin", "stopped by an administrator", 60))
        await frozen(world, guest)
        assert world.instance.state is State.DRAINING
        assert await world.end(replace(ADMIN, drain_s=0))
        await frozen(world, guest)
        assert (world.instance.state, guest.blames) == (State.STOPPED, 0)

    live(main)
