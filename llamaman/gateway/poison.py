"""Requests under which an engine crashed or froze, and the keys that sent them. Pure: every method is told the time.

Asked and told by the pipeline, on the event loop. A body is kept as a digest, never as text; both tables are bounded.
A caller without a key is not counted: an address may be shared by many, so then the model's circuit breaker counts
as it does for other deaths.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque

from llamaman.errors import CrashingRequest, TooManyRequests
from llamaman.limits import CRASH_BODY_S, CRASHES_PER_KEY, CRASHES_WINDOW_S

_MOST = 1024


def digest(path: str, raw: bytes) -> bytes:
    """What a request is known by: its path and its body to the last byte."""
    found = hashlib.blake2b(path.encode(), digest_size=16)
    found.update(b"\0")
    found.update(raw)
    return found.digest()


class Poison:
    """See the module's docstring. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._bodies: dict[bytes, float] = {}  # until when; oldest first
        self._crashes: dict[str, deque[float]] = {}

    def knows_bodies(self, now: float) -> bool:
        """Whether any body is refused now; else nobody need compute a digest."""
        bodies = self._bodies
        while bodies and next(iter(bodies.values())) <= now:
            del bodies[next(iter(bodies))]
        return bool(bodies)

    def check_body(self, digest: bytes, now: float) -> None:
        """:raises CrashingRequest: an engine crashed or froze under it."""
        until = self._bodies.get(digest, now)
        if until > now:
            raise CrashingRequest(
                "an engine crashed or froze while it worked on this very request; it is not tried again for "
                f"{math.ceil(until - now)} s"
            )

    def check_key(self, key_id: str | None, now: float) -> None:
        """:raises TooManyRequests: too many engines crashed or froze under its requests."""
        crashes = self._crashes.get(key_id) if key_id and self._crashes else None
        if crashes is None:
            return
        assert key_id is not None
        while crashes and crashes[0] <= now - CRASHES_WINDOW_S:
            crashes.popleft()
        if not crashes:
            del self._crashes[key_id]
        elif len(crashes) >= CRASHES_PER_KEY:
            wait = math.ceil(crashes[-CRASHES_PER_KEY] + CRASHES_WINDOW_S - now)
            raise TooManyRequests(
                f"{CRASHES_PER_KEY} engines crashed or froze within {CRASHES_WINDOW_S // 60} min under requests of "
                "this key; find out what it sends",
                retry_after=max(1, wait),
            )

    def add_body(self, digest: bytes, now: float) -> None:
        """An engine crashed or froze while it worked on this alone."""
        self._bodies.pop(digest, None)
        self._bodies[digest] = now + CRASH_BODY_S
        if len(self._bodies) > _MOST:
            del self._bodies[next(iter(self._bodies))]

    def add_crash(self, key_id: str, now: float) -> None:
        """The same, of the key that sent it."""
        crashes = self._crashes.pop(key_id, None) or deque(maxlen=CRASHES_PER_KEY)
        crashes.append(now)
        self._crashes[key_id] = crashes  # at the end: the one that was told of last is forgotten last
        if len(self._crashes) > _MOST:
            del self._crashes[next(iter(self._crashes))]
