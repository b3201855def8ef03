"""The network addresses of our running containers: what calls from there is an engine, which may not call us."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from llamaman.runtimes.docker.daemon import Json


class Peers:
    """Owns them, by container. Any thread may call; reading takes no lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, frozenset[str]] = {}
        self._found: dict[str, frozenset[str]] = {}
        self._all: frozenset[str] = frozenset()

    def all(self) -> frozenset[str]:
        """The addresses now."""
        return self._all

    def __contains__(self, container_id: str) -> bool:
        """Whether a container counts as running."""
        return container_id in self._of

    def add(self, container_id: str, inspected: Json) -> None:
        """A container that we have started."""
        with self._lock:
            self._set(container_id, addresses(inspected))

    def found(self, container_ids: Mapping[str, Json]) -> None:
        """Containers that run; each counts once it is watched, so that its end will be heard of."""
        with self._lock:
            self._found = {each: addresses(inspected) for each, inspected in container_ids.items()}

    def watched(self, container_id: str) -> None:
        """A container whose end will be heard of."""
        with self._lock:
            if (found := self._found.pop(container_id, None)) is not None:
                self._set(container_id, found)

    def remove(self, container_id: str) -> None:
        """It is gone: its address may be somebody else's soon."""
        with self._lock:
            if self._of.pop(container_id, None) is not None:
                self._all = frozenset().union(*self._of.values())

    def _set(self, container_id: str, own: frozenset[str]) -> None:
        self._of[container_id] = own
        self._all = frozenset().union(*self._of.values())


def addresses(inspected: Json) -> frozenset[str]:
    """Of a running container, on all its networks."""
    networks: Mapping[str, Any] = inspected["NetworkSettings"].get("Networks") or {}
    fields = (each.get(name) for each in networks.values() for name in ("IPAddress", "GlobalIPv6Address"))
    return frozenset(address for address in fields if address)
