"""The whole door with a real gate, real keys and real users; behind both hops stands an echo that counts.

Inference goes to an engine, management to what stands where Flask would: both keep every request they get.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llamaman.access import Access, Role, Scope
from llamaman.core.accounts.accounts import Accounts
from llamaman.core.accounts.cookies import cookie_name
from llamaman.core.auth import Keys
from llamaman.core.events import Events
from llamaman.core.hooks import Hooks
from llamaman.core.secrets import RootSecret
from llamaman.errors import LlamaManError
from llamaman.gateway.caller import HEADER, Caller, new_secret, unseal
from llamaman.gateway.dialect import (
    JSON_HEADERS,
    Call,
    Dialect,
    InferenceRoute,
    Intent,
    Lease,
    Phase,
    Reply,
    Serving,
)
from llamaman.gateway.dialect import Request as DialectRequest
from llamaman.gateway.engine_peers import EnginePeers
from llamaman.gateway.front_door import FrontDoor
from llamaman.gateway.gate import Gate, GateParts
from llamaman.gateway.hop import Hop
from llamaman.gateway.limits import BodyBudget, Limits, Surface
from llamaman.gateway.listeners import Listeners
from llamaman.gateway.native import Native
from llamaman.gateway.pipeline import Parts, Pipeline
from llamaman.gateway.refusals import Refused, nobody_is_told
from llamaman.gateway.surfaces import build_tables
from llamaman.gateway.upstream import Address, Upstream
from llamaman.records import Identity, ModelView, StreamRoute
from llamaman.testing.quick_hasher import QuickHasher
from llamaman_store_json import JsonStore

from .small_pipeline import Models, Registry

LOCAL: Final = Identity("local", "test", Scope.ADMIN)
ROOT: Final = RootSecret(b"r" * 32)
INSTALL: Final = "install"
COOKIE: Final = cookie_name(INSTALL, False)
PASSWORD: Final = "correct horse battery"
INSTANCE: Final = "i" * 32

CHAT: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"
PULL: Final = "/api/pull"
STREAM: Final = "/api/feed"
PUBLIC: Final = {("GET", "/login"), ("GET", "/setup"), ("GET", "/static/a.css")}

#: What may cross, besides the request line; anything else would be a client's own bytes behind the door.
TO_ENGINE = {"host", "content-type", "content-length", "accept", "authorization", "x-request-id"}
TO_FLASK = {
    "host",
    "accept",
    "accept-language",
    "content-type",
    "content-length",
    "if-none-match",
    "if-modified-since",
    "referer",
    "user-agent",
    "x-llamaman-caller",
}


class Talk:
    """Chat goes to the engine, the list of models is answered at once, pulling needs ``manage``."""

    name = "talk"
    routes = (
        InferenceRoute("POST", CHAT, limit=1 << 20),
        InferenceRoute("GET", MODELS, body="none"),
        InferenceRoute("POST", PULL, access=Access.MANAGE),
    )

    def open(self, request: DialectRequest) -> Intent | Reply:
        if request.route.pattern == CHAT:
            return Intent("tiny", needs="chat", request=request)
        return Reply(200, JSON_HEADERS, json.dumps({"actor": request.identity.actor}).encode())

    def check(self, intent: Intent, model: ModelView) -> None:
        """Nothing to refuse."""

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        assert intent.request is not None
        result = yield Call("POST", CHAT, intent.request.raw)
        yield Reply(200, JSON_HEADERS, result.body)  # type: ignore[union-attr] # a Call is answered by a Result

    def error(self, error: LlamaManError, *, started: bool) -> Reply | bytes:
        return Reply(error.status, JSON_HEADERS, json.dumps({"talk_error": error.message}).encode())

    def waiting(self, phase: Phase, seconds: float) -> bytes | None:
        return None


@dataclass
class Behind:
    """An HTTP server that keeps what it gets and answers with it; strict, so that a smuggled byte shows."""

    heads: list[bytes] = field(default_factory=list)
    broken: list[bytes] = field(default_factory=list)
    extra: bytes = b""
    hold: asyncio.Event | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head[:-4].split(b"\r\n")
                headers = [line.partition(b": ")[::2] for line in lines]
                if not first.endswith(b" HTTP/1.1") or any(
                    not name.isascii() or not name for name, _ in headers
                ):
                    self.broken.append(head)
                length = int(dict(headers).get(b"content-length", b"0"))
                await reader.readexactly(length)
                self.heads.append(head)
                if self.hold is not None:
                    await self.hold.wait()
                body = json.dumps({"path": first.split(b" ")[1].decode("latin-1")}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b"
                    % (self.extra, len(body), body)
                )
        except asyncio.IncompleteReadError as end:
            if end.partial:
                self.broken.append(end.partial)
        except (ConnectionError, ValueError) as error:
            self.broken.append(str(error).encode())
        finally:
            writer.close()


@dataclass
class Gated:
    """What a test looks at and talks to."""

    ports: dict[str, int]
    admin: Path
    keys: Keys
    accounts: Accounts
    engine: Behind
    flask: Behind
    pipeline: Pipeline
    secret: bytes
    settings: dict[str, bool]
    listeners: Listeners

    @property
    def reached(self) -> int:
        """Requests that got behind the door."""
        return len(self.engine.heads) + len(self.flask.heads)

    def key(self, scope: Scope = Scope.INFERENCE) -> str:
        return self.keys.create("k", scope, by=LOCAL)[1]

    def session(self, role: Role = Role.ADMIN, name: str = "ann") -> tuple[str, str]:
        """(cookie value, CSRF token) of a new session."""
        if not any(user.name == name for user in self.accounts.users.list()):
            self.accounts.create_user(name, PASSWORD, role, by=LOCAL)
        opened = self.accounts.sessions.open(self.accounts.users.stored(name), address=None, agent="")
        return opened.secret, self.accounts.sessions.csrf_token(opened.session.id)

    def caller(self) -> Caller:
        """Whom Flask was told of last."""
        lines = self.flask.heads[-1].decode("latin-1").split("\r\n")
        sealed = next(
            line[len(HEADER) + 2 :] for line in lines if line.lower().startswith(HEADER.lower() + ":")
        )
        caller = unseal(sealed, self.secret)
        assert caller is not None
        return caller

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        door: str = "manage",
        host: str | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers in lower case, JSON or text); one connection per request."""
        port = self.ports[door]
        sent = {"Host": host or f"127.0.0.1:{port}", "Connection": "close", **(headers or {})}
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            sent["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
            async with asyncio.timeout(60):
                return read_answer(await reader.read())
        finally:
            writer.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def session_headers(house: Gated, cookie: str, token: str) -> dict[str, str]:
    """What our own page sends."""
    return {
        "Cookie": f"{COOKIE}={cookie}",
        "Origin": f"http://127.0.0.1:{house.ports['manage']}",
        "Sec-Fetch-Site": "same-origin",
        "X-CSRF-Token": token,
    }


def read_answer(raw: bytes) -> tuple[int, dict[str, str], Any]:
    """One whole answer, its connection closed behind it."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for name, value in (line.split(": ", 1) for line in lines):
        assert name not in headers or name == "set-cookie", f"{name} came twice"
        headers[name] = value
    if "json" in headers.get("content-type", "") and body:
        return int(first.split(" ")[1]), headers, json.loads(body)
    return int(first.split(" ")[1]), headers, body.decode("latin-1")


async def _feed(held: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"data: 1\n\n"
    await held.wait()


@asynccontextmanager
async def gated(
    folder: Path,
    *,
    people: bool = True,
    limits: Mapping[str, Any] | None = None,
    engines: EnginePeers | None = None,
    refused: Refused = nobody_is_told,
    web_ui: bool = False,
    **parts: Any,
) -> AsyncIterator[Gated]:
    """Everything on loopback. ``parts``: fields of GateParts. ``people=False``: nobody has ever heard of users.

    :param engines: who is turned away; nobody without it. :param refused: told of refusals.
    :param web_ui: whether instance ports show the engine's own page.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = JsonStore(folder)
    events = Events()
    accounts = Accounts(store, events, root=ROOT, install_id=INSTALL, data_dir=folder, hasher=QuickHasher())
    keys = Keys(store, events)
    settings = {"require_auth": True}
    engine, flask = Behind(), Behind()
    engine_server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    flask_server = await asyncio.start_unix_server(flask.serve, folder / "flask.sock")
    to_engine = Upstream(Address("127.0.0.1", engine_server.sockets[0].getsockname()[1]))
    to_flask = Upstream(Address(path=str(folder / "flask.sock")))
    registry = Registry()
    instance = registry.add(slots=8)
    instance.id = INSTANCE
    instance.client = to_engine  # type: ignore[assignment] # as the registry connects it

    def require_auth() -> bool:
        return settings["require_auth"]

    gate = Gate(
        GateParts(
            keys=keys,
            require_auth=require_auth,
            accounts=accounts if people else None,
            install_id=INSTALL,
            **parts,
        )
    )
    pipeline = Pipeline(
        Parts(
            identify=gate.identify,
            library=Models(),
            registry=registry,
            pools=registry.pools,
            hooks=Hooks(),
            require_auth=require_auth,
            request_timeout_s=600.0,
            record=lambda record: None,
        )
    )
    held = asyncio.Event()
    feed = StreamRoute("GET", STREAM, Access.VIEW, lambda identity, values: _feed(held))
    dialect: Dialect = Talk()
    tables = build_tables([("talk", dialect)], Native(lambda: web_ui), [("test", feed)], on_broken=_refuse)
    secret = new_secret()
    hop = Hop(to_flask, secret, is_public=lambda method, path: (method, path) in PUBLIC)
    app = FrontDoor(tables, pipeline, gate, require_auth, hop, refused, engines)
    listeners = Listeners(app, limits=Limits(**(limits or {})), budget=BodyBudget(1 << 30))
    surfaces = [Surface("manage"), Surface("proxy"), Surface("instance", INSTANCE)]
    for surface in surfaces:
        await listeners.open(surface, host="127.0.0.1", port=0)
    await listeners.open_unix(Surface("admin"), folder / "admin.sock", 0o600)
    ports = {surface.name: listeners.ports()[surface][1] for surface in surfaces}
    house = Gated(
        ports, folder / "admin.sock", keys, accounts, engine, flask, pipeline, secret, settings, listeners
    )
    loop = asyncio.get_running_loop()
    forget = accounts.sessions.on_end(
        lambda session: loop.call_soon_threadsafe(pipeline.exchanges.revoke_session, session)
    )
    try:
        yield house
    finally:
        forget()
        held.set()
        await listeners.shutdown(0.1)
        to_engine.abort()
        to_flask.abort()
        engine_server.close()
        flask_server.close()
        store.close()


def _refuse(plugin: str, reason: str) -> None:
    raise AssertionError(f"{plugin}: {reason}")
