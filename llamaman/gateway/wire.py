"""One client connection below its requests: whose it is, how bytes leave, and how it ends.

Read by: `protocol.py`, which makes requests of the bytes that arrive. Guarantees: whoever writes is slowed down by
a slow reader and never kept for ever, a refusal that was sent arrives although the client is still sending, and
nothing here takes longer than the limits say (the sweep of `connections.py` calls :meth:`Wire.check`).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from llamaman.gateway.answers import STANDING, refusal
from llamaman.gateway.connections import Connections, address_group
from llamaman.gateway.limits import ClientGone, Surface

if TYPE_CHECKING:
    from llamaman.gateway.request import Request

NEVER: Final = float("inf")
_WRITE_HIGH_BYTES = 1 << 20  # a slow reader must not hold a slot of an engine that is done
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Wire(asyncio.Protocol):
    """See the module's docstring. `deadline` is when the sweep ends the phase that the connection is in."""

    __slots__ = (
        "_accepted",
        "_closing",
        "_continued",
        "_discarded",
        "_drain",
        "_eof",
        "_extra",
        "_lingering",
        "_opened",
        "_part",
        "_served",
        "_stall_deadline",
        "_transport",
        "_written",
        "body_paused",
        "close_after",
        "deadline",
        "group",
        "is_lost",
        "local",
        "loop",
        "peer",
        "peer_uid",
        "registry",
        "request",
        "standing",
        "surface",
        "write_paused",
    )

    def __init__(self, registry: Connections, surface: Surface, loop: asyncio.AbstractEventLoop) -> None:
        self.registry = registry
        self.surface = surface
        self.standing = STANDING.get(surface.name, b"")
        self.loop = loop
        self.request: Request | None = None
        self.peer: tuple[str, int] | None = None
        self.peer_uid: int | None = None
        self.group: str | None = None
        self._opened = loop.time()
        self._served = False  # an answer went out
        self.deadline = self._opened + registry.limits.keepalive_s
        self.close_after = False  # the answer in progress is the last one
        self.is_lost = False
        self.write_paused = False
        self.body_paused = False
        self._transport: asyncio.Transport = cast(
            asyncio.Transport, None
        )  # set before anything else is called
        self.local: tuple[str, int | None] | None = None
        self._part = bytearray()  # a head that has not arrived completely
        self._extra = False  # bytes of this connection were dropped: it cannot carry another request
        self._continued = False
        self._discarded = 0
        self._eof = False
        self._closing = False
        self._lingering = False
        self._drain: asyncio.Future[None] | None = None
        self._written = 0
        self._accepted = 0
        self._stall_deadline = NEVER

    # --- transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        sock: socket.socket = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.peer_uid = struct.unpack("3i", packed)[1]
            self.local = (str(transport.get_extra_info("sockname")), None)
        else:
            peername = transport.get_extra_info("peername")
            sockname = transport.get_extra_info("sockname")
            if peername is None or sockname is None:  # reset before it was accepted
                self._transport.abort()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.peer = (peername[0].removeprefix("::ffff:"), peername[1])
            self.local = (sockname[0], sockname[1])
            self.group = address_group(self.peer[0])
        reason = self.registry.admit(self)
        if reason is not None:
            if self.registry.admit_refused(self):
                self._refuse(503, reason, b"retry-after: 1\r\n")
            else:
                self._transport.abort()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        self._release_drain()

    # --- writing

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport. Raises ClientGone when it broke and has not told us yet."""
        self._written += len(data)
        try:
            self._transport.write(data)
        except RuntimeError as closed:  # uvloop's way to say that the handle is closed
            raise ClientGone("the connection broke while the answer was written") from closed

    async def drained(self) -> None:
        """Wait until the client has taken enough. Raises ClientGone when it never will."""
        while self.write_paused and not self.is_lost:
            self._drain = self.loop.create_future()
            await self._drain
        if self.is_lost:
            raise ClientGone("the client closed the connection before the answer was complete")

    def _release_drain(self) -> None:
        if self._drain is not None:
            if not self._drain.done():
                self._drain.set_result(None)
            self._drain = None

    # --- the body's flow

    def ask_for_body(self, request: Request) -> None:
        """A handler waits for the body: tell a client that asked first, and read on."""
        if request.head.expect_continue and not (request.received or request.started or self._continued):
            self._continued = True
            self.write(_CONTINUE)
        self.resume_body()

    def pause_body(self) -> None:
        """Stop reading: nobody takes the body at the moment."""
        if not self.body_paused and not self._transport.is_closing():
            self.body_paused = True
            self._transport.pause_reading()

    def resume_body(self) -> None:
        """Read on."""
        if self.body_paused and not self._transport.is_closing():
            self.body_paused = False
            self._transport.resume_reading()

    # --- the end of a connection

    @property
    def is_idle(self) -> bool:
        """Between two requests, with nothing of the next one here."""
        return self.request is None and not (self._part or self._lingering or self._closing)

    def is_fresh(self, now: float) -> bool:
        """Whether its first request may still be on the way, so that nobody else may have its place yet."""
        return not self._served and now - self._opened < self.registry.limits.fresh_s

    def finish(self) -> None:
        """Close now if nothing is in progress, else after the answer."""
        if self.request is not None:
            self.close_after = True
        elif not self._lingering:
            self._close()

    def abort(self) -> None:
        """Drop the connection with everything unsent."""
        self._transport.abort()

    def _refuse(
        self,
        status: int,
        sentence: str,
        extra: bytes = b"",
        *,
        headers: bytes | None = None,
        unread: bool = True,
    ) -> None:
        """Answer without an application and end the connection."""
        self._part.clear()
        self.request = None
        if self._transport.is_closing():
            return
        extra += self.standing if headers is None else headers
        self.write(refusal(status, sentence, self.registry.date_line, extra))
        if unread:
            self._linger()
        else:
            self._close()

    def _drop(self, count: int) -> None:
        """Count bytes that belong to no request; a client that sends too many is cut off."""
        self._extra = True
        self._discarded += count
        if self._discarded > self.registry.limits.discard_bytes:
            self._transport.abort()

    def _linger(self) -> None:
        """End our side and read on for a moment: closing over unread bytes would destroy the sent answer."""
        if self._eof:
            self._close()
            return
        self._lingering = True
        self.deadline = self.loop.time() + self.registry.limits.discard_s
        self.resume_body()
        if not self._transport.is_closing():
            self._transport.write_eof()

    def _close(self) -> None:
        self._closing = True
        self.deadline = NEVER
        self._transport.close()

    def check(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent:
            self._stall_deadline = NEVER
        else:
            accepted = self._written - unsent
            if accepted != self._accepted or self._stall_deadline == NEVER:
                self._accepted = accepted
                self._stall_deadline = now + self.registry.limits.write_stall_s
            elif now >= self._stall_deadline:
                self._transport.abort()
                return
        if self.request is not None:
            self.request.check_rate(now)
        elif now >= self.deadline:
            if self._part:
                self._refuse(
                    408, f"the request head did not arrive within {self.registry.limits.head_s:g} seconds"
                )
            elif self._lingering:
                self._transport.abort()
            else:
                self._close()
