"""When an engine whose loop says nothing is taken for frozen, and when it is only at work for long."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llamaman.core import messages as m
from llamaman.core.frozen import Signs, is_at_work, signs
from llamaman.records import State

from .test_crash import SomeGuest
from .test_supervisor import ADMIN, World, live

TICKS = os.sysconf("SC_CLK_TCK")
#: Hashing a large text leaves the interpreter to other threads, so that as many work as there are.
WORK = """
import hashlib, sys, threading
text = bytes(1 << 22)
def work():
    while True: hashlib.blake2b(text)
for _ in range(int(sys.argv[1])): threading.Thread(target=work).start()
"""


@pytest.fixture
def at_work(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process in which so many threads work; its id."""
    process = subprocess.Popen([sys.executable, "-c", WORK, str(request.param)])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize(("at_work", "computes"), [(1, False), (2, True)], indirect=["at_work"])
def test_several_threads_at_work_are_a_batch_and_a_single_one_is_a_grammar(
    at_work: int, computes: bool, tmp_path: Path
) -> None:
    def spent(now: Signs, before: Signs) -> int:
        return sum(now.ticks.values()) - sum(before.ticks.values())

    deadline = time.monotonic() + 30
    while sum(signs(tmp_path / "log", at_work).ticks.values()) < TICKS // 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # it has started
    begun, before = time.monotonic(), signs(tmp_path / "log", at_work)
    while spent(after := signs(tmp_path / "log", at_work), before) < TICKS // 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert is_at_work(before, after, time.monotonic() - begun) is computes


def test_a_process_that_stands_still_or_only_takes_requests_is_not_at_work() -> None:
    before = Signs(b"x", 7, {"1": 0, "2": 0})
    assert not is_at_work(before, Signs(b"x", 7, {"1": 0, "2": 0}), 10)
    assert not is_at_work(before, Signs(b"x", 7, {"1": 1, "2": 1}), 10), "two looks into two sockets"
    assert not is_at_work(before, Signs(b"x", 7, {"1": 10 * TICKS, "2": TICKS}), 10)
    assert not is_at_work(Signs(), Signs(), 10), "nothing can be seen of it"


def test_weights_that_come_from_disk_and_a_log_that_goes_on_are_work() -> None:
    assert is_at_work(Signs(b"x", 7), Signs(b"x", 8), 10)
    assert is_at_work(Signs(b"x", 7), Signs(b"y", 7), 10)
    assert is_at_work(Signs(), Signs(b"y"), 10)


def test_what_the_log_says_about_connections_is_no_sign_of_its_loop(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("0.01.000.000 I slot launch_slot_: id  1 | processing task\n")
    before = signs(log, None)
    with log.open("a") as file:
        file.write("0.08.032.554 W srv          stop: cancel task, id_task = 2\n" * 1000)
    assert not is_at_work(before, signs(log, None), 10)
    with log.open("a") as file:
        file.write("0.09.000.000 I slot      release: id  1 | stop processing\n")
    assert is_at_work(before, signs(log, None), 10)


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
