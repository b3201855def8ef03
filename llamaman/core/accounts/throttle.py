"""How often a password may be tried: a pause that grows with failures, never a lock. Pure, in memory, thread-safe.

An attempt counts as a failure from its start, so that many at once do not slip through; success takes it back.
Failures are counted per (account, address), per address, and in all; those of a session per account instead of the
latter two. Whichever asks for the longest pause decides.
Attempts that are refused do not count, so waiting is all it takes.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from llamaman.core.addresses import client_network, parse_ip
from llamaman.errors import TooManyRequests
from llamaman.limits import (
    FAILURES_IN_ALL,
    FAILURES_PER_ACCOUNT,
    FAILURES_PER_ADDRESS,
    FAILURES_WINDOW_S,
    LONGEST_PAUSE_S,
)

#: What is counted: ("account", name, address), ("address", address), ("confirm", name) or ("all",).
_Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that was let through."""

    at: float
    keys: tuple[_Key, ...]


def pause_s(failures: int, free: int) -> float:
    """Seconds to pass after the latest failure: none below ``free`` failures, then 1, 2, 4 ... up to a minute."""
    if failures < free:
        return 0.0
    return float(min(LONGEST_PAUSE_S, 2 ** min(failures - free, 16)))


def network_of(address: str | None) -> str:
    """What counts as one address; None is the admin socket."""
    if address is None:
        return ""
    parsed = parse_ip(address)
    return address[:64] if parsed is None else client_network(parsed)


class Throttle:
    """:param clock: seconds that never go back (``time.monotonic``)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[_Key, deque[float]] = {}

    def begin(self, account: str, address: str | None, *, logged_in: bool = False) -> Attempt:
        """Let an attempt through and count it.

        :param account: the user's id, or "" for every name that no user can have.
        :param logged_in: the caller has a session of this account, so what strangers do does not hold it up.
        :raises TooManyRequests: the pause is not over; ``retry_after`` is 1 to 60.
        """
        network = network_of(address)
        counted: list[tuple[_Key, int]] = [(("account", account, network), FAILURES_PER_ACCOUNT)]
        if logged_in:  # one session can be used from as many addresses as its thief has
            counted.append((("confirm", account), FAILURES_PER_ADDRESS))
        else:
            counted += [(("address", network), FAILURES_PER_ADDRESS), (("all",), FAILURES_IN_ALL)]
        with self._lock:
            now = self._clock()
            self._forget_before(now - FAILURES_WINDOW_S)
            wait = max(self._wait(key, free, now) for key, free in counted)
            if wait > 0:
                seconds = max(1, math.ceil(wait))
                raise TooManyRequests(
                    f"too many failed logins; try again in {seconds} s", retry_after=seconds
                )
            attempt = Attempt(now, tuple(key for key, _ in counted))
            for key in attempt.keys:
                self._failures.setdefault(key, deque()).append(now)
            return attempt

    def withdraw(self, attempt: Attempt) -> None:
        """The password was not checked after all: the attempt counts for nothing."""
        with self._lock:
            for key in attempt.keys:
                self._take_back(key, attempt.at)

    def succeeded(self, attempt: Attempt) -> None:
        """The password was right: this account starts anew from this address."""
        with self._lock:
            self._failures.pop(attempt.keys[0], None)
            for key in attempt.keys[1:]:
                self._take_back(key, attempt.at)

    @property
    def size(self) -> int:
        """How many things are counted. No ``__len__``: a throttle that counts nothing yet must not be falsy."""
        return len(self._failures)

    def _wait(self, key: _Key, free: int, now: float) -> float:
        failures = self._failures.get(key)
        return failures[-1] + pause_s(len(failures), free) - now if failures else 0.0

    def _take_back(self, key: _Key, moment: float) -> None:
        failures = self._failures.get(key)
        if failures is not None and moment in failures:
            failures.remove(moment)
            if not failures:
                del self._failures[key]

    def _forget_before(self, oldest: float) -> None:
        """At most FAILURES_IN_ALL and one per minute more pass in a window, so walking over all of them is cheap."""
        for key, failures in list(self._failures.items()):
            while failures and failures[0] <= oldest:
                failures.popleft()
            if not failures:
                del self._failures[key]
