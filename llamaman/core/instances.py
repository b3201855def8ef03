"""All instances of this node: their registry, their birth, adoption and removal.

State changes belong to the supervisors. Methods without ``async`` that are named in the contract of the
management side (``launch``, ``stop``, ``restart``, ``remove``) may be called from any thread and
marshal to the event loop themselves; everything else runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from llamaman.core import launch, usage
from llamaman.core import messages as m
from llamaman.core.admission import Decision, Launcher, decide
from llamaman.core.adoption import Adoption
from llamaman.core.breaker import Breaker, Open
from llamaman.core.by_hand import ByHand
from llamaman.core.demand import Demand
from llamaman.core.instance import STILL, Instance
from llamaman.core.instance_ports import InstancePorts
from llamaman.core.launching import Launching
from llamaman.core.parts import COLLECTION, Parts
from llamaman.core.reach import Reach
from llamaman.core.reconcile import Reconcile
from llamaman.core.roster import Roster
from llamaman.core.services import Services
from llamaman.core.supervisor import Supervisor
from llamaman.core.workers import Workers
from llamaman.errors import (
    LlamaManError,
    ModelUnavailable,
)
from llamaman.records import InstanceView, LaunchRequest, ModelView, ResourceUse, State

log = logging.getLogger("llamaman.instances")

CALL_TIMEOUT_S = 600.0
#: The idle time of what is to sleep as soon as nobody needs it; 0 would mean never.
AT_ONCE_S = 0.001
T = TypeVar("T")


#: Told on the loop of an instance and the state before.
Listener = Callable[[Instance, State | None], None]


class Instances:
    """The registry. See the module's docstring for which thread may call what."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._breaker = Breaker()
        self._listeners: list[Listener] = []
        self._reason_listeners: list[Listener] = []
        self._workers = workers = Workers()
        self._roster = Roster(lambda instance: Supervisor(instance, self._services))
        self._reach = Reach(self._roster, parts.runtimes, self._told)
        self._ports = InstancePorts(parts.doors, parts.public_ports, parts.internal_ports)
        self._launching = Launching(
            parts,
            self._roster,
            workers,
            self._ports,
            self._reach,
            self._breaker,
            write=self._write,
            end=self._end,
            entered=lambda instance: self._changed(instance, None),
        )
        self._by_hand = ByHand(
            parts,
            self._roster,
            workers,
            self._ports,
            self._reach,
            self._launching,
            persist=self._persist,
            end=self._end,
            removed=lambda instance, actor: self._publish(instance, None, "removed", actor),
        )
        self._adoption = Adoption(parts, self._roster, workers, self._ports, self._reach)
        self._reconcile = Reconcile(parts, self._roster, workers, self._reach, self._adoption)
        self._services = Services(
            start=self._launching.start_engine,
            stop=workers.on(workers.stops),
            inspect=workers.on(workers.inspects),
            persist=self._persist,
            plan=self._launching.plan,
            api_key=parts.sources.instance_key,
            runtime=lambda name: parts.runtimes[name],
            lost=self._reach.reason,
            connect=parts.connect,
            changed=self._changed,
            told=self._told,
            diagnose=parts.diagnose,
            allowance=self._launching.allowance,
            release_internal=self._ports.release_internal,
            release_port=self._ports.release,
            open_port=self._ports.open,
            idle_timeout_s=self._idle_timeout_s,
            breaker=self._breaker,
            load_timeout_s=parts.load_timeout_s,
            health_timeout_s=parts.health_timeout_s,
            frozen_after_s=parts.frozen_after_s,
        )

    # --- for any thread ------------------------------------------------------------------------------

    def views(self) -> tuple[InstanceView, ...]:
        """Every instance, oldest first."""
        return tuple(instance.view() for instance in sorted(self._roster.all(), key=lambda i: i.created))

    def view(self, instance_id: str) -> InstanceView:
        """One instance.

        :raises NotFound: there is none of this id.
        """
        return self._roster.require(instance_id).view()

    def launch(self, request: LaunchRequest, actor: str) -> InstanceView:
        """Accept a launch and return before the model is loaded.

        :raises InvalidField, Conflict, LaunchError, RuntimeLost: nothing is left behind.
        """
        return self._call(self._launching.launch(request, actor))

    def stop(self, instance_id: str, actor: str, force: bool = False) -> InstanceView:
        """Stop an instance and return when its process is gone; stopping a stopped one is no error.

        :raises RuntimeLost: it cannot be reached now, and goes on as it is.
        """
        return self._call(self._by_hand.stop(instance_id, actor, force=force))

    def restart(
        self,
        instance_id: str,
        actor: str,
        options: Mapping[str, Any] | None = None,
        confirm_overcommit: bool = False,
    ) -> InstanceView:
        """Start again under the same id: a running one drains and stops first. The preset is read anew."""
        return self._call(
            self._by_hand.restart(instance_id, actor, options or {}, confirm_overcommit=confirm_overcommit)
        )

    def remove(self, instance_id: str, actor: str) -> None:
        """Forget a stopped or failed instance.

        :raises Conflict: it is neither.
        """
        self._call(self._by_hand.remove(instance_id, actor))

    def reconcile(self) -> None:
        """Make what runs and what is recorded agree again, and return when that is done.

        :raises ModelUnavailable: the manager is starting or ending.
        """
        self._call(self._reconcile.run())

    def pause(self, instance_id: str) -> Open | None:
        """How long requests for a failed instance are still refused, because its configuration keeps dying.

        :raises NotFound: there is none of this id.
        """
        return self._breaker.check(self._roster.require(instance_id).config_hash, time.monotonic())

    def decision(
        self, launcher: Launcher, *, embedding: bool = False, starting: str | None = None
    ) -> Decision:
        """What would be decided about one more running model now; nothing happens."""
        return decide(launcher, self.views(), self._p.policy(), embedding=embedding, starting=starting)

    def waits(self) -> Sequence[tuple[str, str]]:
        """(model, what it waits for) of every start that waits for room, in their order."""
        return self._launching.room.waits()

    def usage(self) -> dict[str, ResourceUse]:
        """What each running instance uses, by its id, as last measured. Does not block."""
        return usage.of_running(self._roster.all(), self._p.runtimes)

    def next_port(self) -> int | None:
        """The first free public port, or None."""
        return self._ports.next_free()

    # --- for the event loop --------------------------------------------------------------------------

    def get(self, instance_id: str) -> Instance | None:
        """One instance, or None."""
        return self._roster.get(instance_id)

    def of_model(self, path: Path) -> list[Instance]:
        """The instances of one model file."""
        return self._roster.of_path(path)

    def subscribe(self, listener: Listener, *, reasons: bool = False) -> None:
        """Be told of every state change with the state before, on the loop.

        :param reasons: also when only the reason has changed for which a request has to wait or need not: then
            the state before is the state now.
        """
        self._listeners.append(listener)
        if reasons:
            self._reason_listeners.append(listener)

    def released(self, instance: Instance) -> None:
        """A request has left an instance."""
        if instance.state is State.DRAINING and self._roster.get(instance.id):
            self._roster.supervisor(instance).released()
        room = self._launching.room
        if room.is_awaited and not instance.active:
            room.stir()

    def keep_alive(self, instance: Instance, seconds: float | None) -> None:
        """A client has used an instance, and wants it kept for so long; ``math.inf`` for ever, None: no change.

        What was launched by hand keeps its own idle time.
        """
        instance.last_release = time.monotonic()
        if seconds is None or not instance.managed or instance.state in STILL:
            return
        if not self._roster.get(instance.id):
            return
        instance.keep_alive_s = seconds
        self._roster.supervisor(instance).rearm_idle()

    def unload(self, path: Path) -> None:
        """Have what requests have started of a model sleep as soon as nobody needs it."""
        for instance in self._roster.of_path(path):
            if instance.managed and instance.state not in STILL:
                instance.keep_alive_s = 0.0
                self._roster.supervisor(instance).rearm_idle()

    async def enlarge(self, demand: Demand) -> None:
        """Make an idle instance ready to come back with more context, where the setting allows that."""
        if self._p.may_enlarge():
            await self._launching.enlarge(demand)

    def suspect(self, instance: Instance) -> None:
        """Requests to an instance fail although its process lives."""
        if self._roster.get(instance.id):
            self._roster.supervisor(instance).post(m.Suspect(instance.generation))

    def unavailable(self, instance: Instance) -> LlamaManError:
        """Why a failed instance cannot serve, as its waiters are told."""
        return self._launching.unavailable(instance)

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
        known = self._roster.of_path(model.path)
        if known:
            return bool(known[0].options.get("embedding_model"))
        preset = self._p.sources.preset(model.path) or {}
        return bool(preset.get("embedding_model", model.embedding))

    def preset_saved(self, model: str) -> None:
        """Apply to the instances of a model what a saved preset may change without a relaunch.

        What it names counts from now on, in place of what the launch said: whoever saves it means these instances.
        """
        for instance in self._roster.all():
            if instance.model != model:
                continue
            preset = self._p.sources.preset(instance.model_path) or {}
            said_now = launch.LIVE & preset.keys()
            instance.overrides = {k: v for k, v in instance.overrides.items() if k not in said_now}
            wanted = launch.resolve(preset, instance.overrides)
            live = {name: wanted[name] for name in launch.LIVE}
            instance.options = {**instance.options, **live}
            self._roster.supervisor(instance).options_changed()
            self._tell(self._reason_listeners, instance, instance.state)  # more of those who wait may run now

    async def ensure_running(self, demand: Demand) -> None:
        """See that some instance of a model (or the given one) is running, coming or about to end.

        :raises ModelUnavailable: the model limit, a configuration that keeps dying, or a lost runtime.
        """
        await self._launching.ensure_running(demand)

    # --- boot and end --------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Load the records, adopt what still runs, remove what is stale; a lost runtime is not waited for."""
        self._loop = asyncio.get_running_loop()
        await self._adoption.boot()
        self._reach.listen(self._reconcile.soon)
        if self._reach.has_returned():
            self._reconcile.soon()

    async def shutdown(self, *, stop_engines: bool) -> None:
        """End the supervision; engines are stopped too unless the next manager shall adopt them."""
        self._workers.closing = True
        self._launching.room.stir()
        await self._reconcile.close()
        if stop_engines:
            waiters = []
            for instance in self._roster.all():
                if instance.state in STILL:
                    continue
                target: m.Target = "sleeping" if instance.wakes_on_request else "stopped"
                waiters.append(self._end(instance, m.Stop(target, "shutdown", "LlamaMan ended", 0)))
            if waiters:
                await asyncio.wait(waiters, timeout=20)
        for supervisor in self._roster.supervisors():
            await supervisor.close()
        await self._workers.shutdown()

    # --- what the others work with -------------------------------------------------------------------

    def _end(self, instance: Instance, stop: m.Stop) -> asyncio.Future[bool]:
        """Ask for a stop now; the result is False when the instance goes on or could not be ended."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._roster.supervisor(instance).post(replace(stop, done=done))
        return done

    async def _persist(self, instance: Instance) -> None:
        if self._roster.has(instance):
            await self._write(instance)

    async def _write(self, instance: Instance) -> None:
        workers = self._workers
        await workers.run(workers.writer, self._p.store.put, COLLECTION, instance.id, instance.document())

    def _idle_timeout_s(self, instance: Instance) -> float:
        asked = instance.keep_alive_s
        if instance.managed and asked is not None:
            return 0.0 if asked == math.inf else max(asked, AT_ONCE_S)
        own = instance.idle_timeout_option_s
        return own or (self._p.managed_idle_timeout_s if instance.managed else 0.0)

    def _changed(self, instance: Instance, previous: State | None) -> None:
        log.info(
            "instance %s (%s): %s: %s", instance.id[:8], instance.model, instance.state.value, instance.reason
        )
        self._publish(instance, previous, instance.state.value, instance.actor)
        self._tell(self._listeners, instance, previous)
        if self._launching.room.is_awaited:
            self._launching.room.stir()

    def _told(self, instance: Instance, kind: str) -> None:
        """News that change no state, such as how far a fetch is."""
        self._publish(instance, instance.state, kind, instance.actor)
        self._tell(self._reason_listeners, instance, instance.state)

    def _tell(self, listeners: list[Listener], instance: Instance, previous: State | None) -> None:
        for listener in listeners:
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
            reason=instance.unknown or instance.reason,
        )

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None or self._workers.closing:
            work.close()
            raise ModelUnavailable("LlamaMan is starting or ending; try again", retry_after=2)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)
