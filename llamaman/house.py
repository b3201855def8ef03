"""The rooms around the kernel that live on the event loop: the front door, the management server, jobs.

``open`` is the second half of the boot and ``close`` its reverse.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Mapping
from typing import Any, cast

from llamaman.core import collector, planner, runtime_choice
from llamaman.core.admission import Policy
from llamaman.core.events import Event
from llamaman.core.instance import Instance
from llamaman.core.instances import Instances
from llamaman.core.kernel import Kernel
from llamaman.core.notifier import Notifier
from llamaman.core.parts import Parts
from llamaman.core.ports import PortPool
from llamaman.dashboard.server import DashboardServer
from llamaman.errors import LlamaManError, ModelUnavailable, PluginError
from llamaman.gateway import crash_notes, refusals
from llamaman.gateway import pipeline as gateway
from llamaman.gateway.admin_socket import prepare_runtime_dir, socket_path
from llamaman.gateway.dialect import Dialect
from llamaman.gateway.doors import InstanceDoors
from llamaman.gateway.engine_peers import EnginePeers
from llamaman.gateway.event_feed import EventFeed
from llamaman.gateway.front_door import FrontDoor
from llamaman.gateway.gate import Gate, GateParts
from llamaman.gateway.hop import Hop
from llamaman.gateway.in_flight import InFlight
from llamaman.gateway.limits import BodyBudget, Limits, Surface
from llamaman.gateway.listeners import Listeners
from llamaman.gateway.log_stream import LogStreams
from llamaman.gateway.media import Media
from llamaman.gateway.metrics import Metrics
from llamaman.gateway.native import Native
from llamaman.gateway.pool import Pools
from llamaman.gateway.preload import preload
from llamaman.gateway.streams import StreamCount
from llamaman.gateway.surfaces import build_tables
from llamaman.gateway.upstream import Address, Upstream
from llamaman.records import Exit, Identity, InstanceEvent, Job, RouteSet, State, StreamRoute
from llamaman.runtime import KeepsLines, Runtime
from llamaman.runtimes import logfiles
from llamaman.runtimes.causes import cause, this_run
from llamaman.runtimes.sandbox import gpu_present

log = logging.getLogger("llamaman")

SHUTDOWN_GRACE_S = 5.0
DASHBOARD_AFTER_S = 1.0
LAST_WORDS_S = 1.0  # for the error event of a stream that the end cuts off
ASSEMBLED_S = 30.0
CAUSE_LINES = 60
CLOCK_SLACK_S = 2.0  # between our clock and that of the file system
ROTATE_EVERY_S = 10.0
REFRESH_EVERY_S = 15.0
SESSIONS_EVERY_S = 60.0
RECONCILE_EVERY_S = 60.0
AUDIT_EVERY_S = 3600.0
LOGS_TOTAL_BYTES = 1 << 30


class House:
    """The rooms around the kernel that live on the event loop."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        config = kernel.config
        self._door: FrontDoor | None = None
        self._listeners = Listeners(self._app, limits=Limits(), budget=BodyBudget())
        doors = InstanceDoors(config.host, self._listeners)
        self._records = Notifier("post-forward", kernel.hooks.post_forward)
        self._transitions = Notifier("instance-events", kernel.hooks.instance_event)
        kernel.instances = Instances(_instance_parts(kernel, doors))
        self._pools = Pools(kernel.instances, config.request_timeout)
        kernel.instances.subscribe(self._pools.changed, reasons=True)
        if kernel.hooks.has("instance_event"):
            kernel.instances.subscribe(self._tell_plugins)
        kernel.metrics = self._metrics = Metrics()
        kernel.instances.subscribe(self._metrics.instance_changed)
        self._gate = Gate(_gate_parts(kernel))
        self._note_refused = refusals.recorder(kernel.audit)
        self._media = Media(
            lambda: bool(kernel.settings.get("media.fetch_urls")), lambda: kernel.settings.get("media.hosts")
        )
        self._pipeline = gateway.Pipeline(
            gateway.Parts(
                identify=refusals.watched(self._gate.identify, self._note_refused),
                library=kernel.library,
                registry=kernel.instances,
                pools=self._pools,
                hooks=kernel.hooks,
                require_auth=lambda: bool(kernel.settings.get("require_auth")),
                request_timeout_s=config.request_timeout,
                record=self._records.put,
                observe=self._metrics.observe,
                blamed=crash_notes.recorder(kernel.events, kernel.audit),
                media=self._media,
            )
        )
        self._dashboard: DashboardServer | None = None
        self._dashboard_started = False
        self._serving = False
        self._refused: PluginError | None = None  # what ends a strict start
        self._calm: asyncio.Task[None] | None = None
        self._preload: asyncio.Task[None] | None = None

    async def _app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert self._door is not None
        await self._door(scope, receive, send)

    async def open(self) -> None:
        """Open every port, adopt what runs, start the rest."""
        kernel, config = self._kernel, self._kernel.config
        threading.Thread(target=_probe_engines, args=(kernel.runtimes,), name="probe", daemon=True).start()
        # Bound before anything is adopted: a taken port must end the boot while it has changed nothing.
        proxy = self._listeners.reserve(config.host, config.proxy_port)
        manage = self._listeners.reserve(config.host, config.port)
        runtime_dir = prepare_runtime_dir(config.runtime_dir)
        dialects, streams, route_sets = _sort_routes(kernel)
        loop = asyncio.get_running_loop()
        count = StreamCount()

        def is_live(who: Identity) -> bool:
            return kernel.keys.is_live(who) and kernel.accounts.sessions.is_live(who)

        log_streams = LogStreams(
            lambda instance_id: kernel.instances.view(instance_id).log_path, is_live, count
        )
        events = EventFeed(kernel.events, loop, count=count, is_live=is_live)
        own = [("llamaman", log_streams.route()), ("llamaman", events.route())]
        native = Native(web_ui=lambda: bool(kernel.settings.get("instances.web_ui")))
        tables = build_tables(dialects, native, [*own, *streams], on_broken=self._broken)
        kernel.requests = InFlight(self._pipeline.exchanges, loop)

        def make_app(secret: bytes) -> Any:
            from llamaman.dashboard.app import create_app
            from llamaman.dashboard.services import Services

            return create_app(
                cast(Services, kernel),
                secret,
                plugin_routes=route_sets,
                loop_routes=tables.listing,
                on_broken=self._refused_by_flask,
            )

        dashboard = self._dashboard = DashboardServer(make_app, runtime_dir)
        upstream = Upstream(Address(path=str(dashboard.socket_path)))

        def ready() -> bool:
            self._start_dashboard()
            return dashboard.is_ready

        hop = Hop(upstream, dashboard.secret, ready, dashboard.is_public)
        self._door = FrontDoor(
            tables,
            self._pipeline,
            self._gate,
            lambda: bool(kernel.settings.get("require_auth")),
            hop,
            self._note_refused,
            EnginePeers(kernel.runtimes.values()),
        )

        def revoked(key_id: str) -> None:
            loop.call_soon_threadsafe(self._pipeline.exchanges.revoke, key_id)

        def session_ended(session_id: str) -> None:
            loop.call_soon_threadsafe(self._pipeline.exchanges.revoke_session, session_id)

        kernel.keys.on_revoke(revoked)
        kernel.accounts.sessions.on_end(session_ended)

        def preset_changed(event: Event) -> None:
            if event.kind != "noted":
                loop.call_soon_threadsafe(kernel.instances.preset_saved, event.data["model"])

        kernel.events.subscribe("presets", preset_changed)
        await asyncio.to_thread(kernel.library.rescan)
        for problem in kernel.library.problems:
            log.warning("%s", problem)
        await kernel.instances.boot()
        await self._listeners.open(Surface("proxy"), host=config.host, port=config.proxy_port, sock=proxy)
        await self._listeners.open(Surface("manage"), host=config.host, port=config.port, sock=manage)
        await self._listeners.open_unix(Surface("admin"), socket_path(runtime_dir, config.node_name), 0o600)
        if config.strict:
            self._start_dashboard()
            await asyncio.to_thread(dashboard.wait_ready, ASSEMBLED_S)
            if self._refused:
                raise self._refused
        exchanges = self._pipeline.exchanges
        self._metrics.lag.start()
        self._calm = loop.create_task(collector.run(lambda: dashboard.is_ready, lambda: len(exchanges.all())))
        loop.call_later(DASHBOARD_AFTER_S, self._start_dashboard)
        self._preload = loop.create_task(preload(kernel.settings.get("preload"), kernel.library, self._pools))
        self._start_jobs()
        kernel.hooks.startup(kernel.facades)
        self._serving = True
        log.info(
            "LlamaMan serves: management http://%s:%d, proxy http://%s:%d",
            config.host,
            config.port,
            config.host,
            config.proxy_port,
        )
        if config.host in ("0.0.0.0", "::"):
            log.warning(
                "listening on every address of this machine; set LLAMAMAN_HOST=127.0.0.1 to narrow it"
            )
        if link := kernel.accounts.setup.link(config.local_url):
            log.warning(
                "no user exists yet; make the first one at %s (from another machine: its name for localhost)",
                link,
            )

    def _start_dashboard(self) -> None:
        """Import Flask on the first management request, or soon: not while a first answer is waited for."""
        if self._dashboard and not self._dashboard_started:
            self._dashboard_started = True
            self._dashboard.start()

    async def close(self) -> None:
        """The reverse of :meth:`open`."""
        await _step("background work", self._end_background())
        kernel = self._kernel
        jobs = asyncio.create_task(asyncio.to_thread(kernel.jobs.stop))  # no client waits for a long job
        ending = ModelUnavailable("LlamaMan is ending; try again", retry_after=10)
        asyncio.get_running_loop().call_later(SHUTDOWN_GRACE_S, self._pipeline.exchanges.end_all, ending)
        await _step("answers", self._listeners.shutdown(SHUTDOWN_GRACE_S + LAST_WORDS_S))
        await _step("jobs", jobs)
        await _step("media", asyncio.to_thread(self._media.close))
        # A boot that failed half-way leaves what it adopted to the next one.
        await _step("instances", kernel.instances.shutdown(stop_engines=self._serving))
        for notifier in (self._records, self._transitions):
            await _step("notifications", asyncio.to_thread(notifier.close))
        await _step("plugins", asyncio.to_thread(kernel.hooks.shutdown, kernel.facades))
        if self._dashboard:
            await _step("management", asyncio.to_thread(self._dashboard.stop))
        for runtime in kernel.runtimes.values():
            close = getattr(runtime, "close", None)
            if close:
                await _step(f"runtime {runtime.name}", asyncio.to_thread(close))
        await _step("sessions", asyncio.to_thread(kernel.accounts.sessions.flush))
        await _step("audit log", asyncio.to_thread(kernel.audit.close))

    async def _end_background(self) -> None:
        for task in (self._calm, self._preload):
            if task:
                task.cancel()
        self._metrics.lag.stop()

    def _tell_plugins(self, instance: Instance, previous: State | None) -> None:
        self._transitions.put(
            InstanceEvent(
                instance_id=instance.id,
                model=instance.model,
                generation=instance.generation,
                state=instance.state,
                previous=previous,
                reason=instance.reason,
                actor=instance.actor,
                at=time.time(),
            )
        )

    def _broken(self, plugin: str, reason: str) -> None:
        self._kernel.hooks.mark_broken(plugin, f"no routes: {reason}")

    def _refused_by_flask(self, plugin: str, reason: str) -> None:
        """Called in the dashboard's thread, which an exception would only start again."""
        try:
            self._broken(plugin, reason)
        except PluginError as error:
            self._refused = error

    def _refresh_models(self) -> None:
        self._kernel.library.refresh()

    def _start_jobs(self) -> None:
        kernel = self._kernel

        def rotate() -> None:
            paths = [view.log_path for view in kernel.instances.views()]
            for path in paths:
                logfiles.rotate_if_large(path)
            logfiles.bound_total(kernel.config.logs_dir, keep=paths, total_bytes=LOGS_TOTAL_BYTES)

        kernel.jobs.add(Job("rotate-logs", ROTATE_EVERY_S, rotate), "llamaman")
        kernel.jobs.add(Job("refresh-models", REFRESH_EVERY_S, self._refresh_models), "llamaman")
        kernel.jobs.add(Job("flush-sessions", SESSIONS_EVERY_S, kernel.accounts.sessions.flush), "llamaman")
        kernel.jobs.add(Job("reconcile-instances", RECONCILE_EVERY_S, kernel.instances.reconcile), "llamaman")
        kernel.jobs.add(Job("prune-audit", AUDIT_EVERY_S, kernel.audit.prune), "llamaman")
        for given in kernel.hooks.job_declare():
            try:
                kernel.jobs.add(given.value, given.plugin)
            except ValueError as error:
                kernel.hooks.mark_broken(given.plugin, f"job '{given.value.name}': {error}")
        kernel.jobs.start()


