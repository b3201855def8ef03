"""The set of client connections: who may come in, who must go, and the one clock that watches all of them.

Read by: `wire.py` (each connection registers here) and `listeners.py` (close, shutdown). One sweep a few
times a second replaces a timer per connection and request: those would cost more than what they guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llamaman.core.addresses import client_network, parse_ip
from llamaman.gateway.answers import date_and_server
from llamaman.gateway.limits import BodyBudget, Limits

if TYPE_CHECKING:
    from llamaman.gateway.wire import Wire

AsgiApp = Callable[
    [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]

_REFUSED_AT_ONCE = 64  # refused connections that still get a sentence; beyond that they are just dropped


@lru_cache(maxsize=1024)
def address_group(host: str) -> str | None:
    """What a connection counts against: the IPv4 address, the IPv6 /64, or None for loopback and unknown."""
    address = parse_ip(host)
    return None if address is None or address.is_loopback else client_network(address)


class Connections:
    """Every open client connection of one front door. Owned by the event loop."""

    __slots__ = (
        "_groups",
        "_refused",
        "_sweep_handle",
        "_sweep_s",
        "app",
        "budget",
        "date_line",
        "limits",
        "members",
        "tasks",
    )

    def __init__(self, app: AsgiApp, limits: Limits, budget: BodyBudget) -> None:
        self.app = app
        self.limits = limits
        self.budget = budget
        self.date_line = date_and_server()
        self.members: set[Wire] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._groups: dict[str, int] = {}
        self._refused: set[Wire] = set()
        shortest = min(limits.head_s, limits.keepalive_s, limits.write_stall_s, limits.discard_s)
        self._sweep_s = min(0.5, max(0.02, shortest / 4))
        self._sweep_handle: asyncio.TimerHandle | None = None

    def admit(self, connection: Wire) -> str | None:
        """Count a new connection in, shedding the oldest idle one when full; the reason if refused."""
        if self._sweep_handle is None:
            self.date_line = date_and_server()
            self._sweep_handle = connection.loop.call_later(self._sweep_s, self._sweep, connection.loop)
        group = connection.group
        if group is not None and self._groups.get(group, 0) >= self.limits.per_address:
            return f"this address already has {self.limits.per_address} connections open: close or reuse some"
        if len(self.members) >= self.limits.total:
            now = connection.loop.time()
            idle = min(
                (c for c in self.members if c.is_idle and not c.is_fresh(now)),
                key=lambda c: c.deadline,
                default=None,
            )
            if idle is None:
                return f"all {self.limits.total} connections are busy: try again shortly"
            idle.abort()
            self.remove(idle)
        self.members.add(connection)
        if group is not None:
            self._groups[group] = self._groups.get(group, 0) + 1
        return None

    def admit_refused(self, connection: Wire) -> bool:
        """Whether a refused connection may stay for the moment that its short answer needs."""
        if len(self._refused) >= _REFUSED_AT_ONCE:
            return False
        self._refused.add(connection)
        return True

    def remove(self, connection: Wire) -> None:
        """Count a connection out; harmless when it was never in, or is out already."""
        if connection not in self.members:
            self._refused.discard(connection)
            return
        self.members.discard(connection)
        if connection.group is not None:
            self._count_out(connection.group)

    def vouch(self, connection: Wire) -> None:
        """Whoever came with a valid key does not count against the address any more, only in all."""
        group, connection.group = connection.group, None
        if group is not None and connection in self.members:
            self._count_out(group)

    def _count_out(self, group: str) -> None:
        left = self._groups[group] - 1
        if left:
            self._groups[group] = left
        else:
            del self._groups[group]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.date_line = date_and_server()
        now = loop.time()
        for connection in [*self.members, *self._refused]:
            connection.check(now)
        if self.members or self._refused or self.tasks:
            self._sweep_handle = loop.call_later(self._sweep_s, self._sweep, loop)
        else:
            self._sweep_handle = None
