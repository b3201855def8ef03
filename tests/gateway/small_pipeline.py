"""A real pipeline behind a real listener, in front of an engine that does what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from llamaman.access import Access
from llamaman.core.hooks import Hooks
from llamaman.core.instance import Instance
from llamaman.errors import LlamaManError
from llamaman.gateway.dialect import (
    JSON_HEADERS,
    Dialect,
    InferenceRoute,
    Intent,
    Lease,
    Phase,
    Reply,
    Serving,
)
from llamaman.gateway.dialect import Request as DialectRequest
from llamaman.gateway.limits import BodyBudget, Limits, Surface
from llamaman.gateway.listeners import Listeners
from llamaman.gateway.media import Media
from llamaman.gateway.pipeline import Parts, Pipeline
from llamaman.gateway.request import Request
from llamaman.gateway.upstream import Address, Upstream
from llamaman.records import NOBODY, ForwardRecord, Identity, InstanceView, ModelView

from .fleet import MODEL, Fleet

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ROUTE = InferenceRoute("POST", "/ask")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str) -> bytes:
    """One event of a chat stream as a chunk."""
    body = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})
    return chunk(b"data: %b\n\n" % body.encode())


@dataclass
class Engine:
    """A server on loopback. ``behave`` gets the path and the writer for each request.

    :ivar busy: requests that have not ended by an answer or the caller's end of file.
    """

    behave: Callable[[str, asyncio.StreamWriter], Awaitable[None]]
    is_healthy: bool = True
    busy: int = 0
    seen: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                length = next((int(x[15:]) for x in lines if x.lower().startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                path = lines[0].split(" ")[1]
                if path == "/health":
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" if self.is_healthy else b""
                    )
                    if not self.is_healthy:
                        return
                    continue
                self.seen.append(path)
                self.bodies.append(json.loads(body) if body else {})
                self.busy += 1
                work = asyncio.ensure_future(self.behave(path, writer))
                left = asyncio.ensure_future(reader.read(1))
                try:
                    await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
                    if not work.done():
                        return
                    left.cancel()
                    await asyncio.gather(left, return_exceptions=True)
                    await work
                finally:
                    self.busy -= 1
                    work.cancel()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()


class Registry(Fleet):
    """The fleet with what the pipeline asks besides."""

    suspects: int = 0

    def get(self, instance_id: str) -> Instance | None:
        return next((i for i in self.instances if i.id == instance_id), None)

    def views(self) -> list[InstanceView]:
        return [instance.view() for instance in self.instances]

    def is_embedding(self, model: ModelView) -> bool:
        return False

    def suspect(self, instance: Instance) -> None:
        self.suspects += 1

    def served(self, instance: Instance, *figures: float | None) -> None:
        instance.requests += 1


class Models:
    """One model."""

    def models(self) -> tuple[ModelView, ...]:
        return (MODEL,)

    def find(self, name: str) -> ModelView:
        return MODEL

    def by_path(self, path: Any) -> ModelView:
        return MODEL


class Scripted:
    """A dialect whose ``serve`` is the test's."""

    name = "scripted"
    routes = (ROUTE,)

    def __init__(self, serve: Callable[[], Serving], *, stream: bool = False) -> None:
        self._serve = serve
        self._stream = stream

    def open(self, request: DialectRequest) -> Intent | Reply:
        return Intent("tiny", needs="chat", stream=self._stream, request=request)

    def check(self, intent: Intent, model: ModelView) -> None:
        """Nothing to refuse."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        return self._serve()

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        body = json.dumps({"error": error.message}).encode()
        return b"data: %b\n\n" % body if started else Reply(error.status, JSON_HEADERS, body)

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        return b": waiting\n\n"


@dataclass
class House:
    """Everything that a test looks at."""

    port: int
    engine: Engine
    registry: Registry
    instance: Instance
    pipeline: Pipeline
    upstream: Upstream
    records: list[ForwardRecord]
    listeners: Listeners

    def at_rest(self) -> bool:
        """Nothing is left of any request: no permit, no work, no connection but idle ones."""
        idle = len(self.upstream._idle)
        return (
            self.instance.active == 0
            and self.engine.busy == 0
            and len(self.upstream._all) == idle
            and not self.pipeline._driver._calls._cleanups
            and not self.pipeline.exchanges.all()
        )


@asynccontextmanager
async def house(
    dialect: Dialect,
    behave: Callable[[str, asyncio.StreamWriter], Awaitable[None]],
    *,
    slots: int = 1,
    media: Media | None = None,
    who: Identity = NOBODY,
    on_its_port: bool = False,
) -> AsyncIterator[House]:
    """A listener, a pipeline with one ready instance, and its engine.

    :param on_its_port: the listener is the instance's own.
    """
    engine = Engine(behave)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    upstream = Upstream(Address("127.0.0.1", server.sockets[0].getsockname()[1]))
    registry = Registry()
    instance = registry.add(slots=slots)
    instance.client = upstream  # type: ignore[assignment] # as the registry connects it
    records: list[ForwardRecord] = []
    pipeline = Pipeline(
        Parts(
            identify=lambda request, *, shared: who,
            library=Models(),
            registry=registry,
            pools=registry.pools,
            hooks=Hooks(),
            require_auth=lambda: False,
            request_timeout_s=600.0,  # no test waits for it, and none may be cut short by it
            record=records.append,
            media=media or Media(),
        )
    )

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        request: Request = scope["extensions"]["llamaman.request"]
        await pipeline.handle(request, send, dialect, ROUTE, {}, Access.INFERENCE)

    listeners = Listeners(app, limits=Limits(), budget=BodyBudget(1 << 30))
    surface = Surface("instance", instance.id) if on_its_port else Surface("proxy")
    await listeners.open(surface, host="127.0.0.1", port=0)
    try:
        port = listeners.ports()[surface][1]
        yield House(port, engine, registry, instance, pipeline, upstream, records, listeners)
    finally:
        await listeners.shutdown(0.1)
        upstream.abort()
        server.close()


async def ask(
    port: int, body: bytes = b"{}", headers: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request and leave the answer to the caller. ``headers``: further lines, each with its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /ask HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b"%bContent-Length: %d\r\n\r\n%b" % (headers, len(body), body)
    )
    return reader, writer


async def whole(port: int, body: bytes = b"{}", headers: bytes = b"") -> tuple[int, bytes]:
    """Status and raw rest of an answer."""
    reader, writer = await ask(port, body, headers)
    raw = await reader.read()
    writer.close()
    return int(raw.split(b" ")[1]), raw
