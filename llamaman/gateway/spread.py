"""A histogram as plain numbers: cheap to add to on the loop, read from any thread."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A histogram at one moment.

    :ivar counts: of each bucket alone, the one without an upper bound last.
    """

    counts: tuple[int, ...]
    sum: float


class Histogram:
    """Counts how many values are at most each bound. One writer; a value below 0 counts as 0."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        if value > 0:
            self._sum += value

    def read(self) -> Spread:
        """What it holds now."""
        return Spread(tuple(self._counts), self._sum)
