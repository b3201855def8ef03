"""The table of the routes that the event loop serves itself: inference, streams and a few fixed answers.

Everything else on the management listener goes to Flask. The table is built at boot and never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from llamaman.access import Access
from llamaman.errors import PluginError

T = TypeVar("T")
_NO_VALUES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """A hit: what serves the path, and the values of the pattern's segments."""

    target: T
    values: Mapping[str, str]


class Table(Generic[T]):
    """Method and path to target. Literal paths are one dictionary look-up.

    In a pattern ``{name}`` is one segment of a path, and ``{name...}`` at its end all that are left, at least one.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Match[T]] = {}
        self._patterns: list[tuple[str, tuple[str, ...], T]] = []
        self._owner: dict[tuple[str, str], tuple[str, str]] = {}  # by shape: pattern, owner

    def add(self, method: str, pattern: str, target: T, owner: str) -> None:
        """Add a route.

        :raises PluginError: another owner has it already.
        """
        if (taken := self.owner(method, pattern)) is not None:
            raise PluginError(owner, f"route {method} {pattern} is already served by '{taken}'")
        self._owner[method, _shape(pattern)] = pattern, owner
        if "{" in pattern:
            self._patterns.append((method, tuple(pattern[1:].split("/")), target))
            self._patterns.sort(
                key=lambda known: known[1][-1].endswith("...}")
            )  # one segment before the rest
        else:
            self._exact[method, pattern] = Match(target, _NO_VALUES)

    def owner(self, method: str, pattern: str) -> str | None:
        """Who serves a pattern, or None. How its values are called makes no difference."""
        found = self._owner.get((method, _shape(pattern)))
        return found[1] if found else None

    def match(self, method: str, path: str) -> Match[T] | None:
        """Find what serves a request."""
        hit = self._exact.get((method, path))
        if hit is not None or not self._patterns:
            return hit
        segments = path[1:].split("/")  # a slash at the end is a segment, too: another path
        for wanted, pattern, target in self._patterns:
            if wanted == method and (values := _values(pattern, segments)) is not None:
                return Match(target, values)
        return None

    def methods(self, path: str) -> list[str]:
        """The methods that a path has, for a 405."""
        found = {method for method, known in self._exact if known == path}
        segments = path[1:].split("/")
        found.update(m for m, pattern, _ in self._patterns if _values(pattern, segments) is not None)
        return sorted(found)

    def rows(self) -> Iterable[tuple[str, str, str]]:
        """(method, pattern, owner) of every route."""
        return [(method, pattern, owner) for (method, _), (pattern, owner) in self._owner.items()]


def _shape(pattern: str) -> str:
    return "/".join(
        ("{...}" if segment.endswith("...}") else "{}") if segment.startswith("{") else segment
        for segment in pattern.split("/")
    )


def _values(pattern: tuple[str, ...], segments: list[str]) -> dict[str, str] | None:
    if pattern[-1].endswith("...}") and len(segments) >= len(pattern):
        last = len(pattern) - 1
        before = _values(pattern[:-1], segments[:last]) if last else {}
        rest = segments[last:]
        return None if before is None or "" in rest else {**before, pattern[-1][1:-4]: "/".join(rest)}
    if len(pattern) != len(segments):
        return None
    values: dict[str, str] = {}
    for want, have in zip(pattern, segments, strict=True):
        if want.startswith("{"):
            if not have:
                return None
            values[want[1:-1]] = have
        elif want != have:
            return None
    return values


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One line of ``llamaman routes``."""

    method: str
    path: str
    surfaces: tuple[str, ...]
    level: Access
    plugin: str
