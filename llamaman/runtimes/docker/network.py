"""The Docker network of the instances, and how a manager reaches them.

Read by the runtime. The network is made ``internal``, so that a container has no way out, except where containers
can be reached by a published port alone, which an internal network does not serve. One that exists is kept as it is
and reported. Measured with Docker 20.10: the host reaches addresses of an internal network.

Engines are dialled by the address that the daemon tells, never by name: a name that is not there any more is asked of
the name servers of the world outside, other containers may bear it too, and whoever answered would be given the
engine's key and the prompts.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Final, Literal

from llamaman.errors import LaunchError
from llamaman.records import Address
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, Json
from llamaman.runtimes.docker.engine_facts import is_desktop, is_rootless
from llamaman.runtimes.docker.place import Place
from llamaman.runtimes.docker.walls import PORT

#: As its neighbour on the network (a manager in a container), from the host by its address, or by a port of the host.
Reach = Literal["neighbour", "address", "port"]

_LOOPBACK: Final = "127.0.0.1"  # not "localhost", which may be ::1 first, where nothing is published
_NOT_OURS: Final = frozenset({"bridge", "host", "none", "default"})
#: Of an engine that cannot be reached: connecting is refused at once, and nobody is asked for a name.
NOWHERE: Final = Address(host="127.0.0.1", port=0)
_SETTLE_S: Final = 5.0  # for two managers that made the network at the same moment


class Network:
    """The one network; any thread may ask."""

    def __init__(
        self,
        daemon: Daemon,
        *,
        name: str,
        labels: Mapping[str, str],
        host_addr: str | None,
    ) -> None:
        """
        :param name: LLAMA_NETWORK.
        :param labels: what marks the network as ours.
        :param host_addr: as for :func:`find_reach`; dialled for published ports.
        """
        self._daemon, self._name, self._labels = daemon, name, dict(labels)
        self._host_addr = host_addr
        self._dialled = _LOOPBACK if host_addr in (None, "localhost") else host_addr
        self._lock = threading.Lock()
        self._reach: Reach | None = None
        self._id: str | None = None
        self._notes: tuple[str, ...] = ()

    @property
    def reach(self) -> Reach | None:
        """How containers are reached; None before the first :meth:`prepare`. Does not block."""
        return self._reach

    def notes(self) -> tuple[str, ...]:
        """What an administrator should know of it, in sentences. Does not block."""
        return self._notes

    def forget(self) -> None:
        """Look at everything again next time: the daemon was away."""
        with self._lock:
            self._id = None

    def prepare(self, place: Place, info: Json) -> Reach:
        """Make the network if it is not there and attach ourselves where we are a container; cheap when all is well.

        :param info: what the daemon says of its machine.
        :raises LaunchError: the network cannot be used; the text says what to do.
        :raises DaemonGone: the daemon cannot be reached.
        :raises DaemonError: it refuses.
        """
        with self._lock:
            here = self._daemon.networks(self._name)
            if self._reach is not None and len(here) == 1 and here[0]["Id"] == self._id:
                return self._reach
            if self._name in _NOT_OURS:
                raise LaunchError(
                    f"LLAMA_NETWORK={self._name} is one of Docker's own networks: choose another name, "
                    "and LlamaMan makes a network of its own"
                )
            notes: list[str] = []
            ours = self._daemon.inspect(place.own_id) if place.in_container and place.own_id else None
            reach = find_reach(self._daemon, self._host_addr, place, info, ours)
            network = self._one(here, internal=reach != "port")
            if reach == "port" and network["Internal"]:
                network = self._again(network)
            if reach == "port":
                notes.append(
                    f"containers are reached by ports of this machine, so the Docker network '{self._name}' is an "
                    "ordinary one and models' containers have a way out to the internet"
                )
            elif not network["Internal"]:
                notes.append(
                    f"the Docker network '{self._name}' was there before and is not internal: models' containers have "
                    "a way out to the internet. To have it closed, remove it while no instance runs "
                    f"('docker network rm {self._name}'), and LlamaMan makes it anew"
                )
            if reach == "neighbour" and ours and self._name not in _networks(ours):
                self._daemon.connect(str(network["Id"]), str(ours["Id"]))
            self._reach, self._id, self._notes = reach, str(network["Id"]), tuple(notes)
            return reach

    def address(self, inspected: Json, container_name: str, published: int) -> Address:
        """Where the engine in a started container listens.

        :param inspected: all that the daemon tells of the container.
        :param published: the port of the Docker host, 0 when it has none or Docker chose one.
        :raises LaunchError: it has no address, for instance because it has ended.
        """
        published = 0 if self._reach == "neighbour" else published or _published(inspected)
        if published:
            return Address(host=self._dialled, port=published)
        joined = _networks(inspected).get(self._name) or {}
        host = joined.get("IPAddress") or joined.get("GlobalIPv6Address")
        if not host:
            raise LaunchError(
                f"container {container_name} has no address on the Docker network '{self._name}': "
                "it ended at once, or was taken off the network"
            )
        return Address(host=str(host), port=PORT)

    def is_at(self, inspected: Json, address: Address) -> bool:
        """Whether a running container's engine still is at an address that :meth:`address` told; does not block.

        One that was taken off the network is not: whoever has its address by now is another.
        """
        if "NetworkSettings" not in inspected:  # the daemon does not say
            return True
        joined = _networks(inspected).get(self._name)
        if joined is None:
            return False
        if (
            address == NOWHERE or address.host == self._dialled
        ):  # the daemon passes on what comes to a port there
            return True
        return address.host in (joined.get("IPAddress"), joined.get("GlobalIPv6Address"))

    # --- making it -----------------------------------------------------------------------------------

    def _one(self, here: list[Json], *, internal: bool) -> Json:
        """The network, made if need be. Engines before 25 let two managers make two of one name."""
        deadline = time.monotonic() + _SETTLE_S
        while True:
            if len(here) == 1:
                return here[0]
            if not here:
                self._create(internal=internal)
            else:
                # Everybody who comes here keeps the oldest and removes only what it may have made itself.
                for younger in sorted(here, key=_age)[:0:-1]:
                    if self._is_ours(younger):
                        self._remove_unused(younger)
            here = self._daemon.networks(self._name)
            if len(here) == 1:
                return here[0]
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"there are {len(here)} Docker networks named '{self._name}' and containers use more than one of "
                    "them: remove all but one ('docker network ls', 'docker network rm ID')"
                    if here
                    else f"the Docker network '{self._name}' vanishes as soon as it is made: who removes it?"
                )
            time.sleep(0.02)

    def _create(self, *, internal: bool) -> None:
        try:
            self._daemon.create_network(self._name, internal=internal, labels=self._labels)
        except DaemonError as error:
            if error.status != 409:  # another manager was faster: as good
                raise

    def _again(self, network: Json) -> Json:
        """An ordinary network in place of an internal one, on which published ports are dead."""
        if not self._is_ours(network) or not self._remove_unused(network):
            raise LaunchError(
                f"the Docker network '{self._name}' is internal, so the ports of its containers cannot be reached from "
                f"here: remove it ('docker network rm {self._name}') or set LLAMA_NETWORK to another name"
            )
        return self._one([], internal=False)

    def _is_ours(self, network: Json) -> bool:
        carried = network.get("Labels") or {}
        return all(carried.get(name) == value for name, value in self._labels.items())

    def _remove_unused(self, network: Json) -> bool:
        """Remove it unless containers are attached."""
        try:
            self._daemon.remove_network(str(network["Id"]))
        except DaemonError as error:
            if "active endpoints" in error.text or "in use" in error.text or "being used" in error.text:
                return False
            raise
        return True


def find_reach(daemon: Daemon, host_addr: str | None, place: Place, info: Json, ours: Json | None) -> Reach:
    """How this manager reaches containers of this daemon.

    :param host_addr: LLAMA_HOST_ADDR, None where it is not set.
    :param ours: our own container.
    """
    on_host_network = bool(ours) and ours is not None and ours["HostConfig"].get("NetworkMode") == "host"
    if place.in_container and not on_host_network:
        return "neighbour"
    if host_addr is not None:
        return "port"
    # Their containers are in a virtual machine or a network namespace that only forwards ports.
    if sys.platform != "linux" or not daemon.is_local or is_desktop(info) or is_rootless(info):
        return "port"
    return "address"


def _networks(inspected: Json) -> Mapping[str, Json]:
    found: Mapping[str, Json] = inspected["NetworkSettings"].get("Networks") or {}
    return found


def _published(inspected: Json) -> int:
    bindings = (inspected["NetworkSettings"].get("Ports") or {}).get(f"{PORT}/tcp") or ()
    return int(bindings[0]["HostPort"]) if bindings else 0


def _age(network: Json) -> tuple[str, str]:
    """Sorts the oldest first; the same for everybody who looks."""
    return str(network.get("Created")), str(network["Id"])
