"""The ASGI application behind every listener: which route, served by whom.

The surfaces differ only in their tables: inference everywhere, management on its own listener and on the
admin socket, llama-server's own endpoints bare on instance ports and by model elsewhere. What no table knows
is our 404.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from llamaman.access import Access
from llamaman.core.auth import authorise
from llamaman.errors import LlamaManError, MethodNotAllowed, NotFound
from llamaman.gateway.engine_peers import EnginePeers
from llamaman.gateway.exchange import OpenStream
from llamaman.gateway.gate import Gate
from llamaman.gateway.hop import Hop, forward_to_flask, reply
from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull, ClientGone
from llamaman.gateway.pipeline import Pipeline
from llamaman.gateway.refusals import Refused, nobody_is_told
from llamaman.gateway.request import Request
from llamaman.gateway.routes import Table
from llamaman.gateway.streams import values_for
from llamaman.gateway.surfaces import Entry, Fixed, Inference, Tables
from llamaman.records import NOBODY, Identity, StreamRoute

log = logging.getLogger("llamaman.gateway")

Receive = Callable[[], Any]
Send = Callable[[dict[str, Any]], Any]


class FrontDoor:
    """Dispatches; holds no state of its own."""

    def __init__(
        self,
        tables: Tables,
        pipeline: Pipeline,
        gate: Gate,
        require_auth: Callable[[], bool],
        hop: Hop,
        refused: Refused = nobody_is_told,
        engines: EnginePeers | None = None,
    ) -> None:
        self._tables = {
            "manage": tables.manage,
            "proxy": tables.proxy,
            "instance": tables.instance,
            "admin": tables.admin,
        }
        self._pipeline = pipeline
        self._gate = gate
        self._require_auth = require_auth
        self._hop = hop
        self._refused = refused
        self._engines = EnginePeers() if engines is None else engines

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        request: Request = scope["extensions"]["llamaman.request"]
        head = request.head
        peer = request.peer
        if peer is not None and self._engines.is_engine(peer[0]):
            await self._turn_away(request, send, peer[0])
            return
        table = self._tables[request.surface.name]
        match = table.match("GET" if head.method == "HEAD" else head.method, head.path)
        if match is not None:
            target = match.target
            if isinstance(target, Inference):
                target = target.of(head.headers)
                await self._pipeline.handle(
                    request, send, target.dialect, target.route, match.values, target.level
                )
                return
        who = NOBODY
        try:
            if match is not None and isinstance(match.target, Fixed):
                self._gate.check_name(request)
                await _fixed(send, match.target)
            elif match is not None and isinstance(match.target, StreamRoute):
                who = self._gate.identify(request, shared=False)
                values = values_for(match.target, match.values, head)
                await self._stream(request, send, match.target, values, who)
            elif head.method == "OPTIONS" and (methods := _shared(table, request)):
                headers = self._gate.preflight(request, methods)
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif request.surface.name in ("manage", "admin"):
                who = self._gate.identify(request, shared=False)
                await self._ask_flask(scope, receive, send, request, who)
            else:
                self._gate.check_name(request)
                raise _unknown(table, head.method, head.path, request.surface.name)
        except LlamaManError as error:
            self._refused(request, error, who)
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

    async def _turn_away(self, request: Request, send: Send, address: str) -> None:
        """An engine asks: whatever it wants and whoever it says it is, it hears one sentence."""
        error = self._engines.refusal()
        if self._engines.is_news(address):
            # Without the path, which it chooses; the audit log has it, made safe.
            log.warning(
                "%s is a model's container, called the %s port and was refused", address, request.surface.name
            )
            self._refused(request, error, NOBODY)
        await reply(send, error.status, {"error": error.message}, [(b"connection", b"close")])

    async def _ask_flask(
        self, scope: dict[str, Any], receive: Receive, send: Send, request: Request, identity: Identity
    ) -> None:
        caller = await self._gate.confirm_owner(request, self._gate.caller(request, identity))
        page = self._gate.login_page(request) if identity.kind == "none" else None
        await forward_to_flask(scope, receive, send, caller, self._hop, login_page=page)

    async def _stream(
        self, request: Request, send: Send, route: StreamRoute, values: dict[str, str], identity: Identity
    ) -> None:
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


def _shared(table: Table[Entry], request: Request) -> list[str]:
    """The methods that pages of other origins may use on a path; none unless this is a preflight."""
    named = request.head.named
    if b"origin" not in named or b"access-control-request-method" not in named:
        return []
    path = request.head.path
    found = []
    for method in table.methods(path):
        match = table.match(method, path)
        if match and isinstance(match.target, Inference) and match.target.level is Access.INFERENCE:
            found.append(method)
    return found


def _unknown(table: Table[Entry], method: str, path: str, surface: str) -> LlamaManError:
    methods = table.methods(path)
    if methods:
        return MethodNotAllowed(f"{method} is not allowed here; allowed: {', '.join(methods)}")
    if surface == "proxy" and path.startswith("/api/"):
        return NotFound(f"{path} is not served on this port; the management API is on LLAMAMAN_PORT (5000)")
    return NotFound("Not found")
