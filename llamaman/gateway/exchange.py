"""One client exchange: what has been sent, who sent it, and how it is ended from outside."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Literal

from llamaman.core.instance import Instance
from llamaman.errors import LlamaManError, Unauthorized
from llamaman.gateway.dialect import SSE_HEADERS, Dialect, Headers, Intent, Phase, Reply
from llamaman.gateway.meter import Meter
from llamaman.gateway.request import Request
from llamaman.gateway.sse import frame
from llamaman.records import Identity, ModelView

Send = Callable[[dict[str, Any]], Awaitable[None]]

HEARTBEAT_S = 15.0
#: Bytes that are collected at most before they are sent.
HELD_BYTES = 64 << 10
_BOOT = secrets.token_hex(4)
_numbers = itertools.count(1)


class Exchange:
    """The answer side of one inference request. Status and headers go out with the first real bytes."""

    __slots__ = (
        "_heartbeat",
        "_held",
        "_held_bytes",
        "_send",
        "began",
        "dialect",
        "ended_by",
        "id",
        "identity",
        "instance_id",
        "intent",
        "meter",
        "model",
        "on_blame",
        "path",
        "phase",
        "queued_s",
        "request",
        "started",
        "status",
        "stream",
        "surface",
        "task",
        "wrote_content",
    )

    def __init__(self, request: Request, send: Send, dialect: Dialect, identity: Identity, path: str) -> None:
        self.id = f"{_BOOT}-{next(_numbers):x}"
        self.request = request
        self.dialect = dialect
        self.identity = identity
        self.path = path
        self.surface = request.surface
        self.meter = Meter()
        self.began = time.time()
        self.model: ModelView | None = None
        self.intent: Intent | None = None
        self.instance_id: str | None = None
        self.phase: Phase = "queue"
        self.queued_s = 0.0
        self.started = False
        self.wrote_content = False
        self.status = 0
        self.stream = False
        self.ended_by: LlamaManError | None = None
        #: Asked when an engine crashed that worked on nothing else; says whether somebody answers for it.
        self.on_blame: Callable[[Exchange, Instance], bool] | None = None
        self.task = request.task
        self._send = send
        self._heartbeat: asyncio.TimerHandle | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0

    # --- sending -------------------------------------------------------------------------------------

    async def start(self, status: int, headers: Headers) -> None:
        """Begin the answer; it leaves with the first bytes."""
        if not self.started:
            self.started = True
            self.status = status
            await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send bytes of a started answer."""
        if self._heartbeat:
            self._heartbeat.cancel()
            self._heartbeat = None
        self.wrote_content = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def hold(self, data: bytes) -> None:
        """Send bytes of a started answer at the next :meth:`flush`: a send costs more than a token's translation.

        Who holds flushes before anything is waited for; the ends of an answer do so by themselves.
        """
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= HELD_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Send what is held."""
        if self._held:
            data = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            self._held.clear()
            self._held_bytes = 0
            await self.write(data)

    def push(self, data: bytes) -> bool:
        """Send a piece of a relayed stream at once; False when the client reads too slowly.

        :raises ClientGone: nobody is there any more.
        """
        if not self.started:
            self.started = True
            self.status = 200
            self.request.start(200, SSE_HEADERS)
        if self._heartbeat:
            self._heartbeat.cancel()
            self._heartbeat = None
        self.wrote_content = True
        return self.request.push(data)

    async def finish(self) -> None:
        """End a started answer."""
        await self.flush()
        self.quiet()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply(self, reply: Reply) -> None:
        """Send a whole answer; as the last event of the stream when a heartbeat has begun one."""
        await self.flush()
        self.quiet()
        if self.started:
            self.status = reply.status
            last = frame(reply.body) if reply.late is None else reply.late
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
            return
        self.started = True
        self.wrote_content = True
        self.status = reply.status
        await self._send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await self._send({"type": "http.response.body", "body": reply.body, "more_body": False})

    async def fail(self, error: LlamaManError) -> None:
        """Tell the client about an error in its own dialect, in the stream if that has begun."""
        await self.flush()
        self.quiet()
        error.request_id = self.id
        answer = self.dialect.error(error, started=self.started)
        if isinstance(answer, bytes):
            if not self.started:
                await self.start(error.status, SSE_HEADERS)
            await self._send({"type": "http.response.body", "body": answer, "more_body": False})
        else:
            if error.inputs:
                answer = replace(answer, headers=[*answer.headers, (b"x-llamaman-reason", _figures(error))])
            await self.reply(answer)

    # --- keeping a waiting stream alive --------------------------------------------------------------

    def keep_alive(self) -> None:
        """From now on send what the dialect allows while nothing else is sent, every 15 s."""
        self._heartbeat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

    def quiet(self) -> None:
        """No more heartbeats."""
        if self._heartbeat:
            self._heartbeat.cancel()
            self._heartbeat = None

    def _beat(self) -> None:
        data = self.dialect.waiting(self.phase, time.monotonic() - self.meter.started)
        if data is None:
            return
        task = asyncio.get_running_loop().create_task(self._send_beat(data))
        task.add_done_callback(_forget)
        self._heartbeat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

    async def _send_beat(self, data: bytes) -> None:
        if not self.wrote_content:
            await self.start(200, SSE_HEADERS)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    # --- being ended ---------------------------------------------------------------------------------

    @property
    def has_told(self) -> bool:
        """Whether the client has, or will have, some of the answer."""
        return self.wrote_content or bool(self._held)

    @property
    def progress(self) -> int:
        """What the engine has said of it so far, in events; without its pings and its steps through the prompt."""
        return self.meter.events

    @property
    def outcome(self) -> Literal["complete", "cancelled", "error"]:
        """How it ended, once it has: ``cancelled`` when its client left before the whole answer was sent."""
        if self.request.is_gone and not self.request.answered:
            return "cancelled"
        return "error" if self.ended_by or self.status >= 400 else "complete"

    def end(self, reason: LlamaManError | None = None) -> None:
        """End it from outside; None means that the client has left."""
        self.ended_by = reason
        if self.task and not self.task.done():
            self.task.cancel()

    def blamed(self, instance: Instance) -> bool:
        """An engine crashed or froze that worked on nothing else. Whether somebody answers for it."""
        return self.on_blame is not None and self.on_blame(self, instance)

    def client_left(self) -> None:
        """Callback of the connection."""
        if not self.request.answered:
            self.end()


def _figures(error: LlamaManError) -> bytes:
    """What a refusal rests on; in a header, since some APIs' errors have room for one sentence only."""
    return "; ".join(f"{name}={value}" for name, value in error.inputs.items()).encode("ascii", "replace")


