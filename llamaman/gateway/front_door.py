"""The ASGI application behind every listener: which route, served by whom.

The surfaces differ only in their tables: inference everywhere, management on its own listener and on the
admin socket, llama-server's own endpoints on instance ports. What no table knows is our 404.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaman.access import Access
from llamaman.core.auth import Keys, authorise
from llamaman.errors import LlamaManError, MethodNotAllowed, NotFound
from llamaman.gateway.admin_socket import admin_identity
from llamaman.gateway.dialect import Dialect, InferenceRoute
from llamaman.gateway.exchange import OpenStream
from llamaman.gateway.hop import Hop, forward_to_flask, reply
from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull, ClientGone
from llamaman.gateway.pipeline import Pipeline
from llamaman.gateway.request import Request
from llamaman.gateway.routes import RouteRow, Table
from llamaman.records import Identity, StreamRoute

Receive = Callable[[], Any]
Send = Callable[[dict[str, Any]], Any]

#: Clients of Ollama read their features off this number; ours is in /api/llamaman/version.
OLLAMA_VERSION = "0.32.0"


@dataclass(frozen=True, slots=True)
class Fixed:
    """An answer that never changes."""

    body: bytes
    content_type: bytes = b"application/json"


@dataclass(frozen=True, slots=True)
class Inference:
    """A route of a dialect."""

    dialect: Dialect
    route: InferenceRoute
    level: Access


Entry = Fixed | Inference | StreamRoute

HEALTH = Fixed(b'{"status":"ok"}')
VERSION = Fixed(json.dumps({"version": OLLAMA_VERSION}).encode())
GREETING = Fixed(b"LlamaMan is running", b"text/plain; charset=utf-8")


@dataclass(slots=True)
class Tables:
    """One table per surface."""

    manage: Table[Entry] = field(default_factory=Table)
    proxy: Table[Entry] = field(default_factory=Table)
    instance: Table[Entry] = field(default_factory=Table)
    admin: Table[Entry] = field(default_factory=Table)

    def rows(self) -> list[RouteRow]:
        """Every route of the loop with its surfaces."""
        found: dict[tuple[str, str], RouteRow] = {}
        for surface in ("manage", "proxy", "instance", "admin"):
            table: Table[Entry] = getattr(self, surface)
            for method, pattern, owner in table.rows():
                entry = table.match(method, pattern)
                row = found.get((method, pattern))
                surfaces = (*row.surfaces, surface) if row else (surface,)
                level = _level(entry.target) if entry else Access.MANAGE
                found[method, pattern] = RouteRow(method, pattern, surfaces, level, owner)
        return sorted(found.values(), key=lambda row: (row.path, row.method))

    def listing(self) -> list[dict[str, str]]:
        """The same, a row per surface, as ``/api/routes`` shows it."""
        return [
            {
                "method": row.method,
                "path": row.path,
                "surface": surface,
                "level": row.level.value,
                "plugin": row.plugin,
            }
            for row in self.rows()
            for surface in row.surfaces
        ]


def _level(entry: Entry) -> Access:
    if isinstance(entry, Fixed):
        return Access.PUBLIC
    return entry.level if isinstance(entry, Inference) else entry.access


def build_tables(
    dialects: Sequence[tuple[str, Dialect]],
    native: Dialect,
    streams: Sequence[tuple[str, StreamRoute]],
    *,
    on_broken: Callable[[str, str], None],
) -> Tables:
    """Lay out the surfaces.

    :param dialects: (plugin name, dialect); on an instance port their paths win over llama-server's own.
    :param on_broken: told plugin and reason when a plugin claims a route that is taken; that dialect or stream
        stays out.
    """
    tables = Tables()
    for table in (tables.manage, tables.proxy, tables.instance, tables.admin):
        table.add("GET", "/health", HEALTH, "llamaman")
    for table in (tables.manage, tables.proxy):
        table.add("GET", "/api/version", VERSION, "llamaman")
    tables.proxy.add("GET", "/", GREETING, "llamaman")
    for owner, dialect in dialects:
        wanted = [(route.method, route.pattern) for route in dialect.routes]
        taken = _taken((tables.manage, tables.proxy, tables.instance), wanted)
        if taken:
            on_broken(owner, taken)
            continue
        for route in dialect.routes:
            entry = Inference(dialect, route, route.access)
            for table in (tables.manage, tables.proxy, tables.instance):
                table.add(route.method, route.pattern, entry, owner)
    for route in native.routes:
        if tables.instance.match(route.method, route.pattern) is None:
            tables.instance.add(
                route.method, route.pattern, Inference(native, route, route.access), "llamaman"
            )
    for owner, stream in streams:
        taken = _taken((tables.manage, tables.admin), [(stream.method, stream.pattern)])
        if taken:
            on_broken(owner, taken)
            continue
        for table in (tables.manage, tables.admin):
            table.add(stream.method, stream.pattern, stream, owner)
    return tables


def _taken(tables: Sequence[Table[Entry]], routes: Sequence[tuple[str, str]]) -> str | None:
    """Why these routes cannot be added to all of the tables, or None."""
    for number, (method, pattern) in enumerate(routes):
        for table in tables:
            if owner := table.owner(method, pattern):
                return f"route {method} {pattern} is already served by '{owner}'"
        if (method, pattern) in routes[:number]:
            return f"route {method} {pattern} is declared twice"
    return None


class FrontDoor:
    """Dispatches; holds no state of its own."""

    def __init__(
        self,
        tables: Tables,
        pipeline: Pipeline,
        keys: Keys,
        require_auth: Callable[[], bool],
        hop: Hop,
    ) -> None:
        self._tables = {
            "manage": tables.manage,
            "proxy": tables.proxy,
            "instance": tables.instance,
            "admin": tables.admin,
        }
        self._pipeline = pipeline
        self._keys = keys
        self._require_auth = require_auth
        self._hop = hop

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        request: Request = scope["extensions"]["llamaman.request"]
        head = request.head
        table = self._tables[request.surface.name]
        match = table.match("GET" if head.method == "HEAD" else head.method, head.path)
        if match is not None:
            target = match.target
            if isinstance(target, Inference):
                await self._pipeline.handle(
                    request, send, target.dialect, target.route, match.values, target.level
                )
                return
            if isinstance(target, Fixed):
                await _fixed(send, target)
                return
        try:
            if match is not None and isinstance(match.target, StreamRoute):
                await self._stream(request, send, match.target, dict(match.values))
            elif request.surface.name in ("manage", "admin"):
                await forward_to_flask(scope, receive, send, self._identify(request), self._hop)
            else:
                raise _unknown(table, head.method, head.path, request.surface.name)
        except LlamaManError as error:
            await _refuse(send, error)
        except BodyTooLarge:
            await reply(send, 413, {"error": "the request body is too large"})
        except BodyTooSlow as error:
            await reply(send, 408, {"error": str(error)})
        except BufferFull:
            await reply(
                send, 503, {"error": "too many large requests at once; try again"}, [(b"retry-after", b"1")]
            )
        except ClientGone:
            return

    def _identify(self, request: Request) -> Identity:
        if request.surface.name == "admin":
            return admin_identity(request.peer_uid)
        return self._keys.authenticate(request.head.headers)

    async def _stream(self, request: Request, send: Send, route: StreamRoute, values: dict[str, str]) -> None:
        identity = self._identify(request)
        authorise(identity, route.access, require_auth=self._require_auth())
        items = route.open(identity, values)
        stream = OpenStream(identity)
        self._pipeline.exchanges.add(stream)
        request.on_gone = stream.client_left
        headers = [
            (b"content-type", route.content_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _pump(items, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not stream.ended or task is None:
                raise
            task.uncancel()
            if not request.is_gone:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            request.on_gone = None
            self._pipeline.exchanges.remove(stream)


async def _pump(items: AsyncIterator[bytes], send: Send) -> None:
    async for item in items:
        await send({"type": "http.response.body", "body": item, "more_body": True})


async def _fixed(send: Send, answer: Fixed) -> None:
    headers = [(b"content-type", answer.content_type)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


async def _refuse(send: Send, error: LlamaManError) -> None:
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await reply(send, error.status, {"error": error.message}, headers)


def _unknown(table: Table[Entry], method: str, path: str, surface: str) -> LlamaManError:
    methods = table.methods(path)
    if methods:
        return MethodNotAllowed(f"{method} is not allowed here; allowed: {', '.join(methods)}")
    if surface == "proxy" and path.startswith("/api/"):
        return NotFound(f"{path} is not served on this port; the management API is on LLAMAMAN_PORT (5000)")
    return NotFound("Not found")
