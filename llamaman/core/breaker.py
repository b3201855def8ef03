"""The circuit breaker: a launch configuration that keeps dying is not loaded again for a while.

Keyed by configuration hash, so that a changed preset gets its chance at once. Owned by the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0


@dataclass(slots=True)
class _Trip:
    deaths: int
    open_until: float
    reason: str


@dataclass(frozen=True, slots=True)
class Open:
    """The breaker is open: ``seconds`` from now, and why."""

    seconds: float
    reason: str


class Breaker:
    """Counts deaths per configuration; the pause doubles from 5 s to 5 min."""

    def __init__(self) -> None:
        self._trips: dict[str, _Trip] = {}

    def death(self, config_hash: str, reason: str, now: float) -> float:
        """Record one death; returns the pause in seconds."""
        trip = self._trips.get(config_hash)
        deaths = trip.deaths + 1 if trip else 1
        doublings = min(deaths - 1, 16)  # far beyond the longest pause, and still a float
        pause: float = min(FIRST_PAUSE_S * 2**doublings, LONGEST_PAUSE_S)
        self._trips[config_hash] = _Trip(deaths, now + pause, reason)
        return pause

    def hold(self, config_hash: str, reason: str, seconds: float, now: float) -> None:
        """Refuse for so long without counting a death: nothing has died, trying at once would only fail again."""
        trip = self._trips.get(config_hash)
        self._trips[config_hash] = _Trip(trip.deaths if trip else 0, now + seconds, reason)

    def success(self, config_hash: str) -> None:
        """It became ready: forget its deaths."""
        self._trips.pop(config_hash, None)

    reset = success

    def check(self, config_hash: str, now: float) -> Open | None:
        """None when a launch may be tried."""
        trip = self._trips.get(config_hash)
        if trip is None or now >= trip.open_until:
            return None
        return Open(trip.open_until - now, trip.reason)