def _gate_parts(kernel: Kernel) -> GateParts:
    config = kernel.config
    name = socket.gethostname()
    return GateParts(
        keys=kernel.keys,
        require_auth=lambda: bool(kernel.settings.get("require_auth")),
        accounts=kernel.accounts,
        install_id=kernel.accounts.install_id,
        trusted_proxies=config.trusted_proxies,
        allowed_hosts=config.allowed_hosts,
        public_url=config.public_url,
        cors_origins=config.cors_origins,
        host_names=(name, name.partition(".")[0]),
    )


async def _step(what: str, work: Awaitable[object]) -> None:
    """One step of the end; its failure must not keep the later ones, such as stopping engines, from happening."""
    try:
        await work
    except Exception:
        log.exception("ending %s failed", what)


def _probe_engines(runtimes: Mapping[str, Runtime]) -> None:
    """Ask every engine build for its flags now, so that the first request does not wait for it."""
    for runtime in runtimes.values():
        try:
            runtime.engines()
        except LlamaManError as error:
            log.warning("engines of runtime %s could not be probed: %s", runtime.name, error.message)


def _sort_routes(
    kernel: Kernel,
) -> tuple[list[tuple[str, Dialect]], list[tuple[str, StreamRoute]], dict[str, list[RouteSet]]]:
    dialects: list[tuple[str, Dialect]] = []
    streams: list[tuple[str, StreamRoute]] = []
    route_sets: dict[str, list[RouteSet]] = {}
    for given in kernel.hooks.route_register(kernel.facades):
        if isinstance(given.value, RouteSet):
            route_sets.setdefault(given.plugin, []).append(given.value)
        elif isinstance(given.value, StreamRoute):
            streams.append((given.plugin, given.value))
        else:
            dialects.append((given.plugin, cast(Dialect, given.value)))
    return dialects, streams, route_sets


