"""Where the manager stands, what the daemon's machine is, and the network between them: asked once per daemon.

For the runtime. A daemon that was away may be another one when it is back, so all of it is forgotten then.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, TypeGuard

from llamaman.runtimes.docker import labels
from llamaman.runtimes.docker.daemon import Daemon, Json
from llamaman.runtimes.docker.engine_facts import has_init
from llamaman.runtimes.docker.network import Network, Reach
from llamaman.runtimes.docker.parts import Parts
from llamaman.runtimes.docker.place import Place, find_place

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Here:
    """What holds for as long as one daemon is there.

    :ivar info: what the daemon says of its machine.
    """

    place: Place
    info: Json
    has_init: bool


class Surroundings:
    """One daemon's; any thread may ask."""

    def __init__(self, daemon: Daemon, parts: Parts) -> None:
        self._daemon = daemon
        self._in_docker = parts.in_docker
        self.network = Network(
            daemon,
            name=parts.network,
            labels=labels.network_labels(parts.node, parts.install),
            host_addr=parts.host_addr,
        )
        # What is published is for this manager alone, so it never leaves the machine.
        self.published_on = parts.host_addr if _is_loopback(parts.host_addr) else _LOOPBACK
        self._here: Here | None = None

    def look(self) -> Here:
        """Where we are.

        :raises DaemonGone: the daemon cannot be reached. :raises DaemonError: it does not say.
        """
        here = self._here
        if here is None:
            info = self._daemon.info()
            place = find_place(self._daemon, self._in_docker)
            here = self._here = Here(place, info, has_init(self._daemon.version(), info))
        return here

    def join(self) -> Reach:
        """Have the network, be on it, and say how containers there are reached; cheap when all is well.

        :raises LaunchError: it cannot be used. :raises DaemonGone, DaemonError: as in :meth:`look`.
        """
        here = self.look()
        return self.network.prepare(here.place, here.info)

    def is_us(self, container_id: str) -> bool:
        """Whether that is our own container. Does not block."""
        return self._here is not None and self._here.place.own_id == container_id

    def forget(self) -> None:
        """Look anew next time."""
        self._here = None
        self.network.forget()

    def notes(self) -> tuple[str, ...]:
        """What an administrator should know of them, in sentences. Does not block."""
        here = self._here
        return (*self.network.notes(), *((here.place.note,) if here and here.place.note else ()))


def _is_loopback(address: str | None) -> TypeGuard[str]:
    try:
        return address is not None and ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False
