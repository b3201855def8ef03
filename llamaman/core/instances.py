"""All instances of this node: their registry, their birth, adoption and removal.

State changes belong to the supervisors. Methods without ``async`` that are named in the contract of the
management side (``launch``, ``stop``, ``restart``, ``remove``) may be called from any thread and
marshal to the event loop themselves; everything else runs on the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from llamaman.core import launch, launch_events, planner, usage
from llamaman.core import messages as m
from llamaman.core.admission import Admit, Confirm, Launcher, Policy, Refuse, decide
from llamaman.core.breaker import Breaker, Open
from llamaman.core.engine_client import Connect
from llamaman.core.events import Events
from llamaman.core.instance import Instance
from llamaman.core.instance_ports import Doors, InstancePorts
from llamaman.core.ports import PortPool
from llamaman.core.store import Store
from llamaman.core.supervisor import Services, Supervisor, unavailable
from llamaman.errors import (
    Conflict,
    InvalidField,
    LaunchError,
    LlamaManError,
    ModelUnavailable,
    NotFound,
    StoreCorrupt,
)
from llamaman.records import (
    Exit,
    Handle,
    InstanceView,
    LaunchPlan,
    LaunchRequest,
    ModelView,
    ResourceUse,
    State,
)
from llamaman.runtime import Runtime

log = logging.getLogger("llamaman.instances")

COLLECTION = "instances"
USER_DRAIN_S = 30.0
CALL_TIMEOUT_S = 600.0
_STILL = frozenset({State.SLEEPING, State.STOPPED, State.FAILED})

T = TypeVar("T")


class Confirmation(Conflict):
    """The caller must confirm that a limit is to be exceeded."""

    code = "confirm_required"
    confirm_required = True


@dataclass(frozen=True, slots=True)
class Parts:
    """What the registry works with."""

    store: Store
    events: Events
    sources: planner.Sources
    runtimes: Mapping[str, Runtime]
    connect: Connect
    doors: Doors
    public_ports: PortPool
    internal_ports: PortPool
    logs_dir: Path
    model_at: Callable[[Path], ModelView]
    why_not_runnable: Callable[[Path], str | None]
    policy: Callable[[], Policy]
    managed_idle_timeout_s: float
    load_timeout_s: float
    health_timeout_s: float
    drain_timeout_s: float
    diagnose: Callable[[Instance, Exit], str]
    discard_log: Callable[[Path], None]


class Instances:
    """The registry. See the module's docstring for which thread may call what."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all: dict[str, Instance] = {}
        self._by_path: dict[Path, list[Instance]] = {}
        self._supervisors: dict[str, Supervisor] = {}
        self._breaker = Breaker()
        self._listeners: list[Callable[[Instance, State | None], None]] = []
        self._starts = ThreadPoolExecutor(8, "start")
        self._stops = ThreadPoolExecutor(8, "stop")
        self._inspects = ThreadPoolExecutor(4, "inspect")
        self._writer = ThreadPoolExecutor(1, "instance-writer")
        self._removed: set[str] = set()
        self._ports = InstancePorts(parts.doors, parts.public_ports, parts.internal_ports)
        self._admission = asyncio.Lock()  # one launch at a time decides what fits, in the order of asking
        self._closing = False
        self._services = Services(
            start=self._start_engine,
            stop=self._runner(self._stops),
            inspect=self._runner(self._inspects),
            persist=self._persist,
            plan=self._plan,
            api_key=parts.sources.instance_key,
            runtime=lambda name: parts.runtimes[name],
            connect=parts.connect,
            changed=self._changed,
            diagnose=parts.diagnose,
            release_internal=self._ports.release_internal,
            release_port=self._ports.release,
            open_port=self._ports.open,
            idle_timeout_s=self._idle_timeout_s,
            breaker=self._breaker,
            load_timeout_s=parts.load_timeout_s,
            health_timeout_s=parts.health_timeout_s,
        )

    # --- for any thread ------------------------------------------------------------------------------

    def views(self) -> tuple[InstanceView, ...]:
        """Every instance, oldest first."""
        return tuple(instance.view() for instance in sorted(self._snapshot(), key=lambda i: i.created))

    def view(self, instance_id: str) -> InstanceView:
        """One instance.

        :raises NotFound: there is none of this id.
        """
        return self._require(instance_id).view()

    def launch(self, request: LaunchRequest, actor: str) -> InstanceView:
        """Accept a launch and return before the model is loaded.

        :raises InvalidField, Conflict, LaunchError: nothing is left behind.
        """
        return self._call(self._launch(request, actor, "admin"))

    def stop(self, instance_id: str, actor: str, force: bool = False) -> InstanceView:
        """Stop an instance and return when its process is gone; stopping a stopped one is no error."""
        return self._call(self._stop(instance_id, actor, force=force))

    def restart(
        self,
        instance_id: str,
        actor: str,
        options: Mapping[str, Any] | None = None,
        confirm_overcommit: bool = False,
    ) -> InstanceView:
        """Start again under the same id: a running one drains and stops first. The preset is read anew."""
        return self._call(
            self._restart(instance_id, actor, options or {}, confirm_overcommit=confirm_overcommit)
        )

    def remove(self, instance_id: str, actor: str) -> None:
        """Forget a stopped or failed instance.

        :raises Conflict: it is neither.
        """
        self._call(self._remove(instance_id, actor))

    def pause(self, instance_id: str) -> Open | None:
        """How long requests for a failed instance are still refused, because its configuration keeps dying.

        :raises NotFound: there is none of this id.
        """
        return self._breaker.check(self._require(instance_id).config_hash, time.monotonic())

    def decision(
        self, launcher: Launcher, *, embedding: bool = False, starting: str | None = None
    ) -> Admit | Confirm | Refuse:
        """What would be decided about one more running model now; nothing happens."""
        return decide(launcher, self.views(), self._p.policy(), embedding=embedding, starting=starting)

    def usage(self) -> dict[str, ResourceUse]:
        """What each running instance uses, by its id, as last measured. Does not block."""
        return usage.of_running(self._snapshot(), self._p.runtimes)

    def next_port(self) -> int | None:
        """The first free public port, or None."""
        return self._ports.next_free()

    # --- for the event loop --------------------------------------------------------------------------

    def get(self, instance_id: str) -> Instance | None:
        """One instance, or None."""
        return self._all.get(instance_id)

    def of_model(self, path: Path) -> list[Instance]:
        """The instances of one model file."""
        return self._by_path.get(path, [])

    def subscribe(self, listener: Callable[[Instance, State | None], None]) -> None:
        """Be told of every state change with the state before, on the loop."""
        self._listeners.append(listener)

    def released(self, instance: Instance) -> None:
        """A request has left an instance."""
        if instance.state is State.DRAINING and (supervisor := self._supervisors.get(instance.id)):
            supervisor.released()

    def suspect(self, instance: Instance) -> None:
        """Requests to an instance fail although its process lives."""
        if supervisor := self._supervisors.get(instance.id):
            supervisor.post(m.Suspect(instance.generation))

    def unavailable(self, instance: Instance) -> LlamaManError:
        """Why a failed instance cannot serve, as its waiters are told."""
        return unavailable(instance, self._breaker)

    def served(
        self,
        instance: Instance,
        tokens_per_second: float | None,
        prompt_per_second: float | None,
        ttft_ms: float | None,
    ) -> None:
        """A request is over; the figures are volatile and never stored."""
        instance.requests += 1
        instance.failures = 0
        if tokens_per_second is not None:
            instance.last_tokens_per_second = tokens_per_second
        if prompt_per_second is not None:
            instance.prompt_per_second = prompt_per_second
        if ttft_ms is not None:
            instance.last_ttft_ms = ttft_ms

    def is_embedding(self, model: ModelView) -> bool:
        """Whether a model runs, or would run, as an embedding model."""
        known = self._by_path.get(model.path)
        if known:
            return bool(known[0].options.get("embedding_model"))
        preset = self._p.sources.preset(model.path)
        return bool(preset and preset.get("embedding_model"))

    def preset_saved(self, model: str) -> None:
        """Apply to the instances of a model what a saved preset may change without a relaunch."""
        for instance in self._snapshot():
            if instance.model != model:
                continue
            preset = self._p.sources.preset(instance.model_path) or {}
            wanted = launch.resolve(preset, instance.overrides)
            live = {name: wanted[name] for name in launch.LIVE}
            instance.options = {**instance.options, **live}
            self._supervisors[instance.id].options_changed()

    async def ensure_running(
        self, model: ModelView, only: str | None, launcher: Launcher, *, embedding: bool
    ) -> None:
        """See that some instance of a model (or the given one) is running, coming or about to end.

        :raises ModelUnavailable: the model limit, or a configuration that keeps dying.
        """
        self._refuse_if_closing()  # what is put to sleep now must not be woken by those who queued for it
        known = self.of_model(model.path)
        instances = [i for i in known if only in (None, i.id) and i.id not in self._removed]
        if only is not None and not instances:
            raise NotFound("this instance no longer exists")
        if any(i.state not in _STILL and not self._supervisors[i.id].leaving for i in instances):
            return
        still = [i for i in instances if i.state in _STILL]
        if still:
            chosen = min(still, key=_wake_order)
            await self._wake(chosen, launcher)
            if chosen.id not in self._all or chosen.id in self._removed:
                await self.ensure_running(model, only, launcher, embedding=embedding)
            return
        if instances:
            return  # all are on their way out: the pool asks again when they are
        options = {"embedding_model": True} if embedding else {}
        request = LaunchRequest(model_path=model.path, options=options, managed=True)
        await self._launch(request, "gateway", launcher)

    # --- boot and end --------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Load the records, adopt what still runs, remove what is stale."""
        self._loop = asyncio.get_running_loop()
        documents = await self._in(self._writer, self._p.store.list, COLLECTION)
        handles: list[tuple[Runtime, Handle]] = []
        for runtime in self._p.runtimes.values():
            found = await self._in(
                self._inspects, runtime.find, self._p.sources.node, self._p.sources.install
            )
            handles += [(runtime, handle) for handle in found]
        for document in documents:
            self._enter(self._read_record(document.key, document.value))
        own = {instance.id: _own(instance, handles) for instance in self._snapshot()}
        for instance in self._snapshot():  # all before any is opened: nobody gets the port of another
            if own[instance.id] is not None or instance.state not in (State.STOPPED, State.FAILED):
                with contextlib.suppress(LlamaManError):  # opening it says so
                    self._ports.keep(instance)
        for instance in self._snapshot():
            if (index := own[instance.id]) is not None:
                await self._adopt(instance, handles[index][1])
        adopted = set(own.values())
        stale = [found for index, found in enumerate(handles) if index not in adopted]
        await asyncio.gather(*(self._end_stale(runtime, handle) for runtime, handle in stale))
        for document in documents:
            if own[document.key] is None:
                await self._resettle(self._all[document.key], document.value)

    def _read_record(self, key: str, value: Mapping[str, Any]) -> Instance:
        try:
            return Instance.from_document(value, self._log_path(key))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(
                f"the record of instance {key} in the collection '{COLLECTION}' cannot be read "
                f"({type(error).__name__}: {error}); repair or delete it, its engine is left running"
            ) from error

    async def _end_stale(self, runtime: Runtime, handle: Handle) -> None:
        log.warning("stopping a stale engine of instance %s", handle.instance_id)
        try:
            await self._in(self._stops, runtime.stop, handle, 5.0)
        except Exception:
            log.exception("the stale engine of instance %s could not be stopped", handle.instance_id)

    async def _adopt(self, instance: Instance, handle: Handle) -> None:
        instance.state = State.STARTING  # nobody may be served before there is a connection to the engine
        instance.handle = handle
        if handle.address.port:
            self._ports.keep_internal(instance, handle.address.port)
        supervisor = self._supervisors[instance.id]
        if instance.desired != "running":  # its stop was under way when the last manager ended
            supervisor.post(m.Stop(instance.desired, "boot", "stop completed at boot", 0))
            if instance.desired == "stopped":
                return
        try:
            await self._ports.open_some(instance)
        except LlamaManError as error:
            reason = f"its port could not be opened at boot: {error.message}"
            supervisor.post(m.Stop("stopped", "boot", reason, 0))
        else:
            if instance.desired == "running":
                supervisor.post(m.Adopted(handle))

    async def _resettle(self, instance: Instance, stored: Mapping[str, Any]) -> None:
        """No process: a record that said it ran sleeps if a request may wake it, else it is stopped."""
        instance.handle = None
        instance.internal_port = None
        if instance.state not in _STILL:
            stays = instance.desired == "stopped" or not instance.wakes_on_request
            instance.state = State.STOPPED if stays else State.SLEEPING
            instance.desired = "stopped" if stays else "sleeping"
            instance.reason = "its process was gone when LlamaMan started"
        if instance.state is State.SLEEPING:
            try:
                self._ports.keep(instance)
                await self._ports.open(instance)
            except LlamaManError as error:
                instance.state = State.STOPPED
                instance.desired = "stopped"
                instance.reason = f"its port could not be opened at boot: {error.message}"
        if instance.state is State.STOPPED:
            await self._ports.release(instance)
        if instance.document() != stored:
            try:
                await self._persist(instance)
            except LlamaManError as error:
                log.warning("instance %s: its state could not be stored: %s", instance.id, error.message)
        if instance.options.get("start_at_boot") and instance.state is not State.FAILED:
            self._supervisors[instance.id].post(m.Want("boot", "start_at_boot is set"))

    async def shutdown(self, *, stop_engines: bool) -> None:
        """End the supervision; engines are stopped too unless the next manager shall adopt them."""
        self._closing = True
        if stop_engines:
            loop = asyncio.get_running_loop()
            waiters = []
            for instance in self._snapshot():
                if instance.state in _STILL:
                    continue
                done: asyncio.Future[bool] = loop.create_future()
                target: m.Target = "sleeping" if instance.wakes_on_request else "stopped"
                self._supervisors[instance.id].post(
                    m.Stop(target, "shutdown", "LlamaMan ended", 0, done=done)
                )
                waiters.append(done)
            if waiters:
                await asyncio.wait(waiters, timeout=20)
        for supervisor in tuple(self._supervisors.values()):
            await supervisor.close()
        for pool in (self._starts, self._stops, self._inspects, self._writer):
            await asyncio.to_thread(pool.shutdown)

    # --- launching -----------------------------------------------------------------------------------

    async def _launch(self, request: LaunchRequest, actor: str, launcher: Launcher) -> InstanceView:
        model = self._p.model_at(request.model_path)
        if not model.runnable:
            reason = self._p.why_not_runnable(model.path) or "llama.cpp cannot run it"
            raise InvalidField("model_path", f"model '{model.name}' cannot be launched: {reason}")
        resolved = await self._in(self._starts, planner.resolve, model.path, request.options, self._p.sources)
        async with self._admission:
            await self._admit(
                launcher,
                embedding=bool(resolved.options["embedding_model"]),
                confirmed=request.confirm_overcommit,
                starting=None,
            )
            return await self._create(model, resolved, request, actor)

    async def _create(
        self, model: ModelView, resolved: planner.Resolved, request: LaunchRequest, actor: str
    ) -> InstanceView:
        self._refuse_if_closing()
        instance_id = str(uuid.uuid4())
        port = self._ports.claim(request.port, instance_id)
        instance = Instance(
            id=instance_id,
            model=model.name,
            model_path=model.path,
            port=port,
            runtime=resolved.runtime.name,
            log_path=self._log_path(instance_id),
            overrides=dict(request.options),
            options=resolved.options,
            preset=request.preset,
            managed=request.managed,
            state=State.QUEUED,
            desired="running",
            reason="launched",
            actor=actor,
            engine=resolved.engine.name,
            config_hash=resolved.config_hash,
        )
        try:
            await self._write(instance)
        except BaseException:
            self._ports.unclaim(instance_id)
            raise
        self._enter(instance)
        self._changed(instance, None)
        self._supervisors[instance_id].post(m.Want(actor, "launched"))
        return instance.view()

    async def _wake(self, instance: Instance, launcher: Launcher) -> None:
        stops = instance.stops
        if (pause := self._breaker.check(instance.config_hash, time.monotonic())) and (
            await self._unchanged(instance)
        ):
            raise ModelUnavailable(
                f"model '{instance.model}' could not be loaded: {pause.reason}",
                retry_after=max(1, round(pause.seconds)),
            )
        embedding = bool(instance.options.get("embedding_model"))
        async with self._admission:
            await self._admit(launcher, embedding=embedding, confirmed=False, starting=instance.id)
            self._refuse_if_closing()
            if instance.id not in self._all or instance.id in self._removed:
                return  # it was removed while others were decided about
            if instance.stops != stops:
                raise ModelUnavailable(f"model '{instance.model}' was stopped", retry_after=5)
            await self._supervisors[instance.id].tell(m.Want("gateway", "woken by a request"))

    async def _unchanged(self, instance: Instance) -> bool:
        """Whether a wake would try the very configuration that keeps dying."""
        try:
            resolved = await self._in(
                self._starts, planner.resolve, instance.model_path, instance.overrides, self._p.sources
            )
        except LlamaManError:
            return True
        if resolved.config_hash == instance.config_hash:
            return True
        instance.config_hash = resolved.config_hash
        return False

    async def _admit(
        self, launcher: Launcher, *, embedding: bool, confirmed: bool, starting: str | None
    ) -> None:
        decision = decide(
            launcher,
            self.views(),
            self._p.policy(),
            embedding=embedding,
            confirmed=confirmed,
            starting=starting,
        )
        match decision:
            case Admit(victims=victims):
                for victim in victims:
                    await self._evict(victim)
            case Confirm(message=message):
                raise Confirmation(message)
            case _:
                raise ModelUnavailable(decision.message, retry_after=30)

    async def _evict(self, instance_id: str) -> None:
        instance = self._all.get(instance_id)
        if instance is None:
            return
        target: m.Target = "sleeping" if instance.wakes_on_request else "stopped"
        gone = await self._end(
            instance, m.Stop(target, "admission", "evicted", self._p.drain_timeout_s, give_up=True)
        )
        if not gone:
            raise ModelUnavailable(
                f"model '{instance.model}' is busy and could not be evicted within "
                f"{self._p.drain_timeout_s:g} s (DRAIN_TIMEOUT)",
                retry_after=30,
            )

    async def _plan(self, instance: Instance, generation: int) -> LaunchPlan:
        self._refuse_if_closing()
        resolved = await self._in(
            self._starts, planner.resolve, instance.model_path, instance.overrides, self._p.sources
        )
        instance.options = resolved.options
        instance.engine = resolved.engine.name
        instance.runtime = resolved.runtime.name
        instance.config_hash = resolved.config_hash
        port = self._ports.claim_internal(instance)
        return planner.plan(instance, generation, resolved, port, self._p.sources)

    # --- stopping ------------------------------------------------------------------------------------

    async def _stop(self, instance_id: str, actor: str, *, force: bool) -> InstanceView:
        instance = self._require(instance_id)
        instance.stops += 1
        drain = 0.0 if force else USER_DRAIN_S
        grace = m.SHORT_GRACE_S if force else m.STOP_GRACE_S
        stop = m.Stop("stopped", actor, "stopped by an administrator", drain, grace_s=grace)
        await self._end(instance, stop)
        return instance.view()

    def _end(self, instance: Instance, stop: m.Stop) -> asyncio.Future[bool]:
        """Ask for a stop now; the result is False when the instance goes on or could not be ended."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._supervisors[instance.id].post(replace(stop, done=done))
        return done

    async def _restart(
        self, instance_id: str, actor: str, options: Mapping[str, Any], *, confirm_overcommit: bool
    ) -> InstanceView:
        instance = self._require(instance_id)
        stops = instance.stops
        overrides = {**instance.overrides, **options}
        resolved = await self._in(
            self._starts, planner.resolve, instance.model_path, overrides, self._p.sources
        )
        want = m.Want(actor, "restarted")
        async with self._admission:
            await self._admit(
                "admin",
                embedding=bool(resolved.options["embedding_model"]),
                confirmed=confirm_overcommit,
                starting=instance_id,
            )
            self._refuse_if_closing()
            supervisor = self._supervisors[self._require(instance_id).id]  # unless it was removed meanwhile
            if instance.stops != stops:
                raise Conflict("the instance was stopped meanwhile; restart it again if it shall run")
            before, instance.overrides = instance.overrides, overrides
            if instance.state in _STILL and not instance.handle:
                instance.options = resolved.options
                await self._ports.reserve(instance)
                await supervisor.tell(want)
                return instance.view()
            # "sleeping" keeps the port, and requests that come meanwhile wait for the new process. The want
            # lies right behind the stop, so that a later stop by somebody else wins.
            ended = self._end(instance, m.Stop("sleeping", actor, "restarting", USER_DRAIN_S))
            supervisor.post(want)
        if not await ended:
            if instance.overrides is overrides:  # unless another restart has others by now
                instance.overrides = before
                await self._persist(instance)
            raise LaunchError(f"the instance was not restarted: {instance.reason}")
        return instance.view()

    async def _remove(self, instance_id: str, actor: str) -> None:
        instance = self._require(instance_id)
        if not _has_ended(instance):
            raise Conflict("stop the instance before removing it")
        if instance.handle:
            raise Conflict("its engine could not be ended; stop the instance again before removing it")
        self._removed.add(instance_id)
        try:
            await self._in(self._writer, self._p.store.delete, COLLECTION, instance_id)
        except LlamaManError:
            self._removed.discard(instance_id)
            raise
        if not _has_ended(instance):
            self._removed.discard(instance_id)
            await self._persist(instance)
            raise Conflict("the instance was started again meanwhile; stop it before removing it")
        supervisor = self._supervisors.pop(instance_id)
        self._all.pop(instance_id, None)
        self._by_path[instance.model_path].remove(instance)
        if not self._by_path[instance.model_path]:
            del self._by_path[instance.model_path]
        await supervisor.close()  # first, so that nothing it was still told starts a process
        await self._ports.release(instance, forgotten=True)
        self._ports.release_internal(instance)
        await self._in(self._inspects, self._p.discard_log, instance.log_path)
        self._removed.discard(instance_id)
        self._publish(instance, None, "removed", actor)

    # --- what supervisors use ------------------------------------------------------------------------

    async def _persist(self, instance: Instance) -> None:
        if instance.id in self._all and instance.id not in self._removed:
            await self._write(instance)

    async def _write(self, instance: Instance) -> None:
        await self._in(self._writer, self._p.store.put, COLLECTION, instance.id, instance.document())

    def _idle_timeout_s(self, instance: Instance) -> float:
        own = instance.idle_timeout_option_s
        return own or (self._p.managed_idle_timeout_s if instance.managed else 0.0)

    def _changed(self, instance: Instance, previous: State | None) -> None:
        log.info(
            "instance %s (%s): %s: %s", instance.id[:8], instance.model, instance.state.value, instance.reason
        )
        self._publish(instance, previous, instance.state.value, instance.actor)
        for listener in self._listeners:
            try:
                listener(instance, previous)
            except Exception:  # it must not end the supervision
                log.exception("a listener failed on instance %s", instance.id)

    def _publish(self, instance: Instance, previous: State | None, kind: str, actor: str) -> None:
        self._p.events.publish(
            "instances",
            kind,
            {
                "instance_id": instance.id,
                "model": instance.model,
                "generation": instance.generation,
                "previous": previous.value if previous else None,
            },
            actor=actor,
            reason=instance.reason,
        )

    async def _start_engine(self, start: Callable[[LaunchPlan], Handle], plan: LaunchPlan) -> Handle:
        actor = instance.actor if (instance := self._all.get(plan.instance_id)) else ""
        try:
            handle = await self._in(self._starts, start, plan)
        except LlamaManError as error:
            launch_events.failed(self._p.events, plan, actor, error)
            raise
        launch_events.started(self._p.events, plan, actor)
        return handle

    # --- small things --------------------------------------------------------------------------------

    def _enter(self, instance: Instance) -> None:
        self._all[instance.id] = instance
        self._by_path.setdefault(instance.model_path, []).append(instance)
        supervisor = self._supervisors[instance.id] = Supervisor(instance, self._services)
        supervisor.run()

    def _require(self, instance_id: str) -> Instance:
        instance = self._all.get(instance_id)
        if instance is None or instance_id in self._removed:
            raise NotFound("Not found")
        return instance

    def _snapshot(self) -> Sequence[Instance]:
        return tuple(self._all.values())

    def _log_path(self, instance_id: str) -> Path:
        return self._p.logs_dir / f"{instance_id}.log"

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ModelUnavailable("LlamaMan is ending; try again", retry_after=5)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None or self._closing:
            work.close()
            raise ModelUnavailable("LlamaMan is starting or ending; try again", retry_after=2)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def _runner(self, pool: ThreadPoolExecutor) -> Callable[..., Awaitable[Any]]:
        async def run(function: Callable[..., Any], *args: Any) -> Any:
            return await self._in(pool, function, *args)

        return run

    async def _in(self, pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
        try:
            running = asyncio.get_running_loop().run_in_executor(pool, lambda: function(*args))
        except RuntimeError:  # the pool was shut down
            self._refuse_if_closing()
            raise
        return await running


def _has_ended(instance: Instance) -> bool:
    return instance.state in (State.STOPPED, State.FAILED)


def _wake_order(instance: Instance) -> tuple[int, float]:
    """Sleeping before stopped before failed; then the oldest."""
    return ([State.SLEEPING, State.STOPPED, State.FAILED].index(instance.state), instance.created)


def _own(instance: Instance, handles: Sequence[tuple[Runtime, Handle]]) -> int | None:
    """The index of the process that is this record's current generation."""
    for index, (runtime, handle) in enumerate(handles):
        if runtime.name != instance.runtime or handle.instance_id != instance.id:
            continue
        if handle.generation != instance.generation:
            continue
        recorded = instance.handle
        if recorded and recorded.generation == handle.generation and recorded.pid != handle.pid:
            continue
        return index
    return None