def _instance_parts(kernel: Kernel, doors: InstanceDoors) -> Parts:
    config, settings = kernel.config, kernel.settings
    library = kernel.library

    def policy() -> Policy:
        return Policy(
            max_models=config.max_models,
            enforce_for_admin=settings.get("admin_ui_enforce_max_models"),
            ollama_may_evict_admin=settings.get("allow_ollama_api_override_admin"),
            openai_may_evict_managed=settings.get("allow_openai_api_evict_managed"),
            cold_starts_per_minute=settings.get("inference.cold_starts_per_minute"),
        )

    def diagnose(instance: Instance, exit_: Exit) -> str:
        return cause(exit_, _last_lines(instance, kernel.runtimes.get(instance.runtime)))

    return Parts(
        store=kernel.store,
        events=kernel.events,
        sources=planner.Sources(
            node=config.node_name,
            install=kernel.data_dir.install_id,
            gpu_devices=config.llama_gpu_devices,
            model_facts=library.facts,
            model_file=library.model_file,
            preset=library.preset,
            runtimes=lambda: runtime_choice.usable(
                kernel.runtimes, config.runtime, binary_given=config.llama_server_bin is not None
            ),
            instance_key=kernel.secrets.instance_key,
            allow_unlisted=lambda: settings.get("launch.allow_unlisted_args"),
            gpu_present=lambda engine: runtime_choice.has_gpu(engine, gpu_present()),
            memory_estimate=library.memory_estimate,
            projector=library.projector,
            web_ui=lambda: bool(settings.get("instances.web_ui")),
        ),
        runtimes=kernel.runtimes,
        connect=lambda address: Upstream(Address(address.host, address.port, address.path)),
        doors=doors,
        public_ports=PortPool(config.port_range_start, config.port_range_end),
        internal_ports=PortPool(config.internal_port_range_start, config.internal_port_range_end),
        logs_dir=config.logs_dir,
        model_at=library.by_path,
        why_not_runnable=library.reason,
        policy=policy,
        managed_idle_timeout_s=config.idle_timeout_min * 60,
        load_timeout_s=config.model_load_timeout,
        health_timeout_s=config.health_check_timeout,
        drain_timeout_s=config.drain_timeout,
        request_timeout_s=config.request_timeout,
        may_enlarge=lambda: bool(settings.get("restart_for_larger_context")),
        diagnose=diagnose,
        discard_log=logfiles.remove,
        frozen_after_s=lambda: float(settings.get("instances.frozen_after_s")),
    )


def _last_lines(instance: Instance, runtime: Runtime | None) -> list[str]:
    """The end of what an engine said, from its runtime where the file has nothing of this run (a full disk)."""
    try:
        written = instance.log_path.stat().st_mtime >= (instance.started or 0) - CLOCK_SLACK_S
        lines = list(this_run(logfiles.tail(instance.log_path, CAUSE_LINES))) if written else []
    except OSError:  # a log that cannot be read must not hide the exit
        lines = []
    if lines or runtime is None or instance.handle is None:
        return lines
    return runtime.last_lines(instance.handle, CAUSE_LINES) if isinstance(runtime, KeepsLines) else []