def _forget(task: asyncio.Task[None]) -> None:
    """A heartbeat to a client that has left fails, and that is all there is to say."""
    if not task.cancelled():
        task.exception()


class OpenStream:
    """A log tail or an event feed: nothing but who reads it and how it is ended."""

    __slots__ = ("_task", "ended", "id", "identity")

    def __init__(self, identity: Identity) -> None:
        self.id = f"{_BOOT}-{next(_numbers):x}"
        self.identity = identity
        self.ended = False
        self._task = asyncio.current_task()

    def end(self, reason: LlamaManError | None = None) -> None:
        """End it from outside."""
        self.ended = True
        if self._task and not self._task.done():
            self._task.cancel()

    def client_left(self) -> None:
        """Callback of the connection."""
        self.end()


class Exchanges:
    """Everything in flight, so that a revoked key or an administrator can end it."""

    def __init__(self) -> None:
        self._running: dict[str, Exchange | OpenStream] = {}

    def add(self, exchange: Exchange | OpenStream) -> None:
        """It has begun."""
        self._running[exchange.id] = exchange

    def remove(self, exchange: Exchange | OpenStream) -> None:
        """It is over."""
        self._running.pop(exchange.id, None)

    def all(self) -> list[Exchange | OpenStream]:
        """A snapshot."""
        return list(self._running.values())

    def end_all(self, reason: LlamaManError) -> None:
        """End everything, each with this reason."""
        for exchange in self.all():
            exchange.end(reason)

    def revoke_session(self, session_id: str) -> int:
        """End the exchanges of a session; returns how many there were."""
        mine = [e for e in self._running.values() if e.identity.session == session_id]
        for exchange in mine:
            exchange.end(Unauthorized("this session has ended; log in again"))
        return len(mine)

    def revoke(self, key_id: str) -> int:
        """End the exchanges of a key; returns how many there were."""
        mine = [e for e in self._running.values() if e.identity.key_id == key_id]
        for exchange in mine:
            exchange.end(Unauthorized("Invalid API key"))
        return len(mine)
