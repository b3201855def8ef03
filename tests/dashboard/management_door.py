"""A manager for tests of management: real sockets, front door, hop, Flask, keys, settings, library and store.

Only the instances are made up: :class:`FakeInstances` keeps records and starts no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import llamaman
from llamaman.access import Access, Scope
from llamaman.core import audit_events
from llamaman.core.accounts.accounts import Accounts
from llamaman.core.admission import Admit, Decision, Launcher
from llamaman.core.audit import Audit
from llamaman.core.auth import Keys, authorise
from llamaman.core.breaker import Open
from llamaman.core.config import Config
from llamaman.core.events import Events
from llamaman.core.secrets import RootSecret
from llamaman.core.settings import Settings
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.dashboard.server import DashboardServer
from llamaman.errors import Conflict, LlamaManError, NotFound
from llamaman.gateway.admin_socket import prepare_runtime_dir, socket_path
from llamaman.gateway.gate import Gate, GateParts
from llamaman.gateway.hop import Hop, forward_to_flask, reply
from llamaman.gateway.in_flight import Progress, RequestView
from llamaman.gateway.limits import BodyBudget, Limits, Surface
from llamaman.gateway.listeners import Listeners
from llamaman.gateway.log_stream import LogStreams
from llamaman.gateway.metrics import Metrics
from llamaman.gateway.upstream import Upstream
from llamaman.library.library import Library
from llamaman.records import (
    Address,
    Identity,
    InstanceView,
    LaunchRequest,
    PluginRecord,
    ResourceUse,
    RouteSet,
    State,
)
from llamaman.runtime import Runtime
from llamaman.testing.tiny_model import write_tiny_model
from llamaman_store_json import JsonStore

DEADLINE_S = 60.0

# pytest rewrites our modules as they are imported, and werkzeug builds a route's functions, both from syntax trees,
# which Python 3.11 cannot make in two threads at once ("AST constructor recursion depth mismatch"): nothing of ours
# may be left to import when Flask starts in its thread.
for _module in walk_packages(llamaman.__path__, "llamaman."):
    if not _module.name.endswith(".__main__"):
        import_module(_module.name)


def eventually(holds: Callable[[], Any], what: str = "it did not happen") -> Any:
    """Poll until ``holds()`` is true; returns what it returned."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


class FakeInstances:
    """Instances as records: a launch is healthy at once, and nothing runs."""

    def __init__(self, logs_dir: Path) -> None:
        self.logs_dir = logs_dir
        self.all: dict[str, InstanceView] = {}
        self.launched: list[LaunchRequest] = []
        self.waiting: list[tuple[str, str]] = []
        self.calls: list[tuple[str, ...]] = []
        self.refusal: LlamaManError | Exception | None = None
        self.pauses: dict[str, Open] = {}
        self.admission: Decision = Admit()
        self.used: dict[str, ResourceUse] = {}

    def views(self) -> tuple[InstanceView, ...]:
        return tuple(self.all.values())

    def view(self, instance_id: str) -> InstanceView:
        if instance_id not in self.all:
            raise NotFound("Not found")
        return self.all[instance_id]

    def launch(self, request: LaunchRequest, actor: str) -> InstanceView:
        if self.refusal:
            raise self.refusal
        port = request.port or self.next_port() or 0
        if any(view.port == port for view in self.all.values()):
            raise Conflict(f"Port {port} is already in use")
        self.launched.append(request)
        instance_id = uuid.uuid4().hex
        self.calls.append(("launch", instance_id, actor))
        view = InstanceView(
            id=instance_id,
            model=request.model_path.stem.lower(),
            model_path=request.model_path,
            port=port,
            state=State.READY,
            status="healthy",
            reason="launched by a test",
            generation=1,
            options=dict(request.options),
            managed=request.managed,
            engine="fake",
            runtime="process",
            log_path=self.logs_dir / f"{instance_id}.log",
            address=Address("127.0.0.1", 9000),
            pid=None,
            container_id=None,
            created=time.time(),
            started=time.time(),
            ready_at=time.time(),
            last_request=None,
            load_seconds=0.5,
            active=0,
            queued=0,
            slots=1,
            context_length=4096,
            requests=0,
            crashes=0,
            last_exit=None,
            last_tokens_per_second=None,
            last_ttft_ms=None,
        )
        self.all[instance_id] = view
        return view

    def stop(self, instance_id: str, actor: str, force: bool = False) -> InstanceView:
        self.calls.append(("stop", instance_id, actor, "force" if force else "drain"))
        return self._become(instance_id, State.STOPPED, "stopped")

    def restart(
        self,
        instance_id: str,
        actor: str,
        options: Mapping[str, Any] | None = None,
        confirm_overcommit: bool = False,
    ) -> InstanceView:
        self.calls.append(("restart", instance_id, actor))
        return self._become(instance_id, State.STARTING, "starting")

    def remove(self, instance_id: str, actor: str) -> None:
        if self.view(instance_id).state is not State.STOPPED:
            raise Conflict("stop the instance before removing it")
        del self.all[instance_id]

    def pause(self, instance_id: str) -> Open | None:
        return self.pauses.get(instance_id)

    def decision(
        self, launcher: Launcher, *, embedding: bool = False, starting: str | None = None
    ) -> Decision:
        return self.admission

    def waits(self) -> Sequence[tuple[str, str]]:
        return self.waiting

    def usage(self) -> Mapping[str, ResourceUse]:
        return self.used

    def next_port(self) -> int | None:
        taken = {view.port for view in self.all.values()}
        return next((port for port in range(8000, 8003) if port not in taken), None)

    def _become(self, instance_id: str, state: State, status: str) -> InstanceView:
        view = dataclasses.replace(self.view(instance_id), state=state, status=status)
        self.all[instance_id] = view
        return view


