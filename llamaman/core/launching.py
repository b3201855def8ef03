"""How instances come to run: what is admitted, who leaves for it, and what becomes of a plan. On the event loop."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamaman.core import fetching, launch, launch_events, memory_guard, planner
from llamaman.core import messages as m
from llamaman.core.breaker import Breaker
from llamaman.core.demand import Demand
from llamaman.core.instance import STILL, Instance
from llamaman.core.instance_ports import InstancePorts
from llamaman.core.memory_guard import Allowance
from llamaman.core.parts import Parts
from llamaman.core.reach import Reach
from llamaman.core.room import Room, Start, Unwanted
from llamaman.core.roster import Roster
from llamaman.core.runtime_choice import needs_port
from llamaman.core.services import Report
from llamaman.core.workers import Workers
from llamaman.errors import (
    EngineDied,
    InvalidField,
    LlamaManError,
    ModelUnavailable,
    NotFound,
)
from llamaman.records import Handle, InstanceView, LaunchPlan, LaunchRequest, ModelView, State


class Launching:
    """Works on the registry's own parts.

    :param write: stores a record. :param end: asks for a stop and tells whether it came to pass.
    :param entered: announces an instance that is new.
    """

    def __init__(
        self,
        parts: Parts,
        roster: Roster,
        workers: Workers,
        ports: InstancePorts,
        reach: Reach,
        breaker: Breaker,
        *,
        write: Callable[[Instance], Awaitable[None]],
        end: Callable[[Instance, m.Stop], Awaitable[bool]],
        entered: Callable[[Instance], None],
    ) -> None:
        self._p = parts
        self._roster = roster
        self._workers = workers
        self._ports = ports
        self._reach = reach
        self._breaker = breaker
        self._write = write
        self._end = end
        self._entered = entered
        self.room = Room(
            roster,
            parts.events,
            parts.policy,
            end=end,
            refuse_if_closing=workers.refuse_if_closing,
            refuse_if_lost=reach.refuse_if_lost,
            drain_s=parts.drain_timeout_s,
            patience_s=parts.request_timeout_s,
        )

    # --- something is to run -------------------------------------------------------------------------

    async def ensure_running(self, demand: Demand) -> None:
        """See that some instance of a model (or the given one) is running, coming or about to end.

        :raises ModelUnavailable: the model limit, a configuration that keeps dying, or a lost runtime.
        """
        self._workers.refuse_if_closing()  # what is put to sleep now must not be woken by those who queued for it
        instances = self._of(demand)
        if demand.only is not None and not instances:
            raise NotFound("this instance no longer exists")
        if self._is_coming(instances):
            return
        still = [i for i in instances if i.state in STILL]
        try:
            if still:
                chosen = min(still, key=_wake_order)
                await self._wake(chosen, demand)
                if not self._roster.has(chosen):
                    await self.ensure_running(demand)
            elif not instances:  # else all are on their way out: the pool asks again when they are
                await self._launch_for(demand)
        except Unwanted:
            return

    def _of(self, demand: Demand) -> list[Instance]:
        known = self._roster.of_path(demand.model.path)
        return [i for i in known if demand.only in (None, i.id) and self._roster.has(i)]

    def _is_coming(self, instances: Sequence[Instance]) -> bool:
        return any(i.state not in STILL and not self._roster.supervisor(i).leaving for i in instances)

    def _is_wanted(self, demand: Demand) -> bool:
        """Whether somebody waits, and for something that nobody else has started meanwhile."""
        return demand.wanted() and not self._is_coming(self._of(demand))

    async def launch(self, request: LaunchRequest, actor: str) -> InstanceView:
        """A new instance by hand, which begins to start."""
        model = self._launchable(request.model_path)
        resolved = await self.resolve(model, request.options)
        embedding = bool(resolved.options["embedding_model"])
        async with self.room.for_one(
            Start(model.name, "admin", embedding=embedding, confirmed=request.confirm_overcommit)
        ):
            return await self._create(model, resolved, request, actor)

    async def _launch_for(self, demand: Demand) -> None:
        """A new instance for requests."""
        model = self._launchable(demand.model.path)
        options: dict[str, Any] = {"embedding_model": True} if demand.embedding else {}
        if size := self._context_for(model, demand.context):
            options["ctx_size"] = size
        resolved = await self.resolve(model, options)
        embedding = bool(resolved.options["embedding_model"])
        request = LaunchRequest(model_path=model.path, options=options, managed=True)
        start = Start(
            model.name,
            demand.launcher,
            embedding=embedding,
            key=demand.key,
            wanted=lambda: self._is_wanted(demand),
        )
        async with self.room.for_one(start) as place:
            if not self._of(demand):  # unless somebody else was faster
                await self._create(model, resolved, request, "gateway")
                place.begun()

    def _launchable(self, path: Path) -> ModelView:
        model = self._p.model_at(path)
        if not model.runnable:
            reason = self._p.why_not_runnable(model.path) or "llama.cpp cannot run it"
            raise InvalidField("model_path", f"model '{model.name}' cannot be launched: {reason}")
        return model

    def _context_for(self, model: ModelView, asked: int | None) -> int | None:
        """The context size that a client's wish adds to a start by request; None for no change.

        Never less than the default, which other clients count on, and never against a preset.
        """
        if asked is None or "ctx_size" in (self._p.sources.preset(model.path) or {}):
            return None
        size = min(asked, model.context_length or asked)
        return size if size > launch.defaults()["ctx_size"] else None

    async def _create(
        self, model: ModelView, resolved: planner.Resolved, request: LaunchRequest, actor: str
    ) -> InstanceView:
        self._workers.refuse_if_closing()
        instance_id = str(uuid.uuid4())
        port = self._ports.claim(request.port, instance_id)
        instance = Instance(
            id=instance_id,
            model=model.name,
            model_path=model.path,
            port=port,
            runtime=resolved.runtime.name,
            log_path=self._p.log_path(instance_id),
            overrides=dict(request.options),
            options=resolved.options,
            preset=request.preset,
            managed=request.managed,
            state=State.QUEUED,
            desired="running",
            reason="launched",
            actor=actor,
            engine=resolved.engine.name,
            engine_digest=resolved.engine.digest,
            config_hash=resolved.config_hash,
        )
        try:
            await self._write(instance)
        except BaseException:
            self._ports.unclaim(instance_id)
            raise
        supervisor = self._roster.enter(instance)
        self._entered(instance)
        supervisor.post(m.Want(actor, "launched"))
        return instance.view()

    async def _wake(self, instance: Instance, demand: Demand) -> None:
        stops = instance.stops
        if self._reach.reason(instance.runtime):  # unless its preset names an engine elsewhere by now
            await self.resolve(instance, instance.overrides)
        if instance.managed and instance.state is State.FAILED and "ctx_size" in instance.overrides:
            # A client's wish, under which it did not load: others need not share it, nor the pause after it.
            instance.overrides = {k: v for k, v in instance.overrides.items() if k != "ctx_size"}
        if (pause := self._breaker.check(instance.config_hash, time.monotonic())) and (
            await self._unchanged(instance)
        ):
            raise ModelUnavailable(
                f"model '{instance.model}' could not be loaded: {pause.reason}",
                retry_after=max(1, round(pause.seconds)),
            )
        embedding = bool(instance.options.get("embedding_model"))
        start = Start(
            instance.model,
            demand.launcher,
            embedding=embedding,
            starting=instance.id,
            key=demand.key,
            wanted=lambda: self._is_wanted(demand),
        )
        async with self.room.for_one(start) as place:
            if not self._roster.has(instance):
                return  # it was removed while others were decided about
            if self._is_coming(self._of(demand)):
                return  # somebody else was faster
            if instance.stops != stops:
                raise ModelUnavailable(f"model '{instance.model}' was stopped", retry_after=5)
            if instance.managed and (size := self._context_for(demand.model, demand.context)):
                instance.overrides = {
                    **instance.overrides,
                    "ctx_size": max(size, instance.overrides.get("ctx_size", 0)),
                }
            place.begun()
            await self._roster.supervisor(instance).tell(m.Want("gateway", "woken by a request"))

    async def enlarge(self, demand: Demand) -> None:
        """Put an idle instance that requests have started to sleep if it has less context than is asked for.

        It wakes with more. One that is in use, or that was launched by hand, stays as it is.
        """
        size = self._context_for(demand.model, demand.context)
        ready = [i for i in self._of(demand) if i.state is State.READY]
        if size is None or len(ready) != 1:
            return
        (instance,) = ready
        has = instance.context_length
        if has is None or has >= size or instance.active or instance.queued or not instance.managed:
            return
        await self._end(instance, m.Stop("sleeping", "gateway", "restarting with more context", 0))

    async def _unchanged(self, instance: Instance) -> bool:
        """Whether a wake would try the very configuration that keeps dying."""
        try:
            resolved = await self.resolve(instance, instance.overrides)
        except LlamaManError:
            return True
        if resolved.config_hash == instance.config_hash:
            return True
        instance.config_hash = resolved.config_hash
        return False

    def unavailable(self, instance: Instance) -> LlamaManError:
        """Why a request cannot be served by a failed instance, as the waiters are told."""
        pause = self._breaker.check(instance.config_hash, time.monotonic())
        retry = max(1, round(pause.seconds)) if pause else 5
        message = f"model '{instance.model}' could not be loaded: {instance.reason}"
        if instance.last_exit is not None:
            return EngineDied(message, retry_after=retry)
        return ModelUnavailable(message, retry_after=retry)

    # --- what supervisors use ------------------------------------------------------------------------

    async def resolve(self, model: ModelView | Instance, overrides: Mapping[str, Any]) -> planner.Resolved:
        """Options, runtime and engine of a launch.

        :raises RuntimeLost: the runtime that it needs cannot be reached now.
        """
        path = model.model_path if isinstance(model, Instance) else model.path
        workers = self._workers
        resolved = await workers.run(workers.starts, planner.resolve, path, overrides, self._p.sources)
        self._reach.refuse_if_lost(resolved.runtime.name)
        return resolved

    async def plan(self, instance: Instance, generation: int, report: Report) -> LaunchPlan:
        """The plan of the next generation; its engine is here when this returns.

        :param report: told while the engine is fetched.
        """
        self._workers.refuse_if_closing()
        start = self._workers.on(self._workers.starts)
        resolved = await self._resolve_anew(instance)
        if await fetching.fetch(resolved.runtime, resolved.engine, start, report):
            resolved = await self._resolve_anew(instance)  # its flags are known only now
        port = self._ports.claim_internal(instance) if needs_port(resolved.runtime) else 0
        plan: LaunchPlan = await start(planner.plan, instance, generation, resolved, port, self._p.sources)
        instance.memory_estimate = plan.memory_estimate
        return plan

    async def _resolve_anew(self, instance: Instance) -> planner.Resolved:
        while True:
            overrides = instance.overrides
            resolved = await self.resolve(instance, overrides)
            if instance.overrides is overrides:  # else a preset was saved meanwhile, and counts
                break
        instance.options = resolved.options
        instance.engine = resolved.engine.name
        instance.engine_digest = resolved.engine.digest
        instance.notes = resolved.notes
        instance.uses_gpu = resolved.uses_gpu
        instance.runtime = resolved.runtime.name
        instance.config_hash = resolved.config_hash
        self._reach.show(instance)
        return resolved

    async def start_engine(self, start: Callable[[LaunchPlan], Handle], plan: LaunchPlan) -> Handle:
        """Start it, and have the audit log know."""
        actor = instance.actor if (instance := self._roster.get(plan.instance_id)) else ""
        try:
            handle = await self._workers.run(self._workers.starts, start, plan)
        except LlamaManError as error:
            launch_events.failed(self._p.events, plan, actor, error)
            raise
        launch_events.started(self._p.events, plan, actor)
        return handle

    def allowance(self, instance: Instance) -> Allowance:
        """The memory that an instance may take while it loads. Blocks."""
        estimate = instance.memory_estimate
        return memory_guard.allowance(
            estimate, 0 if estimate is not None else self._p.model_at(instance.model_path).size
        )


def _wake_order(instance: Instance) -> tuple[int, float]:
    """Sleeping before stopped before failed; then the oldest."""
    return ([State.SLEEPING, State.STOPPED, State.FAILED].index(instance.state), instance.created)
