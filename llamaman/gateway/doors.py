"""The public ports of instances, as the registry opens and closes them at run time."""

from __future__ import annotations

import socket

from llamaman.errors import PortTaken
from llamaman.gateway import listeners
from llamaman.gateway.limits import Surface


class InstanceDoors:
    """One listener per instance; the bound socket is the reservation of its port."""

    def __init__(self, host: str, open_listeners: listeners.Listeners) -> None:
        self._host = host
        self._listeners = open_listeners

    def reserve(self, port: int) -> socket.socket:
        """Bind and listen.

        :raises PortTaken: another program has it.
        """
        try:
            return self._listeners.reserve(self._host, port)
        except listeners.PortTaken as error:
            raise PortTaken(
                f"Port {port} is already occupied by another process", detail=str(error)
            ) from None

    async def open(self, instance_id: str, port: int, sock: socket.socket | None) -> None:
        """Serve an instance's port.

        :raises PortTaken: it could not be bound.
        """
        surface = Surface("instance", instance_id)
        try:
            await self._listeners.open(surface, host=self._host, port=port, sock=sock)
        except listeners.PortTaken as error:
            raise PortTaken(
                f"Port {port} is already occupied by another process", detail=str(error)
            ) from None

    async def close(self, instance_id: str) -> None:
        """Stop serving it and free the port."""
        await self._listeners.close(Surface("instance", instance_id))