class FakeRequests:
    """Requests in flight as records."""

    def __init__(self) -> None:
        self.all: dict[str, RequestView] = {}
        self.cancelled: list[tuple[str, str]] = []

    def views(self) -> list[RequestView]:
        return list(self.all.values())

    def counts(self) -> Mapping[tuple[str, Progress], int]:
        return Counter((view.model or "", view.phase) for view in self.all.values())

    def cancel(self, request_id: str, actor: str) -> None:
        if request_id not in self.all:
            raise NotFound(f"no request with the id '{request_id}' is running; it may be over already")
        del self.all[request_id]
        self.cancelled.append((request_id, actor))


@dataclass
class TestKernel:
    """The services that management uses."""

    __test__ = False

    config: Config
    settings: Settings
    events: Events
    keys: Keys
    accounts: Accounts
    library: Library
    instances: FakeInstances
    audit: Audit
    requests: FakeRequests = field(default_factory=FakeRequests)
    metrics: Metrics = field(default_factory=Metrics)
    plugins: tuple[PluginRecord, ...] = ()
    runtimes: Mapping[str, Runtime] = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)


@dataclass
class Manager:
    """A running manager; ``call`` speaks HTTP to it."""

    kernel: TestKernel
    model: Path
    port: int
    admin: Path
    server: DashboardServer
    run: Callable[[Coroutine[Any, Any, Any]], Any]

    def key(self, scope: Scope) -> str:
        """A fresh key of a scope."""
        return self.kernel.keys.create(scope.value, scope, by=Identity("local", "test", Scope.ADMIN))[1]

    def open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> tuple[HTTPConnection, HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        sent = dict(headers or {})
        if key:
            sent["Authorization"] = f"Bearer {key}"
        connection.request(method, path, body=body, headers=sent)
        return connection, connection.getresponse()

    def raw(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> tuple[int, Any, HTTPResponse]:
        """Status, JSON (text where it is a page) and the answer."""
        connection, answer = self.open(method, path, body, headers, key)
        try:
            data = answer.read()
        finally:
            connection.close()
        if not (answer.getheader("Content-Type") or "").startswith("application/json"):
            return answer.status, data.decode() or None, answer
        return answer.status, json.loads(data), answer

    def call(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """Status and JSON of a well-formed call."""
        data = None if body is None else json.dumps(body).encode()
        status, answer, _ = self.raw(
            method, path, data, {"Content-Type": "application/json"} if data else {}, key
        )
        return status, answer


@contextlib.contextmanager
def running_manager(
    folder: Path, plugin_routes: Mapping[str, list[RouteSet]] | None = None, node: str = "testnode"
) -> Iterator[Manager]:
    """Start a manager in a folder; everything is gone afterwards."""
    models = folder / "models"
    for name in ("models", "data", "logs", "run"):
        (folder / name).mkdir(mode=0o700)
    model = write_tiny_model(models / "Tiny-Q8_0.gguf")
    environ = {
        "LLAMAMAN_NODE_NAME": node,
        "MODELS_DIR": str(models),
        "DATA_DIR": str(folder / "data"),
        "LOGS_DIR": str(folder / "logs"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
    }
    config = Config.from_environ(environ)
    store = JsonStore(config.data_dir)
    events = Events()
    accounts = Accounts(
        store, events, root=RootSecret(bytes(32)), install_id="test-install", data_dir=config.data_dir
    )
    audit = Audit(config.data_dir / "audit")
    audit_events.follow(audit, events)
    settings = Settings(config.node_name, events=events, environ=environ)
    settings.declare(CORE_SETTINGS, "llamaman")
    settings.seal(store)
    library = Library(config, store, events=events)
    library.rescan()
    kernel = TestKernel(
        config,
        settings,
        events,
        Keys(store, events),
        accounts,
        library,
        FakeInstances(config.logs_dir),
        audit,
    )
    broken: list[tuple[str, str]] = []

    def make_app(secret: bytes) -> Any:
        from llamaman.dashboard.app import create_app

        return create_app(
            kernel,
            secret,
            plugin_routes=plugin_routes,
            on_broken=lambda plugin, reason: broken.append((plugin, reason)),
        )

    runtime_dir = prepare_runtime_dir(config.runtime_dir)
    server = DashboardServer(make_app, runtime_dir)
    server.start()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(DEADLINE_S)

    async def begin() -> tuple[Listeners, int]:
        budget = BodyBudget(64 << 20)
        listeners = Listeners(_door(kernel, server), limits=Limits(), budget=budget)
        await listeners.open(Surface("manage"), host="127.0.0.1", port=0)
        await listeners.open_unix(Surface("admin"), socket_path(runtime_dir, config.node_name), 0o600)
        return listeners, listeners.ports()[Surface("manage")][1]

    listeners, port = run(begin())
    # pytest parses the source of a failing test, and would fail itself while Flask builds its routes.
    assert server.wait_ready(DEADLINE_S)
    try:
        yield Manager(kernel, model, port, socket_path(runtime_dir, node), server, run)
    finally:
        run(listeners.shutdown(1.0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.close()
        server.stop()
        audit.close()
        store.close()


def _door(kernel: TestKernel, server: DashboardServer) -> Any:
    """The front door's management half."""
    hop: Hop | None = None
    accounts = kernel.accounts
    gate = Gate(
        GateParts(
            keys=kernel.keys,
            require_auth=lambda: bool(kernel.settings.get("require_auth")),
            accounts=accounts,
            install_id=accounts.install_id,
        )
    )
    streams = LogStreams(lambda instance_id: kernel.instances.view(instance_id).log_path, kernel.keys.is_live)
    route = streams.route()
    before, after = route.pattern.split("{id}")

    async def door(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal hop
        if hop is None:
            upstream = Upstream(address=_address(server.socket_path))
            hop = Hop(upstream, server.secret, lambda: server.is_ready, server.is_public)
        request = scope["extensions"]["llamaman.request"]
        try:
            identity = gate.identify(request, shared=False)
            path = scope["path"]
            if scope["method"] == "GET" and path.startswith(before) and path.endswith(after):
                authorise(identity, route.access, require_auth=True)
                values = {"id": path.removeprefix(before).removesuffix(after)}
                await _stream(request, send, route.open(identity, values))
                return
            await forward_to_flask(scope, receive, send, gate.caller(request, identity), hop)
        except LlamaManError as error:
            await reply(send, error.status, {"error": error.message})

    return door


async def _stream(request: Any, send: Any, items: AsyncIterator[bytes]) -> None:
    """What the front door does with a StreamRoute: send items, and close the iterator when the client goes."""
    head = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }
    await send(head)
    step: asyncio.Future[bytes] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(items))  # type: ignore[arg-type] # a coroutine in fact
            await asyncio.wait({step, asyncio.shield(request.gone)}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                return
            await send({"type": "http.response.body", "body": step.result(), "more_body": True})
    except StopAsyncIteration:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        if step is not None and not step.done():
            step.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await step
        await items.aclose()  # type: ignore[attr-defined] # an async generator in fact


def _address(path: Path) -> Any:
    return Address(path=str(path))


OPEN_TO = {
    Scope.VIEW: {Access.PUBLIC, Access.VIEW},
    Scope.INFERENCE: {Access.PUBLIC, Access.INFERENCE},
    Scope.MANAGE: {Access.PUBLIC, Access.INFERENCE, Access.VIEW, Access.MANAGE},
    Scope.ADMIN: set(Access) - {Access.NODE},
}
