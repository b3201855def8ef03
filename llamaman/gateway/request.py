"""One client request as its handler sees it: the checked head, the body, `gone`, and the two ASGI channels.

Read by: everyone who writes a handler (`Request` stands in `scope["extensions"]["llamaman.request"]`).
`protocol.py` feeds the body in and carries the answer out; nothing here touches a socket. Single-threaded:
all methods belong to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from llamaman.gateway.answers import header_block, status_line
from llamaman.gateway.heads import Head
from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull, ClientGone, Surface

if TYPE_CHECKING:
    from llamaman.gateway.protocol import Connection

READ_AHEAD_BYTES = 64 * 1024  # body bytes accepted before a handler asks for them
_JOIN_BYTES = 64 * 1024  # up to here one copied write beats a gathered one


class Request:
    """A request in progress. Made by the connection, used by exactly one handler."""

    __slots__ = (
        "_behind",
        "_body_allowed",
        "_chunked",
        "_chunks",
        "_connection",
        "_delivered",
        "_failure",
        "_gone",
        "_headers",
        "_left",
        "_reserved",
        "_status",
        "_wait_started",
        "_waited_s",
        "_waiter",
        "_whole_limit",
        "answered",
        "body_complete",
        "buffered",
        "extra_headers",
        "head",
        "is_gone",
        "on_gone",
        "received",
        "started",
        "task",
    )

    def __init__(self, connection: Connection, head: Head, body_complete: bool) -> None:
        self._connection = connection
        self.head = head
        self.body_complete = body_complete
        self.received = 0  # body bytes so far
        self.buffered = 0  # of those, not yet taken by the handler
        self.started = False  # the answer's head is on its way
        self.answered = False  # the answer is complete
        self.is_gone = False
        self._behind: str | None = None
        #: Header lines for the answer, whoever gives it: what the gate found out (CORS). Ends in a line break.
        self.extra_headers = connection.standing
        #: Called once, on the loop, when the client leaves; cheaper than awaiting ``gone`` in every request.
        self.on_gone: Callable[[], None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._chunks: list[bytes] = []
        self._delivered = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._wait_started = 0.0
        self._waited_s = 0.0
        self._whole_limit = -1  # read_body's limit; -1 while nobody wants the whole body
        self._reserved = 0
        self._status = 0
        self._headers: Iterable[tuple[bytes, bytes]] = ()
        self._chunked = False
        self._body_allowed = True
        self._left = -1  # bytes still owed under a declared Content-Length; -1 when none was declared

    # --- what a handler reads

    @property
    def surface(self) -> Surface:
        """The listener the request came through."""
        return self._connection.surface

    @property
    def peer(self) -> tuple[str, int] | None:
        """The client's address and port; None on a unix socket."""
        return self._connection.peer

    @property
    def address(self) -> str | None:
        """The client's address: the peer's, or whom trusted proxies name; None on a unix socket."""
        if self._behind is not None:
            return self._behind
        peer = self._connection.peer
        return peer[0] if peer else None

    @address.setter
    def address(self, value: str | None) -> None:
        self._behind = value

    @property
    def local(self) -> tuple[str, int | None] | None:
        """Our end's address and port; on a unix socket its path and None."""
        return self._connection.local

    @property
    def peer_uid(self) -> int | None:
        """The client's user id as the kernel vouches for it; None unless on a unix socket."""
        return self._connection.peer_uid

    @property
    def gone(self) -> asyncio.Future[None]:
        """Done once the client closed or half-closed the connection. Await it through `asyncio.shield`."""
        if self._gone is None:
            self._gone = self._connection.loop.create_future()
            if self.is_gone:
                self._gone.set_result(None)
        return self._gone

    def vouch(self) -> None:
        """The client showed a valid key: its connection does not count against its address."""
        if self._connection.group is not None:
            self._connection.registry.vouch(self._connection)

    def reserve(self, count: int) -> None:
        """Count bytes that were added to the body here against what all bodies may have, until this is over.

        Raises BufferFull.
        """
        self._connection.registry.budget.take(count)
        self._reserved += count

    async def read_body(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes. Asks the client to go on when it sent Expect: 100-continue.

        Raises BodyTooLarge, BodyTooSlow, BufferFull (all before or while reading) and ClientGone.
        """
        length = self.head.content_length
        if (length is not None and length > limit) or self.received > limit:
            raise BodyTooLarge(f"the request body is larger than {limit} bytes")
        budget = self._connection.registry.budget
        budget.check(self.received if length is None else length)
        budget.take(self.received)
        self._reserved += self.received
        if not self.body_complete:
            self._whole_limit = limit
            while not self.body_complete:
                await self._wait_for_body()
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered = 0
        self._delivered = True
        self._connection.resume_body()  # else a client that leaves now would not be noticed
        return body

    # --- ASGI

    async def receive(self) -> dict[str, Any]:
        """The ASGI receive channel: pieces of the body with back-pressure, then `http.disconnect`."""
        if self._delivered:
            while not (self.answered or self.is_gone):
                await self._sleep()
            return {"type": "http.disconnect"}
        while not self._chunks and not self.body_complete:
            if self.is_gone:
                return {"type": "http.disconnect"}
            await self._wait_for_body()
        body = b"".join(self._chunks)
        self._chunks.clear()
        self.buffered = 0
        self._delivered = self.body_complete
        self._connection.resume_body()  # also at the end: else a client that leaves would not be noticed
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    async def send(self, message: dict[str, Any]) -> None:
        """The ASGI send channel. Raises ClientGone once the connection is lost; half-closed ones still work."""
        if message["type"] == "http.response.body":
            more: bool = message.get("more_body", False)
            flows = self.push(message.get("body", b""), more=more)
            if not more:
                self.answered = True  # before any wait: nobody may end it a second time
            if not flows:
                await self.drained()
            if not more:
                self._connection.answer_done(self)
                self._wake()
            return
        if message["type"] != "http.response.start":
            raise RuntimeError(f"this server does not know the ASGI message {message['type']!r}")
        self.start(message["status"], message.get("headers", ()))

    # --- the same without a coroutine, for relays

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Fix status and headers; they leave with the first piece."""
        if self._status:
            raise RuntimeError("the answer was already started")
        self._status = status
        self._headers = headers

    def push(self, body: bytes, *, more: bool = True) -> bool:
        """Write a piece of the answer now; False when the client reads too slowly: await `drained` then.

        Raises ClientGone once the connection is lost.
        """
        connection = self._connection
        if self.answered:
            raise RuntimeError("the answer is already complete")
        if connection.request is not self:
            raise ClientGone("the client closed the connection before the answer was complete")
        if self.started:
            self._write_piece(body, more)
        else:
            self._write_first(body, more)
        return not connection.write_paused

    async def drained(self) -> None:
        """Wait until the client has taken enough of what was written."""
        if self._connection.write_paused:
            await self._connection.drained()

    def _write_first(self, body: bytes, more: bool) -> None:
        """Status, headers and the first piece of the body in one write."""
        status = self._status
        if not status:
            raise RuntimeError("http.response.body was sent before http.response.start")
        connection, head = self._connection, self.head
        block, length, close = header_block(self._headers)
        without_body = status in (204, 304)
        self._body_allowed = not without_body and head.method != "HEAD"
        if length is None and not more and not without_body:
            length = len(body)
        framing = b"\r\n"
        if length is not None:
            if status != 204:
                framing = b"content-length: %d\r\n\r\n" % length
            self._left = length
        elif not without_body and head.http_version == "1.1":
            self._chunked = self._body_allowed
            framing = b"transfer-encoding: chunked\r\n\r\n"
        elif not without_body:
            close = True
        if close or not connection.keeps_alive(self):
            connection.close_after = True
            framing = b"connection: close\r\n" + framing
        elif head.http_version == "1.0":
            framing = b"connection: keep-alive\r\n" + framing
        self.started = True
        lines = status_line(status) + connection.registry.date_line + self.extra_headers + block + framing
        if not self._body_allowed:
            connection.write(lines)
            return
        self._count(len(body), more)
        if self._chunked:
            connection.write(lines + self._chunk(body, more))
        elif len(body) <= _JOIN_BYTES:
            connection.write(lines + body)
        else:
            connection.write(lines)
            connection.write(body)

    def _write_piece(self, body: bytes, more: bool) -> None:
        if not self._body_allowed:
            return
        self._count(len(body), more)
        if self._chunked:
            body = self._chunk(body, more)
        if body:
            self._connection.write(body)

    def _chunk(self, body: bytes, more: bool) -> bytes:
        if more:
            return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"

    def _count(self, size: int, more: bool) -> None:
        """Keep a declared Content-Length honest: a wrong one would desynchronise the connection."""
        if self._left < 0:
            return
        self._left -= size
        if self._left < 0 or (self._left and not more):
            self._left = 0
            raise RuntimeError("the body sent does not match the declared Content-Length")

    # --- fed by the connection

    def feed(self, data: bytes) -> None:
        """A piece of the body arrived."""
        self.received += len(data)
        self.buffered += len(data)
        self._chunks.append(data)
        if self._whole_limit < 0:
            if self._waiter is not None:
                self._wake()
            elif self.buffered > READ_AHEAD_BYTES:
                self._connection.pause_body()
            return
        if self.received > self._whole_limit:
            self.fail_body(BodyTooLarge(f"the request body is larger than {self._whole_limit} bytes"))
            return
        try:
            self._connection.registry.budget.take(len(data))
        except BufferFull as full:
            self.fail_body(full)
            return
        self._reserved += len(data)

    def end_body(self) -> None:
        """The last byte of the body arrived."""
        self.body_complete = True
        self._wake()

    def fail_body(self, failure: Exception) -> None:
        """The body will not be complete; whoever reads it gets `failure`."""
        if self._failure is None and not self.body_complete:
            self._failure = failure
            self._connection.pause_body()
        self._wake()

    def lose(self) -> None:
        """The client closed or half-closed the connection."""
        if self.is_gone:
            return
        self.is_gone = True
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self.on_gone is not None:
            self.on_gone()
        self._wake()

    def check_rate(self, now: float) -> None:
        """Fail a body that trickles; called by the sweep."""
        if self._waiter is None or self.body_complete:
            return
        waited = self._waited_s + now - self._wait_started
        limits = self._connection.registry.limits
        if waited > limits.body_grace_s and self.received < limits.body_bytes_per_s * waited:
            self.fail_body(
                BodyTooSlow(f"the request body arrived slower than {limits.body_bytes_per_s} bytes a second")
            )

    def release(self) -> None:
        """The handler has returned: give the budget back and drop what was not read."""
        if self._reserved:
            self._connection.registry.budget.give(self._reserved)
            self._reserved = 0
        self._chunks.clear()

    async def _wait_for_body(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.is_gone:
            raise ClientGone("the client closed the connection before the body was complete")
        self._connection.ask_for_body(self)
        await self._sleep()
        if self._failure is not None:
            raise self._failure

    async def _sleep(self) -> None:
        loop = self._connection.loop
        waiter = self._waiter = loop.create_future()
        self._wait_started = loop.time()
        try:
            await waiter
        finally:
            self._waiter = None
            self._waited_s += loop.time() - self._wait_started

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
