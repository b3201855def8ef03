"""One connection to an engine: writes a request, parses the answer, and says how it ended.

Read by `upstream.py` only. The parser's body callback is the `append` of a list: whatever arrived between two
turns of the loop is one block for the reader, without a call into Python per chunk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, cast

import httptools

from llamaman.core.engine_client import EngineUnreachable

ErrorKind = Literal["connect", "reset", "truncated", "silent", "protocol"]

HEAD_BYTES = 64 * 1024
HEAD_LINES = 100
INTERIM_ANSWERS = 3
UNREAD_BYTES = 1 << 20  # pause reading above, resume below half


class UpstreamError(EngineUnreachable):
    """A request to an engine failed.

    kind: connect (no connection), reset (broken off before or while answering), truncated (ended in the
    middle of an answer), silent (no byte within the allowed time), protocol (not HTTP, or beyond a bound).
    sent: request bytes were written. received: any byte of an answer was seen.
    """

    def __init__(self, kind: ErrorKind, detail: str, *, sent: bool = False, received: bool = False) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: ErrorKind = kind
        self.detail = detail
        self.sent = sent or received
        self.received = received


class _Refused(Exception):
    """Raised inside parser callbacks; its text says which bound was exceeded."""


class Exchange:
    """One request on a connection: the answer as far as it has arrived."""

    __slots__ = (
        "_connection",
        "_waiter",
        "chunks",
        "complete",
        "failure",
        "headers",
        "status",
        "unread",
    )

    def __init__(self, connection: UpstreamConnection, chunks: list[bytes]) -> None:
        self._connection = connection
        self._waiter: asyncio.Future[None] | None = None
        self.chunks = chunks
        self.unread = 0
        self.status = 0  # 0 until the final head has arrived
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.failure: UpstreamError | None = None

    async def wait(self) -> None:
        """Until something changed."""
        waiter = self._waiter = self._connection.loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Something changed."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self) -> bytes:
        """All unread body bytes."""
        chunks = self.chunks
        block = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.unread = 0
        self._connection.resume()
        return block


class UpstreamConnection(asyncio.Protocol):
    """A connection with at most one exchange in progress."""

    __slots__ = (
        "_broken",
        "_chunks",
        "_closed",
        "_drained",
        "_exchange",
        "_head_bytes",
        "_head_only",
        "_headers",
        "_heard",
        "_interim",
        "_keep_alive",
        "_lines",
        "_on_lost",
        "_overhead",
        "_parser",
        "_paused",
        "_received",
        "_silence_s",
        "_timer",
        "_timer_at",
        "_transport",
        "_until_eof",
        "idle_since",
        "loop",
        "on_body",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[UpstreamConnection], None]
    ) -> None:
        self.loop = loop
        self.idle_since = 0.0
        self._on_lost = on_lost
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until connection_made
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._overhead = 0  # bytes since the last piece of body: head, chunk lines, trailers
        self._lines = 0
        self._head_only = False
        self._interim = 0
        self._keep_alive = False
        self._until_eof = False
        self._received = False
        self._broken = False
        self._closed = False
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._silence_s = 0.0
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # --- used by upstream.py

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: the answer is complete and left nothing behind."""
        exchange = self._exchange
        if self._closed or self._broken or self._paused or not self._keep_alive:
            return False
        return exchange is not None and exchange.complete and not self._transport.is_closing()

    def send(self, wire: bytes, *, head_only: bool, silence_s: float) -> Exchange:
        """Write one request; `head_only` for HEAD, whose answer announces a body that never comes."""
        self._chunks.clear()
        exchange = self._exchange = Exchange(self, self._chunks)
        self._headers = exchange.headers
        self._head_bytes = self._overhead = self._interim = self._lines = 0
        self._head_only = head_only
        self._keep_alive = self._until_eof = self._received = False
        self._silence_s = silence_s
        if self._closed or self._transport.is_closing():
            exchange.failure = UpstreamError("reset", "the engine had closed the idle connection")
            return exchange
        self._transport.write(wire)
        self._heard = self.loop.time()
        self._arm()
        return exchange

    def resume(self) -> None:
        """The reader took what was unread."""
        if self._paused:
            self._paused = False
            self._heard = self.loop.time()
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once."""
        self._closed = True
        self._transport.abort()

    def fail(self, kind: ErrorKind, detail: str) -> None:
        """End the exchange in progress with an error, and the connection with it."""
        exchange = self._exchange
        if exchange is not None and not exchange.complete and exchange.failure is None:
            exchange.failure = UpstreamError(kind, detail, sent=True, received=self._received)
            exchange.wake()
        self.abort()

    async def half_close_and_drain(self, drain_s: float) -> bool:
        """Send our end of file and drop everything until the engine's; False when that exceeds `drain_s`."""
        exchange = self._exchange
        if self._closed or self._transport.is_closing():
            return True
        if exchange is None or exchange.complete:
            self.abort()
            return True
        self._exchange = None
        self._chunks.clear()
        drained = self._drained = self.loop.create_future()
        try:
            self._transport.write_eof()
            self.resume()
            async with asyncio.timeout(drain_s):
                await drained
        except TimeoutError:
            return False
        finally:
            self.abort()
        return True

    # --- transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.complete:
            if self._drained is None:  # nobody asked for this
                self.abort()
            return
        self._heard = self.loop.time()
        self._received = True
        chunks = self._chunks
        before = len(chunks)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broken = True
            if not exchange.complete:
                cause = error.__context__
                self.fail("protocol", str(cause) if isinstance(cause, _Refused) else f"bad answer: {error}")
                return
        if not exchange.complete:
            if not exchange.status or len(chunks) == before:
                self._overhead += len(data)
                if self._overhead > HEAD_BYTES:
                    self.fail("protocol", f"more than {HEAD_BYTES} bytes of head or chunk framing")
                    return
                if not exchange.status:
                    return
            else:
                self._overhead = 0
            exchange.unread += len(data)
            if exchange.unread > UNREAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        exchange.wake()

    def eof_received(self) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.complete and exchange.failure is None:
            if self._until_eof:
                exchange.complete = True
                exchange.wake()
            elif self._received:
                self.fail("truncated", "the engine closed the connection in the middle of its answer")
            else:
                self.fail("reset", "the engine closed the connection without an answer")
        self._broken = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self.fail("reset", f"the connection to the engine broke: {exc or 'closed'}")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._on_lost(self)

    # --- parser callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._lines > HEAD_LINES or self._head_bytes > HEAD_BYTES:
            raise _Refused(f"an answer's head of more than {HEAD_LINES} lines or {HEAD_BYTES} bytes")
        exchange = self._exchange
        if exchange is None or exchange.complete:
            raise _Refused("bytes after a complete answer")
        if not exchange.status:  # what follows the body are trailers, and dropped
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or exchange.complete:
            raise _Refused("bytes after a complete answer")
        status = self._parser.get_status_code()
        headers = self._headers
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > INTERIM_ANSWERS:
                raise _Refused("an upgrade or too many interim answers")
            headers.clear()
            return
        framed = status in (204, 304)
        for name, value in headers:
            if name == b"content-length":
                framed = True
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise _Refused(f"a transfer encoding of {value[:40]!r}")
                framed = True
        self._keep_alive = self._parser.should_keep_alive()
        self._until_eof = not framed
        exchange.status = status
        if self._head_only:
            self._broken = True  # the parser waits for the announced body
            exchange.complete = True

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.status:
            exchange.complete = True

    # --- silence

    def _arm(self) -> None:
        """One timer per period of silence, not per read: it is moved on only when it fires."""
        due = self._heard + self._silence_s
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_at(due, self._check_silence)

    def _check_silence(self) -> None:
        self._timer = None
        exchange = self._exchange
        if exchange is None or exchange.complete or self._closed:
            return
        now = self.loop.time()
        if self._paused:  # the silence is ours
            self._heard = now
        if now < self._heard + self._silence_s:
            self._arm()
        else:
            self.fail("silent", f"the engine sent nothing for {self._silence_s:g} seconds")
