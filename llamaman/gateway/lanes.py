"""Lanes: how many requests of an expensive kind run at a time, how many wait, and that the rest hear so at once.

Read by the hop. Checking a password takes 64 MiB and a good part of a second of a processor, whoever asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llamaman.errors import TooManyRequests
from llamaman.gateway.cross_site import READING, is_form_page
from llamaman.limits import HASHES_AT_ONCE, HASHES_WAITING

_PASSWORD_POSTS = frozenset({"/api/me/password", "/api/me/sudo", "/api/users"})


class Lane:
    """Belongs to one event loop.

    :param at_once: requests that run. :param waiting: requests that wait for a turn.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._most_waiting = waiting
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Run the body when it is its turn.

        :raises TooManyRequests: too many wait already.
        """
        if self._turns.locked() and self._waiting >= self._most_waiting:
            raise TooManyRequests("too many passwords are being checked; try again", retry_after=1)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


def password_lane() -> Lane:
    """The lane of requests that check or make a password."""
    return Lane(HASHES_AT_ONCE, HASHES_WAITING)


def hashes_password(method: str, path: str) -> bool:
    """Whether a management request may check or make a password."""
    if is_form_page(path):
        return method not in READING and path != "/logout"
    if method == "POST":
        return path in _PASSWORD_POSTS
    return method == "PATCH" and path.startswith("/api/users/")
