"""What the front door grants a client: the numbers, the names of the refusals, and the shared body budget.

Read by: whoever serves a request (the exceptions of `Request.read_body`) and whoever tunes the front door.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one front door. Units are in the names; the defaults are the documented ones."""

    head_bytes: int = 32 * 1024
    head_s: float = 10.0  # from the first byte of a head to its last
    keepalive_s: float = 75.0  # idle, before the first and between two requests
    write_stall_s: float = 60.0  # without one byte accepted by the client
    max_headers: int = 100
    target_bytes: int = 8192
    discard_bytes: int = 1 << 20  # read and dropped after an early answer, so that the client sees the answer
    discard_s: float = 2.0
    body_bytes_per_s: int = 1024  # average while a handler waits for the body
    body_grace_s: float = 10.0  # waiting time before that rate is demanded
    per_address: int = 128  # connections per IPv4 address or IPv6 /64; loopback and unix sockets are exempt
    total: int = 512


@dataclass(frozen=True, slots=True)
class Surface:
    """Which door a request came through; `instance_id` only for the ports of single instances."""

    name: Literal["manage", "proxy", "instance", "admin"]
    instance_id: str | None = None


class BodyTooLarge(Exception):
    """The body is longer than the limit that the route allows (413)."""


class BodyTooSlow(Exception):
    """The body arrives below `Limits.body_bytes_per_s` (408)."""


class BufferFull(Exception):
    """All buffered bodies together reached the budget (503 and Retry-After)."""


class ClientGone(ConnectionError):
    """The client closed or half-closed its connection; nobody reads the answer."""


def default_body_budget_bytes() -> int:
    """512 MiB or 10 % of the machine's memory, whichever is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(512 << 20, memory // 10)


class BodyBudget:
    """Bytes of request bodies held in memory at this moment, over all connections of the process."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = default_body_budget_bytes() if limit_bytes is None else limit_bytes
        self.used_bytes = 0

    def check(self, count: int) -> None:
        """Raise BufferFull when `count` more bytes would not fit now; reserves nothing."""
        if self.used_bytes + count > self.limit_bytes:
            raise BufferFull(f"request bodies in memory are at their limit of {self.limit_bytes} bytes")

    def take(self, count: int) -> None:
        """Reserve `count` bytes that have arrived. Raises BufferFull, and then reserves nothing."""
        self.check(count)
        self.used_bytes += count

    def give(self, count: int) -> None:
        """Return bytes taken before."""
        self.used_bytes -= count
