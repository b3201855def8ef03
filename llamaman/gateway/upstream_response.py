"""An engine's answer as its reader sees it, and the one error in which a broken one ends.

Read by: the pipeline, through `upstream.py`. Filled by `upstream_connection.py`; nothing here touches a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from llamaman.core.engine_client import EngineUnreachable

#: Takes a block of body at once; False when it wants no more for now. What it raises ends the answer.
Sink = Callable[[bytes], bool]
ErrorKind = Literal["connect", "reset", "truncated", "silent", "protocol"]


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


class Line(Protocol):
    """What an answer needs of the connection it arrives on."""

    loop: asyncio.AbstractEventLoop

    def pause(self) -> None:
        """The reader wants no more for now."""

    def resume(self) -> None:
        """The reader took what was unread."""

    def done(self) -> None:
        """The reader is done: reuse the connection if the answer was complete, else drop it."""

    def abort(self) -> None:
        """Drop the connection now."""

    async def half_close_and_drain(self, drain_s: float) -> bool:
        """Send our end of file and drop everything until the engine's; False when that took too long."""


class Response:
    """An answer in progress. Read it to the end, or `release`, `close` or `cancel` it."""

    __slots__ = (
        "_line",
        "_refusal",
        "_stalled",
        "chunks",
        "complete",
        "failure",
        "headers",
        "sink",
        "status",
        "unread",
        "waiter",
    )

    def __init__(self, line: Line, chunks: list[bytes]) -> None:
        self._line: Line | None = line
        self.status = 0  # 0 until the final head has arrived
        self.headers: list[tuple[bytes, bytes]] = []  # lower-case names
        self.complete = False  # the whole answer has arrived, though parts of it may be unread
        self.failure: UpstreamError | None = None
        self.chunks = chunks  # received and unread
        self.unread = 0  # bytes on the wire since the last read
        self.waiter: asyncio.Future[None] | None = None
        self.sink: Sink | None = None
        self._refusal: BaseException | None = None
        self._stalled = False

    async def read_block(self) -> bytes:
        """Everything received since the last call; b"" at the complete end. Else raises UpstreamError."""
        while not self.chunks:
            if self.complete:
                self.release()
                return b""
            if self.failure is not None:
                self._line = None
                raise self.failure
            await self.changed()
        return self._take()

    async def pipe(self, sink: Sink, drained: Callable[[], Awaitable[None]]) -> None:
        """Hand every block to `sink` the moment it arrives, until the complete end.

        No task wakes up per block, which is what a paced stream costs most. When `sink` returns False nothing
        is read from the engine until `drained` returns. Raises UpstreamError, or whatever `sink` raised.
        """
        self.sink = sink
        if self.chunks:
            self.flow()
        while True:
            if self._refusal is not None:
                raise self._refusal
            if self._stalled:
                await drained()
                self._stalled = False
                if self._line is not None:
                    self._line.resume()
                continue
            if self.complete:
                self.release()
                return
            if self.failure is not None:
                self._line = None
                raise self.failure
            await self.changed()

    def flow(self) -> None:
        """Something arrived for the sink; called by the connection."""
        assert self.sink is not None
        chunks = self.chunks
        block = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.unread = 0
        try:
            if not self.sink(block) and not self.complete and self._line is not None:
                self._stalled = True
                self._line.pause()
                self.wake()
        except Exception as error:  # noqa: BLE001 - raised again in `pipe`, where its reader is
            self._refusal = error
            self.sink = None
            self.wake()

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body. Raises UpstreamError("protocol") and closes beyond `limit` bytes."""
        if self.complete and self.chunks:
            block = self._take()
            if len(block) <= limit:
                return block
            raise UpstreamError("protocol", f"the answer is larger than {limit} bytes", received=True)
        blocks: list[bytes] = []
        size = 0
        while block := await self.read_block():
            size += len(block)
            if size > limit:
                self.close()
                raise UpstreamError("protocol", f"the answer is larger than {limit} bytes", received=True)
            blocks.append(block)
        return b"".join(blocks)

    async def cancel(self, drain_s: float = 30.0) -> bool:
        """Tell the engine that nobody listens, and wait until it has stopped.

        Half-closes, drops what still comes, and closes at the engine's end of file. False when that took
        longer than `drain_s` seconds and the connection was aborted: the engine may still be computing.
        """
        line = self._line
        if line is None:
            return True
        self._forget()
        return await line.half_close_and_drain(drain_s)

    def release(self) -> None:
        """Done with this answer: reuse the connection when the answer is complete, else close it."""
        line = self._line
        if line is not None:
            self._forget()
            line.done()

    def close(self) -> None:
        """Drop the answer and its connection now."""
        line = self._line
        if line is not None:
            self._forget()
            line.abort()

    async def changed(self) -> None:
        """Wait until something arrived or ended. One waiter at a time."""
        line = self._line
        if line is None:
            raise UpstreamError("reset", "this answer was released before its end", received=True)
        self.waiter = line.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def wake(self) -> None:
        """Something arrived or ended."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take(self) -> bytes:
        chunks = self.chunks
        block = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.unread = 0
        line = self._line
        if line is not None:
            line.resume()
            if self.complete:
                self._forget()
                line.done()
        return block

    def _forget(self) -> None:
        self._line = None
        self.chunks = []  # the old list belongs to the connection, and so to its next answer
