"""The passwords' lane: how many run, how many wait, and that nobody's leaving blocks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.errors import TooManyRequests
from llamaman.gateway.lanes import Lane, Lanes, drains, hashes_password

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_two_run_three_wait_and_the_sixth_hears_at_once(run: Run) -> None:
    async def main() -> None:
        lane, opened, running, most = Lane(2, 3), asyncio.Event(), 0, 0

        async def work() -> None:
            nonlocal running, most
            async with lane.turn():
                running += 1
                most = max(most, running)
                await opened.wait()
                running -= 1

        tasks = [asyncio.create_task(work()) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests) as refused:
            async with lane.turn():
                raise AssertionError("a sixth ran")
        assert refused.value.retry_after
        opened.set()
        await asyncio.gather(*tasks)
        assert most == 2
        async with lane.turn():
            pass

    run(main())


def test_who_stops_waiting_makes_room_and_takes_no_turn(run: Run) -> None:
    async def main() -> None:
        lane, opened = Lane(1, 1), asyncio.Event()

        async def work() -> None:
            async with lane.turn():
                await opened.wait()

        first, second = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(work())
        opened.set()
        await asyncio.gather(first, third)

    run(main())


def test_who_would_be_refused_hears_it_before_anything_is_spent_on_the_request(run: Run) -> None:
    async def main() -> None:
        lane, opened = Lane(1, 1), asyncio.Event()
        lane.check()

        async def work() -> None:
            async with lane.turn():
                await opened.wait()

        tasks = [asyncio.create_task(work())]
        await asyncio.sleep(0)
        lane.check()
        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            lane.check()
        opened.set()
        await asyncio.gather(*tasks)
        lane.check()

    run(main())


def test_a_failing_request_gives_its_turn_back(run: Run) -> None:
    async def main() -> None:
        lane = Lane(1, 0)
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                async with lane.turn():
                    raise ValueError("broken")

    run(main())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/login"),
        ("POST", "/setup"),
        ("POST", "/setup/abc"),
        ("POST", "/api/me/sudo"),
        ("POST", "/api/me/password"),
        ("POST", "/api/users"),
        ("PATCH", "/api/users/ann"),
    ],
)
def test_requests_that_check_or_make_a_password_use_the_lane(method: str, path: str) -> None:
    assert hashes_password(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/login"),
        ("HEAD", "/setup"),
        ("POST", "/logout"),
        ("GET", "/api/users"),
        ("DELETE", "/api/users/ann"),
        ("POST", "/api/instances"),
        ("GET", "/api/me"),
    ],
)
def test_others_do_not(method: str, path: str) -> None:
    assert not hashes_password(method, path)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("DELETE", "/api/instances/0cf4d802", True),
        ("POST", "/api/instances/0cf4d802/restart", True),
        ("DELETE", "/api/instances/0cf4d802/remove", False),
        ("GET", "/api/instances/0cf4d802", False),
        ("POST", "/api/instances", False),
        ("DELETE", "/api/users/ada", False),
    ],
)
def test_stops_and_restarts_take_the_lane_of_what_waits_for_answers(
    method: str, path: str, expected: bool
) -> None:
    assert drains(method, path) is expected
    lanes = Lanes()
    assert (lanes.of(method, path) is lanes.drains) is expected
    assert lanes.of("POST", "/login") is lanes.passwords
