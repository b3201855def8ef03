"""Who holds which public port. It only keeps the books: the caller knows whether a port can be bound."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llamaman.errors import Conflict, InvalidField, PortTaken


class PortPool:
    """The ports of one inclusive range, each held by at most one owner (an instance id). Thread-safe."""

    def __init__(self, start: int, end: int) -> None:
        if not 0 < start <= end < 65536:
            raise ValueError(f"{start}-{end} is not a range of ports")
        self.start = start
        self.end = end
        self._owners: dict[int, str] = {}
        self._lock = threading.Lock()

    def claim(self, port: int | None, owner: str, is_free: Callable[[int], bool]) -> int:
        """Give ``owner`` the wanted port, or for None the first one that is free.

        An owner that already holds the wanted port (an adopted instance) keeps it, and ``is_free`` is not
        asked. ``is_free`` runs under the pool's lock: it may bind a socket and must not do more.

        :raises InvalidField: the port is outside the range. :raises PortTaken: it is held or cannot be bound.
        :raises Conflict: every port is in use.
        """
        with self._lock:
            if port is not None:
                return self._claim_this(port, owner, is_free)
            for candidate in range(self.start, self.end + 1):
                if candidate not in self._owners and is_free(candidate):
                    self._owners[candidate] = owner
                    return candidate
        raise Conflict(
            f"No ports available: {self.start}-{self.end} are all in use; remove an instance or widen "
            "PORT_RANGE_START-PORT_RANGE_END"
        )

    def _claim_this(self, port: int, owner: str, is_free: Callable[[int], bool]) -> int:
        if not self.start <= port <= self.end:
            raise InvalidField(
                "port",
                f"port {port} is outside {self.start}-{self.end} (PORT_RANGE_START-PORT_RANGE_END)",
            )
        holder = self._owners.get(port)
        if holder == owner:
            return port
        if holder is not None or not is_free(port):
            raise PortTaken(f"Port {port} is already in use")
        self._owners[port] = owner
        return port

    def release(self, owner: str) -> None:
        """Give back every port of ``owner``; having none is no error."""
        with self._lock:
            for port in [port for port, holder in self._owners.items() if holder == owner]:
                del self._owners[port]

    def owner_of(self, port: int) -> str | None:
        """Who holds ``port``, or None."""
        with self._lock:
            return self._owners.get(port)

    def peek(self, is_free: Callable[[int], bool] = lambda port: True) -> int | None:
        """The port that ``claim(None, ...)`` would give now, or None when there is none."""
        with self._lock:
            candidates = range(self.start, self.end + 1)
            return next((port for port in candidates if port not in self._owners and is_free(port)), None)
