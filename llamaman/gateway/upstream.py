"""The client side of the hot path: requests to one engine generation over pooled keep-alive connections.

Read by: the pipeline. Guarantees: an answer ends complete or with an UpstreamError that says how it broke,
never both; a request is sent twice only on a reused connection that answered with no byte at all; nothing that an
engine sends grows without bound. The engine is untrusted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from llamaman.gateway.upstream_connection import Exchange, UpstreamConnection, UpstreamError
from llamaman.records import Address

__all__ = ["Address", "Response", "Upstream", "UpstreamError"]

Header = tuple[bytes, bytes]
#: Takes over the wait for an engine to let go of a request whose caller was cancelled before its head.
Abandon = Callable[[Coroutine[Any, Any, bool]], None]
ABANDON_S = 30.0


class Response:
    """An answer in progress. Read it to the end, or `release`, `close` or `cancel` it."""

    __slots__ = ("_connection", "_exchange", "_upstream", "headers", "status")

    def __init__(self, upstream: Upstream, connection: UpstreamConnection, exchange: Exchange) -> None:
        self._upstream = upstream
        self._connection: UpstreamConnection | None = connection
        self._exchange = exchange
        self.status = exchange.status
        self.headers: list[Header] = exchange.headers

    @property
    def complete(self) -> bool:
        """The whole answer has arrived (parts of it may still be unread)."""
        return self._exchange.complete

    async def read_block(self) -> bytes:
        """Everything received since the last call; b"" at the complete end. Else raises UpstreamError."""
        exchange = self._exchange
        while True:
            if exchange.chunks:
                block = exchange.take()
                if exchange.complete:
                    self.release()
                return block
            if exchange.complete:
                self.release()
                return b""
            if exchange.failure is not None:
                self._forget()
                raise exchange.failure
            await exchange.wait()

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body. Raises UpstreamError("protocol") and closes beyond `limit` bytes."""
        block = await self.read_block()
        if not block or (self.complete and len(block) <= limit):
            return block
        blocks: list[bytes] = []
        size = 0
        while block:
            size += len(block)
            if size > limit:
                self.close()
                raise UpstreamError("protocol", f"the answer is larger than {limit} bytes", received=True)
            blocks.append(block)
            block = await self.read_block()
        return b"".join(blocks)

    async def cancel(self, drain_s: float = 30.0) -> bool:
        """Tell the engine that nobody listens, and wait until it has stopped.

        Half-closes, drops what still comes, and closes at the engine's end of file. False when that took
        longer than `drain_s` seconds and the connection was aborted: the engine may still be computing.
        """
        connection = self._connection
        if connection is None:
            return True
        self._forget()
        return await connection.half_close_and_drain(drain_s)

    def release(self) -> None:
        """Done with this answer: reuse the connection when the answer is complete, else close it."""
        connection = self._connection
        if connection is None:
            return
        self._forget()
        if self._exchange.complete and connection.reusable:
            self._upstream._put(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Drop the answer and its connection now."""
        connection = self._connection
        if connection is not None:
            self._forget()
            connection.abort()

    def _forget(self) -> None:
        connection = self._connection
        if connection is not None:
            self._connection = None
            self._exchange.chunks = []  # the list belongs to the connection's next exchange
            self._upstream._active.discard(connection)


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
        self._active: set[UpstreamConnection] = set()
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

        When the caller is cancelled meanwhile, ``abandon`` gets the coroutine that half-closes the connection
        and waits for the engine's end of file, as `Response.cancel` does; without it the connection is dropped.

        `silence_s`: seconds without any byte from the engine, in the head or in the body, after which the
        answer fails with kind `silent`. Host and Content-Length are added here. Raises UpstreamError.
        """
        wire = _render(method, target, headers, body, host)
        connection = self._take()
        if connection is not None:
            try:
                return await self._exchange(connection, method, wire, silence_s, abandon)
            except UpstreamError as error:
                if error.received or error.kind != "reset" or self._closed:
                    raise
        return await self._exchange(await self._connect(), method, wire, silence_s, abandon)

    async def close(self) -> None:
        """Close idle connections; answers in progress may end. No new requests."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def abort(self) -> None:
        """The engine died: drop everything now. Answers in progress fail with `reset` at once."""
        self._closed = True
        for connection in [*self._idle, *self._active]:
            connection.fail("reset", "the engine is gone")
        self._idle.clear()
        self._active.clear()

    async def _exchange(
        self,
        connection: UpstreamConnection,
        method: str,
        wire: bytes,
        silence_s: float,
        abandon: Abandon | None,
    ) -> Response:
        self._active.add(connection)
        try:
            exchange = connection.send(wire, head_only=method == "HEAD", silence_s=silence_s)
            while not exchange.status:
                if exchange.failure is not None:
                    raise exchange.failure
                await exchange.wait()
        except asyncio.CancelledError:
            self._active.discard(connection)
            if abandon:
                abandon(connection.half_close_and_drain(ABANDON_S))
            else:
                connection.abort()
            raise
        except BaseException:
            self._active.discard(connection)
            connection.abort()
            raise
        return Response(self, connection, exchange)

    def _take(self) -> UpstreamConnection | None:
        """The most recently used idle connection that the engine still keeps open."""
        if not self._idle:
            return None
        oldest_allowed = asyncio.get_running_loop().time() - self._keepalive_s
        while self._idle and self._idle[0].idle_since < oldest_allowed:
            self._idle.pop(0).abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    def _put(self, connection: UpstreamConnection) -> None:
        if self._closed or len(self._idle) >= self._max_idle:
            connection.abort()
            return
        connection.idle_since = connection.loop.time()
        self._idle.append(connection)

    def _lost(self, connection: UpstreamConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    async def _connect(self) -> UpstreamConnection:
        self._require_open()
        loop = asyncio.get_running_loop()
        address = self.address

        def make() -> UpstreamConnection:
            return UpstreamConnection(loop, self._lost)

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
        return connection

    def _require_open(self) -> None:
        if self._closed:
            raise UpstreamError("connect", "the connections to this engine were closed")


def _render(method: str, target: bytes, headers: Sequence[Header], body: bytes, host: bytes) -> bytes:
    """The whole request as one piece of bytes. Raises ValueError when a part would break the head apart."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d\r\n" % len(body))
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (method.encode(), target, host, b"".join(lines))
    if head.count(b"\n") != len(lines) + 3 or head.count(b"\r") != len(lines) + 3 or b" " in target:
        raise ValueError("a line break or space in the request to the engine")
    return head + body
