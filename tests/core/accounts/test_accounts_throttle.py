"""The throttle: a pause that grows with failures, never a lock."""

from __future__ import annotations

import pytest

from llamaman.core.accounts.throttle import Throttle, network_of, pause_s
from llamaman.errors import TooManyRequests
from llamaman.limits import (
    FAILURES_IN_ALL,
    FAILURES_PER_ACCOUNT,
    FAILURES_PER_ADDRESS,
    FAILURES_WINDOW_S,
    LONGEST_PAUSE_S,
)

from .people import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle(clock)


def fail(throttle: Throttle, account: str, address: str, times: int = 1) -> None:
    for _ in range(times):
        throttle.begin(account, address)


def wait_for(throttle: Throttle, account: str, address: str) -> int:
    """What Retry-After says; 0 when the attempt is let through (and counts as a failure)."""
    try:
        throttle.begin(account, address)
    except TooManyRequests as error:
        return error.retry_after or -1
    return 0


@pytest.mark.parametrize(
    ("failures", "expected"),
    [(0, 0), (4, 0), (5, 1), (6, 2), (7, 4), (8, 8), (9, 16), (10, 32), (11, 60), (12, 60), (10_000, 60)],
)
def test_the_pause_doubles_from_one_second_to_a_minute(failures: int, expected: float) -> None:
    assert pause_s(failures, FAILURES_PER_ACCOUNT) == expected


def test_the_sixth_attempt_on_an_account_waits_and_then_is_looked_at(
    throttle: Throttle, clock: Clock
) -> None:
    fail(throttle, "ann", "192.0.2.1", FAILURES_PER_ACCOUNT)
    pauses = []
    for _ in range(10):
        wait = wait_for(throttle, "ann", "192.0.2.1")
        pauses.append(wait)
        clock.now += wait
        assert wait_for(throttle, "ann", "192.0.2.1") == 0, "the pause is all it takes"
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_attempts_during_the_pause_do_not_make_it_longer(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, "ann", "192.0.2.1", FAILURES_PER_ACCOUNT)
    for _ in range(1000):
        assert wait_for(throttle, "ann", "192.0.2.1") == 1
    clock.now += 1
    assert wait_for(throttle, "ann", "192.0.2.1") == 0


def test_somebody_elses_failures_do_not_hold_up_the_owner_at_another_address(throttle: Throttle) -> None:
    fail(throttle, "ann", "192.0.2.1", FAILURES_PER_ACCOUNT)
    assert wait_for(throttle, "ann", "192.0.2.1") > 0
    assert wait_for(throttle, "ann", "198.51.100.1") == 0
    assert wait_for(throttle, "bob", "192.0.2.1") == 0


def test_an_address_that_tries_many_names_waits(throttle: Throttle) -> None:
    for number in range(FAILURES_PER_ADDRESS):
        fail(throttle, f"user{number}", "192.0.2.1")
    assert wait_for(throttle, "another", "192.0.2.1") == 1
    assert wait_for(throttle, "another", "198.51.100.1") == 0


def test_many_addresses_together_wait(throttle: Throttle) -> None:
    for number in range(FAILURES_IN_ALL):
        fail(throttle, "ann", f"10.0.{number // 250}.{number % 250}")
    assert wait_for(throttle, "ann", "198.51.100.1") == 1


def test_strangers_do_not_hold_up_who_is_logged_in(throttle: Throttle) -> None:
    for number in range(FAILURES_IN_ALL):
        fail(throttle, f"user{number}", f"10.0.{number // 250}.{number % 250}")
    throttle.begin("ann", "10.0.0.1", logged_in=True)
    for _ in range(FAILURES_PER_ACCOUNT - 1):
        throttle.begin("ann", "10.0.0.1", logged_in=True)
    with pytest.raises(TooManyRequests):
        throttle.begin("ann", "10.0.0.1", logged_in=True)


def test_a_stolen_session_guesses_the_password_no_faster_from_many_addresses(throttle: Throttle) -> None:
    for number in range(FAILURES_PER_ADDRESS):
        throttle.begin("ann", f"2001:db8:0:{number:x}::1", logged_in=True)
    with pytest.raises(TooManyRequests):
        throttle.begin("ann", "2001:db8:0:ffff::1", logged_in=True)
    throttle.begin("bob", "2001:db8:0:ffff::1", logged_in=True)
    throttle.begin("ann", "2001:db8:0:ffff::1")


def test_success_clears_the_account_at_its_address_and_counts_for_nothing_elsewhere(
    throttle: Throttle,
) -> None:
    fail(throttle, "ann", "192.0.2.1", FAILURES_PER_ACCOUNT - 1)
    throttle.succeeded(throttle.begin("ann", "192.0.2.1"))
    fail(throttle, "ann", "192.0.2.1", FAILURES_PER_ACCOUNT)
    assert wait_for(throttle, "ann", "192.0.2.1") == 1


def test_logins_that_succeed_are_never_held_up(throttle: Throttle) -> None:
    for _ in range(FAILURES_IN_ALL + 1):
        throttle.succeeded(throttle.begin("ann", "192.0.2.1"))
    assert throttle.size == 0


def test_attempts_at_the_same_time_do_not_slip_through(throttle: Throttle) -> None:
    """They count from their start, before anybody knows how they end."""
    attempts = [throttle.begin("ann", "192.0.2.1") for _ in range(FAILURES_PER_ACCOUNT)]
    assert wait_for(throttle, "ann", "192.0.2.1") == 1
    for attempt in attempts:
        throttle.withdraw(attempt)
    assert wait_for(throttle, "ann", "192.0.2.1") == 0


def test_a_failure_is_forgotten_after_the_window(throttle: Throttle, clock: Clock) -> None:
    fail(throttle, "ann", "192.0.2.1", FAILURES_PER_ACCOUNT)
    clock.now += FAILURES_WINDOW_S
    fail(throttle, "ann", "192.0.2.1", FAILURES_PER_ACCOUNT)


def test_memory_is_bounded_however_many_names_and_addresses_try(throttle: Throttle, clock: Clock) -> None:
    for number in range(6_000):
        wait_for(throttle, f"user{number}", f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
        clock.now += 0.15
    most = FAILURES_IN_ALL + FAILURES_WINDOW_S // LONGEST_PAUSE_S + 20
    assert throttle.size <= 2 * most + 1
    clock.now += FAILURES_WINDOW_S + LONGEST_PAUSE_S
    wait_for(throttle, "ann", "192.0.2.1")
    assert throttle.size == 3


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2", True),
        (None, None, True),
        (None, "192.0.2.1", False),
        ("nonsense", "other nonsense", False),
    ],
)
def test_an_address_is_what_one_customer_owns(one: str | None, other: str | None, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same
