"""The client side of the hot path: requests to one engine generation over pooled keep-alive connections.

Read by: the pipeline. Guarantees: an answer ends complete or with an UpstreamError that says how it broke,
never both; a request is sent twice only on a reused connection that answered with no byte at all; nothing that
an engine sends grows without bound. The engine is untrusted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any

from llamaman.gateway.answers import header_line
from llamaman.gateway.upstream_connection import UpstreamConnection
from llamaman.gateway.upstream_response import Response, UpstreamError
from llamaman.records import Address

__all__ = ["Address", "Response", "Upstream", "UpstreamError"]

Header = tuple[bytes, bytes]
# Takes over the wait for an engine to let go of a request whose caller was cancelled before its head.
Abandon = Callable[[Coroutine[Any, Any, bool]], None]
ABANDON_S = 30.0


class Upstream:
    """Connections to one engine generation. Owned by the event loop."""

    def __init__(
        self, address: Address, *, keepalive_s: float = 4.0, max_idle: int = 16, connect_s: float = 5.0
    ) -> None:
        self.address = address
        self._keepalive_s = keepalive_s  # below the 5 s after which llama-server closes an idle connection
        self._max_idle = max_idle
        self._connect_s = connect_s
        self._idle: list[UpstreamConnection] = []  # oldest first
        self._all: set[UpstreamConnection] = set()
        self._closed = False

    async def request(
        self,
        method: str,
        target: bytes,
        headers: Sequence[Header],
        body: bytes = b"",
        *,
        silence_s: float,
        host: bytes = b"localhost",
        abandon: Abandon | None = None,
    ) -> Response:
        """Send a request and wait for the head of its answer.

        When the caller is cancelled meanwhile, `abandon` gets the coroutine that half-closes the connection
        and waits for the engine's end of file, as `Response.cancel` does; without it the connection is dropped.

        `silence_s`: seconds without any byte from the engine, in the head or in the body, after which the
        answer fails with kind `silent`. Host and Content-Length are added here. Raises UpstreamError.
        """
        head = _render(method, target, headers, len(body), host)
        connection = self._take() if self._idle else None
        reused = connection is not None
        while True:
            if connection is None:
                connection = await self._connect()
            response = connection.send(head, body, head_only=method == "HEAD", silence_s=silence_s)
            try:
                while not response.status:
                    if response.failure is not None:
                        raise response.failure
                    response.waiter = connection.loop.create_future()
                    await response.waiter
                response.waiter = None
                return response
            except UpstreamError as error:
                connection.abort()
                if not reused or error.received or error.kind != "reset" or self._closed:
                    raise
            except BaseException:
                if abandon is not None:
                    abandon(connection.half_close_and_drain(ABANDON_S))
                else:
                    connection.abort()
                raise
            connection, reused = None, False

    async def close(self) -> None:
        """Close idle connections; answers in progress may end. No new requests."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def abort(self) -> None:
        """The engine died: drop everything now. Answers in progress fail with `reset` at once."""
        self._closed = True
        for connection in list(self._all):
            connection.fail("reset", "the engine is gone")
        self._idle.clear()

    def connection_idle(self, connection: UpstreamConnection) -> None:
        """For connections: this one can carry another request."""
        if self._closed or len(self._idle) >= self._max_idle:
            connection.abort()
        else:
            self._idle.append(connection)

    def connection_gone(self, connection: UpstreamConnection) -> None:
        """For connections: this one is closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _take(self) -> UpstreamConnection | None:
        """The most recently used idle connection that the engine still keeps open."""
        idle = self._idle
        oldest_allowed = asyncio.get_running_loop().time() - self._keepalive_s
        if idle[0].heard < oldest_allowed and len(idle) > 1:
            idle.pop(0).abort()
        while idle:
            connection = idle.pop()
            if connection.heard >= oldest_allowed and connection.is_open:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> UpstreamConnection:
        self._require_open()
        loop = asyncio.get_running_loop()
        address = self.address

        def make() -> UpstreamConnection:
            return UpstreamConnection(loop, self)

        try:
            async with asyncio.timeout(self._connect_s):
                if address.path:
                    _, connection = await loop.create_unix_connection(make, address.path)
                else:
                    _, connection = await loop.create_connection(make, address.host, address.port)
        except TimeoutError:
            raise UpstreamError(
                "connect", f"no connection to {address} within {self._connect_s:g} seconds"
            ) from None
        except OSError as error:
            raise UpstreamError("connect", f"cannot connect to {address}: {error}") from error
        try:
            self._require_open()
        except UpstreamError:
            connection.abort()
            raise
        if connection.is_open:  # else it was lost before this turn
            self._all.add(connection)
        return connection

    def _require_open(self) -> None:
        if self._closed:
            raise UpstreamError("connect", "the connections to this engine were closed")


@lru_cache(maxsize=256)
def _opening(method: str, target: bytes, host: bytes) -> bytes:
    """The first two lines of a request. Cached: an engine has few endpoints."""
    lines = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), target, host)
    if lines.count(b"\n") != 2 or lines.count(b"\r") != 2 or lines.count(b" ") != 3:
        raise ValueError("a line break or space in the method, target or host of a request to the engine")
    return lines


def _render(method: str, target: bytes, headers: Sequence[Header], length: int, host: bytes) -> bytes:
    """The head of a request. Raises ValueError when a part would break it apart."""
    head = _opening(method, target, host)
    for name, value in headers:
        head += header_line(name, value)
    if length or method in ("POST", "PUT", "PATCH"):
        return b"%bcontent-length: %d\r\n\r\n" % (head, length)
    return head + b"\r\n"
