"""What the front door grants a client: the numbers, the names of the refusals, and the shared body budget.

Read by: whoever serves a request (the exceptions of `Request.read_body`) and whoever tunes the front door.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from llamaman import limits


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one front door; tests set smaller ones. What each means stands in :mod:`llamaman.limits`."""

    head_bytes: int = limits.HEAD_BYTES
    head_s: float = limits.HEAD_S
    keepalive_s: float = limits.KEEPALIVE_S
    write_stall_s: float = limits.WRITE_STALL_S
    max_headers: int = limits.HEADERS
    target_bytes: int = limits.TARGET_BYTES
    discard_bytes: int = limits.DISCARD_BYTES
    discard_s: float = limits.DISCARD_S
    body_bytes_per_s: int = limits.BODY_RATE
    body_grace_s: float = limits.BODY_GRACE_S
    per_address: int = limits.CONNECTIONS_PER_ADDRESS
    total: int = limits.CONNECTIONS
    fresh_s: float = limits.FRESH_S


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
    return min(limits.BODIES_IN_MEMORY, memory // 10)


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
