"""One connection to an engine: writes a request, parses the answer, and says how it ended.

Read by `upstream.py` only. The parser's body callback is the `append` of a list: whatever arrived between two
turns of the loop is one block for the reader, without a call into Python per chunk.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from llamaman.gateway.upstream_response import ErrorKind, Response, UpstreamError

HEAD_BYTES = 64 * 1024  # also what may pass as chunk framing and trailers between two pieces of body
HEAD_LINES = 100
INTERIM_ANSWERS = 3
UNREAD_BYTES = 1 << 20  # pause reading above it
_JOIN_BYTES = 64 * 1024  # up to here one copied write beats two


class _Refused(Exception):
    """Raised inside parser callbacks; its text says which bound was exceeded."""


class Owner(Protocol):
    """The pool as its connections see it."""

    def connection_idle(self, connection: UpstreamConnection) -> None:
        """The connection can carry another request."""

    def connection_gone(self, connection: UpstreamConnection) -> None:
        """The connection is closed."""


class UpstreamConnection(asyncio.Protocol):
    """A connection with at most one answer in progress."""

    __slots__ = (
        "_broken",
        "_chunks",
        "_closed",
        "_drained",
        "_head_only",
        "_interim",
        "_keep_alive",
        "_overhead",
        "_owner",
        "_parser",
        "_paused",
        "_received",
        "_response",
        "_silence_s",
        "_timer",
        "_timer_at",
        "_transport",
        "_until_eof",
        "heard",
        "loop",
        "on_body",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self.loop = loop
        self.heard = 0.0  # when the last byte came, in loop time
        self._owner = owner
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until connection_made
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._overhead = 0  # bytes since the last piece of body: head, chunk lines, trailers
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
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    # --- used by the pool and the answer

    @property
    def is_open(self) -> bool:
        """Whether a request can be written."""
        return not (self._closed or self._broken or self._transport.is_closing())

    def send(self, head: bytes, body: bytes, *, head_only: bool, silence_s: float) -> Response:
        """Write one request; `head_only` for HEAD, whose answer announces a body that never comes."""
        self._chunks.clear()
        response = self._response = Response(self, self._chunks)
        self._overhead = self._interim = 0
        self._head_only = head_only
        self._keep_alive = self._until_eof = self._received = False
        self._silence_s = silence_s
        if not self.is_open:
            response.failure = UpstreamError("reset", "the engine had closed the idle connection")
            return response
        if len(body) <= _JOIN_BYTES:
            self._transport.write(head + body if body else head)
        else:
            self._transport.write(head)
            self._transport.write(body)
        self.heard = self.loop.time()
        self._arm()
        return response

    def pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.heard = self.loop.time()
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def done(self) -> None:
        response = self._response
        if self._keep_alive and response is not None and response.complete and self.is_open:
            self._owner.connection_idle(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._closed = True
        self._transport.abort()

    def fail(self, kind: ErrorKind, detail: str) -> None:
        """End the answer in progress with an error, and the connection with it."""
        response = self._response
        if response is not None and not response.complete and response.failure is None:
            response.failure = UpstreamError(kind, detail, sent=True, received=self._received)
            response.wake()
        self.abort()

    async def half_close_and_drain(self, drain_s: float) -> bool:
        response = self._response
        if self._closed or self._transport.is_closing():
            return True
        if response is None or response.complete:
            self.abort()
            return True
        self._response = None
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
        response = self._response
        if response is None or response.complete:
            if self._drained is None:  # nobody asked for this
                self.abort()
            return
        self.heard = self.loop.time()
        self._received = True
        chunks = self._chunks
        before = len(chunks)
        if not response.status and len(data) > HEAD_BYTES and data.find(b"\r\n\r\n", 0, HEAD_BYTES) < 0:
            self.fail("protocol", f"an answer's head of more than {HEAD_BYTES} bytes")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._broken = True
            if not response.complete:
                cause = error.__context__
                self.fail("protocol", str(cause) if isinstance(cause, _Refused) else f"bad answer: {error}")
                return
        if response.sink is not None and len(chunks) > before:
            self._overhead = 0
            response.flow()
            if not response.complete:
                return
        elif not response.complete:
            if len(chunks) == before:
                self._overhead += len(data)
                if self._overhead > HEAD_BYTES:
                    self.fail("protocol", f"more than {HEAD_BYTES} bytes of head or chunk framing")
                    return
                if not response.status:
                    return
            else:
                self._overhead = 0
            response.unread += len(data)
            if response.unread > UNREAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        waiter = response.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def eof_received(self) -> None:
        response = self._response
        if response is not None and not response.complete and response.failure is None:
            if self._until_eof:
                response.complete = True
                response.wake()
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
        self._owner.connection_gone(self)

    # --- parser callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is None or response.complete:
            raise _Refused("bytes after a complete answer")
        if response.status:
            return  # a trailer
        if len(response.headers) >= HEAD_LINES:
            raise _Refused(f"an answer's head of more than {HEAD_LINES} lines")
        response.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None or response.complete:
            raise _Refused("bytes after a complete answer")
        status = self._parser.get_status_code()
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > INTERIM_ANSWERS:
                raise _Refused("an upgrade or too many interim answers")
            response.headers.clear()
            return
        framed = status in (204, 304)
        for name, value in response.headers:
            if name == b"content-length":
                framed = True
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise _Refused(f"a transfer encoding of {value[:40]!r}")
                framed = True
        self._keep_alive = self._parser.should_keep_alive()
        self._until_eof = not framed
        response.status = status
        if self._head_only:
            self._broken = True  # the parser waits for the announced body
            response.complete = True

    def on_message_complete(self) -> None:
        response = self._response
        if response is not None and response.status:  # not an interim answer
            response.complete = True

    # --- silence

    def _arm(self) -> None:
        """One timer per period of silence, not per read: it is moved on only when it fires."""
        due = self.heard + self._silence_s
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_at(due, self._check_silence)

    def _check_silence(self) -> None:
        self._timer = None
        response = self._response
        if response is None or response.complete or self._closed:
            return
        now = self.loop.time()
        if self._paused:  # the silence is ours
            self.heard = now
        if now < self.heard + self._silence_s:
            self._arm()
        else:
            self.fail("silent", f"the engine sent nothing for {self._silence_s:g} seconds")
