"""Which instance holds which ports: bound before a launch is accepted, opened and closed at run time.

The bound socket is the reservation of a public port. Everything runs on the event loop; opening and closing
one instance's port never interleave.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Protocol

from llamaman.core.instance import Instance
from llamaman.core.planner import ENGINE_HOST
from llamaman.core.ports import PortPool
from llamaman.errors import LlamaManError, PortTaken
from llamaman.records import State

log = logging.getLogger("llamaman.instances")


class Doors(Protocol):
    """The listeners of instance ports."""

    def reserve(self, port: int) -> socket.socket:
        """Bind and listen; raises PortTaken."""

    async def open(self, instance_id: str, port: int, sock: socket.socket | None) -> None:
        """Serve it."""

    async def close(self, instance_id: str) -> None:
        """Stop serving it and free the port."""


class InstancePorts:
    """The public and internal ports of all instances."""

    def __init__(self, doors: Doors, public: PortPool, internal: PortPool) -> None:
        self._doors = doors
        self._public = public
        self._internal = internal
        self._open: set[str] = set()
        self._sockets: dict[str, socket.socket] = {}  # reserved and not yet served
        self._lock = asyncio.Lock()

    # --- public --------------------------------------------------------------------------------------

    def next_free(self) -> int | None:
        """The port that a launch would get now, or None. From any thread."""
        return self._public.peek(self._is_free)

    def claim(self, port: int | None, owner: str) -> int:
        """Reserve a port, or the first free one, for an instance that is about to be.

        :raises Conflict: it is taken, or none is free.
        """
        bound: dict[int, socket.socket] = {}

        def bind(candidate: int) -> bool:
            try:
                bound[candidate] = self._doors.reserve(candidate)
            except PortTaken:
                return False
            return True

        claimed = self._public.claim(port, owner, bind)
        self._sockets[owner] = bound[claimed]
        return claimed

    def unclaim(self, owner: str) -> None:
        """Undo a claim whose instance did not come to be."""
        if sock := self._sockets.pop(owner, None):
            sock.close()
        self._public.release(owner)

    def keep(self, instance: Instance) -> None:
        """Note a port that the instance's record says is its own; it is bound when it is opened.

        :raises PortTaken: another instance holds it.
        """
        self._public.claim(instance.port, instance.id, _held)

    async def reserve(self, instance: Instance) -> None:
        """A port for an instance that gave its own back, or is about to."""
        async with self._lock:
            if instance.id in self._open or instance.id in self._sockets:
                return
            self._public.release(instance.id)
            self._reclaim(instance)

    async def open(self, instance: Instance) -> None:
        """Serve an instance's port; its old one if that is free, else another. Open ports stay open."""
        async with self._lock:
            if instance.id in self._open:
                return
            if instance.id not in self._sockets and self._public.owner_of(instance.port) != instance.id:
                self._reclaim(instance)
            self._open.add(instance.id)
            try:
                await self._doors.open(instance.id, instance.port, self._sockets.pop(instance.id, None))
            except BaseException:
                self._open.discard(instance.id)
                raise

    async def open_some(self, instance: Instance) -> None:
        """Its own port, or another if somebody else has taken that: the engine behind it is worth more."""
        wanted = instance.port
        try:
            await self.open(instance)
        except LlamaManError:
            self._public.release(instance.id)
            await self.open(instance)
        if instance.port != wanted:
            log.warning(
                "instance %s: port %d is taken; it is served on %d", instance.id, wanted, instance.port
            )

    async def release(self, instance: Instance, *, forgotten: bool = False) -> None:
        """Give the public port back, unless the instance was started again meanwhile.

        :param forgotten: its record is gone, so its state no longer matters.
        """
        async with self._lock:
            if not forgotten and instance.state not in (State.STOPPED, State.FAILED):
                return
            if sock := self._sockets.pop(instance.id, None):
                sock.close()
            if instance.id in self._open:
                self._open.discard(instance.id)
                await self._doors.close(instance.id)
            self._public.release(instance.id)

    # --- internal ------------------------------------------------------------------------------------

    def claim_internal(self, instance: Instance) -> int:
        """A free loopback port for an instance's engine.

        :raises Conflict: none is free.
        """
        instance.internal_port = self._internal.claim(None, instance.id, _free_on_loopback)
        return instance.internal_port

    def keep_internal(self, instance: Instance, port: int) -> None:
        """Note the port that an adopted engine listens on."""
        instance.internal_port = port
        with contextlib.suppress(LlamaManError):  # outside a range that was changed: nobody else gets it
            self._internal.claim(port, instance.id, _held)

    def release_internal(self, instance: Instance) -> None:
        """The engine is gone."""
        instance.internal_port = None
        self._internal.release(instance.id)

    # --- small things --------------------------------------------------------------------------------

    def _reclaim(self, instance: Instance) -> None:
        try:
            instance.port = self.claim(instance.port, instance.id)
        except LlamaManError:
            instance.port = self.claim(None, instance.id)

    def _is_free(self, port: int) -> bool:
        try:
            self._doors.reserve(port).close()
        except PortTaken:
            return False
        return True


def _held(_port: int) -> bool:
    """A port that is ours already needs no proof."""
    return True


def _free_on_loopback(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((ENGINE_HOST, port))
        except OSError:
            return False
    return True
