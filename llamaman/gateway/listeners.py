"""Listening sockets: reserve a port, open a surface on it, close it, end them all.

Read by: the supervisor (which reserves an instance's port before a launch is accepted) and the boot order.
The bound socket is the reservation: from `reserve` on, nobody else on the machine gets the port, and clients
that connect early wait in its backlog.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path

from llamaman.gateway.connections import AsgiApp, Connections
from llamaman.gateway.limits import BodyBudget, Limits, Surface
from llamaman.gateway.protocol import Connection

__all__ = ["Listeners", "PortTaken", "Surface"]

_BACKLOG = 1024


class PortTaken(Exception):
    """A port or socket path cannot be listened on; `reason` says why and what to do."""

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(reason)
        self.port = port
        self.reason = reason


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another program: stop it or choose another port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs more rights than this process has: choose one above 1023"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"


class Listeners:
    """All listening sockets of one front door and the connections that came through them."""

    def __init__(self, app: AsgiApp, *, limits: Limits, budget: BodyBudget) -> None:
        self.connections = Connections(app, limits, budget)
        self._servers: dict[Surface, asyncio.Server] = {}
        self._ports: dict[Surface, tuple[str, int]] = {}
        self._paths: dict[Surface, Path] = {}

    @staticmethod
    def reserve(host: str, port: int) -> socket.socket:
        """Bind and listen now, from any thread; port 0 picks a free one. Raises PortTaken."""
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise PortTaken(port, f"{host!r} is not an address of this machine: {error}") from error
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise PortTaken(port, _why(error, host, port)) from error
        return sock

    async def open(
        self, surface: Surface, *, host: str, port: int, sock: socket.socket | None = None
    ) -> None:
        """Serve `surface` on a reserved socket, or on a new one for host and port. Raises PortTaken."""
        self._refuse_second(surface)
        if sock is None:
            sock = self.reserve(host, port)
        address = sock.getsockname()
        loop = asyncio.get_running_loop()
        self._servers[surface] = await loop.create_server(
            lambda: Connection(self.connections, surface, loop), sock=sock, backlog=_BACKLOG
        )
        self._ports[surface] = (address[0], address[1])

    async def open_unix(self, surface: Surface, path: Path, mode: int) -> None:
        """Serve `surface` on a unix socket whose file has `mode` from its first moment.

        A socket file that nobody listens on any more is replaced. Raises PortTaken (port 0) when a program
        listens there, or when the path is something else than a socket.
        """
        self._refuse_second(surface)
        _clear_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        except OSError as error:
            sock.close()
            raise PortTaken(0, f"cannot listen on {path}: {error.strerror or error}") from error
        finally:
            os.umask(umask)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        self._servers[surface] = await loop.create_unix_server(
            lambda: Connection(self.connections, surface, loop), sock=sock, backlog=_BACKLOG
        )
        self._paths[surface] = path

    async def close(self, surface: Surface) -> None:
        """Stop accepting, close idle connections now; running answers end in their own time."""
        server = self._servers.pop(surface, None)
        if server is None:
            return
        self._ports.pop(surface, None)
        path = self._paths.pop(surface, None)
        if path is not None:
            path.unlink(missing_ok=True)
        server.close()
        for connection in list(self.connections.members):
            if connection.surface == surface:
                connection.finish()
        # The loop closes the listening descriptor in a later turn; after that the port is free again.
        for _ in range(3):
            await asyncio.sleep(0)

    async def shutdown(self, grace_s: float) -> None:
        """Close every surface, give running answers `grace_s` seconds, then cancel what is left."""
        for surface in list(self._servers):
            await self.close(surface)
        running = set(self.connections.tasks)
        if running:
            await asyncio.wait(running, timeout=grace_s)
        late = [task for task in self.connections.tasks if not task.done()]
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
        for connection in list(self.connections.members):
            connection.abort()
        await asyncio.sleep(0)

    def ports(self) -> dict[Surface, tuple[str, int]]:
        """The TCP surfaces that are open now, each with its bound address and port."""
        return dict(self._ports)

    def _refuse_second(self, surface: Surface) -> None:
        if surface in self._servers:
            raise RuntimeError(f"{surface} is already open: close it first")


def _clear_stale(path: Path) -> None:
    """Remove a socket file that no program listens on. Raises PortTaken when there is anything else."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise PortTaken(0, f"{path} exists and is not a socket: move it away or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise PortTaken(0, f"another program listens on {path}: stop it or choose another path")
