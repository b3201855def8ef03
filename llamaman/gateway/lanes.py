"""Lanes: how many requests of an expensive kind run at a time, how many wait, and that the rest hear so at once.

Read by the hop. Checking a password takes 64 MiB and a good part of a second of a processor, whoever asks for it; a
stop that lets running answers finish holds one of management's few threads for half a minute. What waits here holds
nothing but its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from llamaman.errors import TooManyRequests
from llamaman.gateway.cross_site import READING, is_form_page
from llamaman.limits import DRAINS_AT_ONCE, DRAINS_WAITING, HASHES_AT_ONCE, HASHES_WAITING

_INSTANCES = "/api/instances/"
_PASSWORD_POSTS = frozenset({"/api/me/password", "/api/me/sudo", "/api/users"})


class Lane:
    """Belongs to one event loop.

    :param at_once: requests that run. :param waiting: requests that wait for a turn.
    :param busy: what the others are told.
    """

    def __init__(self, at_once: int, waiting: int, busy: str = "too many at once; try again") -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most_waiting = waiting
        self._busy = busy
        self._waiting = 0

    def check(self) -> None:
        """Whether one more could wait now, asked before anything is spent on it.

        :raises TooManyRequests: too many wait already.
        """
        if self._turns.locked() and self._waiting >= self._most_waiting:
            raise TooManyRequests(self._busy, retry_after=1)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Run the body when it is its turn.

        :raises TooManyRequests: too many wait already.
        """
        self.check()
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes of management."""

    passwords: Lane = field(
        default_factory=lambda: Lane(
            HASHES_AT_ONCE, HASHES_WAITING, "too many passwords are being checked; try again"
        )
    )
    drains: Lane = field(
        default_factory=lambda: Lane(
            DRAINS_AT_ONCE, DRAINS_WAITING, "too many instances are being stopped; try again"
        )
    )

    def of(self, method: str, path: str) -> Lane | None:
        """The lane that a management request must take, or None."""
        if hashes_password(method, path):
            return self.passwords
        return self.drains if drains(method, path) else None


def hashes_password(method: str, path: str) -> bool:
    """Whether a management request may check or make a password."""
    if is_form_page(path):
        return method not in READING and path != "/logout"
    if method == "POST":
        return path in _PASSWORD_POSTS
    return method == "PATCH" and path.startswith("/api/users/")


def drains(method: str, path: str) -> bool:
    """Whether a management request may wait for running answers to end: a stop, a restart."""
    if not path.startswith(_INSTANCES):
        return False
    rest = path.removeprefix(_INSTANCES)
    return (method == "DELETE" and "/" not in rest) or (method == "POST" and rest.endswith("/restart"))
