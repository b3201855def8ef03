"""The network addresses of our running containers: what calls from there is an engine, which may not call us."""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Mapping
from typing import Any, Final

from llamaman.runtimes.docker.daemon import Json

_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


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
        """Whether it is a container whose end will be heard of and is not settled yet."""
        return container_id in self._of

    def add(self, container_id: str, inspected: Json) -> None:
        """A container that we have started."""
        with self._lock:
            self._set(container_id, addresses(inspected))

    def found(self, container_ids: Mapping[str, Json]) -> None:
        """Containers that run. One that is not watched, so that nobody will hear of its end, counts until the next
        look."""
        with self._lock:
            self._found = {each: addresses(inspected) for each, inspected in container_ids.items()}
            self._count()

    def watched(self, container_id: str) -> None:
        """A container whose end will be heard of."""
        with self._lock:
            if (found := self._found.pop(container_id, None)) is not None:
                self._set(container_id, found)

    def remove(self, container_id: str) -> None:
        """It is gone: its address may be somebody else's soon."""
        with self._lock:
            self._of.pop(container_id, None)
            self._found.pop(container_id, None)
            self._count()

    def _set(self, container_id: str, own: frozenset[str]) -> None:
        self._of[container_id] = own
        self._count()

    def _count(self) -> None:
        everyone = frozenset().union(*self._of.values(), *self._found.values())
        if everyone != self._all:  # whoever keeps what it read sees a change by identity
            self._all = everyone


def addresses(inspected: Json) -> frozenset[str]:
    """Of a running container, on all its networks, also those that the kernel gave it where IPv6 is on."""
    networks: Mapping[str, Any] = inspected["NetworkSettings"].get("Networks") or {}
    fields = (each.get(name) for each in networks.values() for name in ("IPAddress", "GlobalIPv6Address"))
    link_local = (_link_local(str(each.get("MacAddress") or "")) for each in networks.values())
    return frozenset(address for address in (*fields, *link_local) if address)


def _link_local(mac: str) -> str | None:
    """The IPv6 address of an interface for its own link, which Docker does not tell; RFC 4291, appendix A."""
    if not _MAC.fullmatch(mac):
        return None
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))
