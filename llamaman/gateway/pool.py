"""Demand, tickets and grants: which request runs on which instance, and when.

One pool per model. A request that finds a free slot and nobody waiting is granted at once, without a
future or a timer; everybody else takes a ticket in a strict FIFO. A grant holds the instance's slots (all
of them or none) until it is released. Permits never exceed the server's own slots: llama-server's queue
cannot be left, so nothing may ever wait in it. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamaman.core import fetching
from llamaman.core.admission import Launcher
from llamaman.core.instance import Instance
from llamaman.errors import InvalidField, LlamaManError, ModelUnavailable, QueueFull, RuntimeLost
from llamaman.gateway.dialect import Lease
from llamaman.gateway.upstream import Upstream
from llamaman.records import ModelView, State

DEFAULT_QUEUE_DEPTH = 200

_COMING = frozenset(
    {State.QUEUED, State.PREPARING, State.STARTING, State.BACKOFF, State.STOPPING, State.DRAINING}
)
_ALIVE = _COMING | {State.READY}


class Fleet(Protocol):
    """What the pool needs of the instance registry."""

    def of_model(self, path: Path) -> list[Instance]:
        """The instances of one model file."""

    async def ensure_running(
        self, model: ModelView, only: str | None, launcher: Launcher, *, embedding: bool
    ) -> None:
        """Start or wake what is missing; raises why it cannot."""

    def released(self, instance: Instance) -> None:
        """A request has left it."""

    def unavailable(self, instance: Instance) -> LlamaManError:
        """Why a failed instance cannot serve."""


class Grant:
    """A lease on an instance together with its permits; the slots come free when the last holder lets go."""

    __slots__ = ("_holders", "_pool", "_weight", "client", "generation", "instance")

    def __init__(self, pool: Pool, instance: Instance, weight: int) -> None:
        self._pool = pool
        self._weight = weight
        self.instance = instance
        self.generation = instance.generation
        self.client: Upstream = instance.client  # type: ignore[assignment] # the gateway made it
        self._holders = 1
        instance.active += weight
        if weight:
            instance.last_request = time.time()

    def hold(self) -> None:
        """One more holder, such as the wait for an engine to let go."""
        self._holders += 1

    def release(self) -> None:
        """One holder less; the last one gives the slots back and lets the next ticket have them."""
        self._holders -= 1
        if self._holders:
            return
        instance = self.instance
        if not self._weight:  # only inference counts as use
            return
        instance.active -= self._weight
        instance.last_release = time.monotonic()
        self._pool.after_release(instance)


def lease_of(grant: Grant) -> Lease:
    """What the dialect may know of a grant."""
    instance = grant.instance
    return Lease(
        instance_id=instance.id,
        granted=time.time(),
        context_length=instance.context_length,
        slots=instance.slots,
        options=instance.options,
        engine=instance.facts,
    )


@dataclass(slots=True, eq=False)
class _Ticket:
    future: asyncio.Future[Grant]
    model: ModelView
    only: str | None
    weight: int
    launcher: Launcher
    embedding: bool
    timer: asyncio.TimerHandle | None = None


class Pool:
    """The queue of one model."""

    __slots__ = ("_ensuring", "_fleet", "_path", "_tickets", "_timeout_s")

    def __init__(self, fleet: Fleet, path: Path, timeout_s: float) -> None:
        self._fleet = fleet
        self._path = path
        self._timeout_s = timeout_s
        self._tickets: deque[_Ticket] = deque()
        self._ensuring: dict[str | None, asyncio.Task[None]] = {}

    def try_now(self, only: str | None, weight: int) -> Grant | None:
        """A grant if that is possible without overtaking anybody."""
        if self._tickets and weight:
            return None
        instance = self._choose(only, weight)
        return Grant(self, instance, weight) if instance else None

    async def wait(
        self, model: ModelView, only: str | None, weight: int, launcher: Launcher, *, embedding: bool
    ) -> Grant:
        """Queue for a grant, starting or waking an instance when none is there.

        :raises QueueFull: the queue is at its limit, or the wait took longer than REQUEST_TIMEOUT.
        :raises LlamaManError: whatever stands in the way of the start.
        :raises ModelUnavailable: what is to serve it is on its way, but nobody need wait for that now.
        """
        instances = self._candidates(only)
        if delay := _delay(instances):
            raise delay
        depth = max((int(i.options.get("max_queue_depth") or 0) for i in instances), default=0)
        if len(self._tickets) >= (depth or DEFAULT_QUEUE_DEPTH):
            raise QueueFull("request queue full", retry_after=1)
        loop = asyncio.get_running_loop()
        ticket = _Ticket(loop.create_future(), model, only, weight, launcher, embedding)
        self._tickets.append(ticket)
        self._arm(ticket)
        self.show()
        try:
            if any(i.state is State.READY for i in instances):
                self.pump()  # those before it may wait for another instance, or it can never be served
            else:
                self._ensure(model, only, launcher, embedding=embedding)
            return await ticket.future
        except asyncio.CancelledError:
            if ticket.future.done() and not ticket.future.cancelled() and not ticket.future.exception():
                ticket.future.result().release()
            raise
        finally:
            if ticket.timer:
                ticket.timer.cancel()
            self._tickets.remove(ticket)
            self.show()
            self.pump()  # it may have stood in the way of those behind it

    @property
    def loading(self) -> bool:
        """Whether waiting now means waiting for a model to load."""
        return not any(i.state is State.READY for i in self._fleet.of_model(self._path))

    def show(self) -> None:
        """Write the queue's length where the card of each instance reads it."""
        waiting = len(self._tickets)
        for instance in self._fleet.of_model(self._path):
            instance.queued = waiting

    # --- granting ------------------------------------------------------------------------------------

    def after_release(self, instance: Instance) -> None:
        """Slots came free."""
        self._fleet.released(instance)
        if self._tickets:
            self.pump()

    def pump(self) -> None:
        """Grant whatever can be granted, in order. A heavy ticket is not overtaken, so it never starves."""
        awaited: set[str] = set()  # instances that tickets of their own ports wait for
        for ticket in self._tickets:
            if ticket.future.done():
                continue
            instance = self._choose(ticket.only, ticket.weight, awaited)
            if instance:
                ticket.future.set_result(Grant(self, instance, ticket.weight))
            elif self._refuse_if_too_heavy(ticket):
                continue
            elif ticket.only is None:
                break
            else:
                awaited.add(ticket.only)

    def changed(self, instance: Instance) -> None:
        """An instance of this model changed its state."""
        self.show()
        if instance.delay:
            self._send_away(instance)
        if instance.state is State.READY:
            self.pump()
            return
        if instance.state not in (State.FAILED, State.STOPPED, State.SLEEPING):
            return
        asleep = instance.state is State.SLEEPING
        for ticket in tuple(self._tickets):
            if ticket.future.done() or ticket.only in self._ensuring:
                continue
            if any(i.state in _ALIVE for i in self._candidates(ticket.only)):
                continue
            if ticket.only not in (None, instance.id):
                continue
            if asleep:  # it fell asleep while somebody queued for it
                self._ensure(ticket.model, ticket.only, ticket.launcher, embedding=ticket.embedding)
            else:
                ticket.future.set_exception(self._why(instance))

    def _send_away(self, instance: Instance) -> None:
        """Tell those who have nobody else to wait for."""
        for ticket in self._tickets:
            if ticket.future.done() or ticket.only not in (None, instance.id):
                continue
            if delay := _delay(self._candidates(ticket.only)):
                ticket.future.set_exception(delay)

    def _why(self, instance: Instance) -> LlamaManError:
        if instance.state is State.FAILED:
            return self._fleet.unavailable(instance)
        return ModelUnavailable(f"model '{instance.model}' was stopped: {instance.reason}", retry_after=5)

    def _choose(self, only: str | None, weight: int, awaited: Collection[str] = ()) -> Instance | None:
        best: Instance | None = None
        for instance in self._fleet.of_model(self._path):
            if instance.state is not State.READY or instance.unsettled or instance.last_exit is not None:
                continue
            if instance.id in awaited or (only is not None and instance.id != only):
                continue
            if instance.capacity - instance.active < weight:
                continue
            if best is None or instance.active < best.active:
                best = instance
        return best

    def _refuse_if_too_heavy(self, ticket: _Ticket) -> bool:
        ready = [i for i in self._candidates(ticket.only) if i.state is State.READY]
        if not ready or any(i.capacity >= ticket.weight for i in ready):
            return False
        most = max(i.capacity for i in ready)
        ticket.future.set_exception(
            InvalidField("n", f"n must be at most {most}, the number of slots of this model's instances")
        )
        return True

    def _candidates(self, only: str | None) -> list[Instance]:
        instances = self._fleet.of_model(self._path)
        return [i for i in instances if i.id == only] if only else instances

    # --- starting ------------------------------------------------------------------------------------

    def _ensure(self, model: ModelView, only: str | None, launcher: Launcher, *, embedding: bool) -> None:
        if only in self._ensuring:
            return
        task = asyncio.get_running_loop().create_task(
            self._fleet.ensure_running(model, only, launcher, embedding=embedding)
        )
        self._ensuring[only] = task
        task.add_done_callback(lambda done: self._ensured(only, done))

    def _ensured(self, only: str | None, task: asyncio.Task[None]) -> None:
        self._ensuring.pop(only, None)
        error = task.exception() if not task.cancelled() else None
        if error is None:
            self.pump()
            for instance in self._candidates(only):
                self.changed(instance)
            return
        failure = (
            error if isinstance(error, LlamaManError) else LlamaManError("internal error while starting")
        )
        if failure is not error:
            task.get_loop().call_exception_handler({"message": "starting a model failed", "exception": error})
        for ticket in tuple(self._tickets):
            if ticket.only == only and not ticket.future.done():
                ticket.future.set_exception(failure)

    def _arm(self, ticket: _Ticket) -> None:
        if self._timeout_s > 0:
            ticket.timer = asyncio.get_running_loop().call_later(self._timeout_s, self._late, ticket)

    def _late(self, ticket: _Ticket) -> None:
        if ticket.future.done():
            return
        if self.loading:  # a load has its own limit, MODEL_LOAD_TIMEOUT
            self._arm(ticket)
            return
        ticket.future.set_exception(
            QueueFull(
                f"no slot came free within {self._timeout_s:g} s (REQUEST_TIMEOUT); try again", retry_after=5
            )
        )


def _delay(instances: Collection[Instance]) -> ModelUnavailable | None:
    """Why it makes no sense to wait for any of these now; None when it does, or when none is on its way."""
    coming = [instance for instance in instances if instance.state in _ALIVE]
    if not coming or not all(instance.delay for instance in coming):
        return None
    first = coming[0]
    cause = RuntimeLost if first.lost else ModelUnavailable
    return cause(f"model '{first.model}' is not loaded yet: {first.delay}", retry_after=fetching.RETRY_S)


class Pools:
    """All pools, by model file."""

    def __init__(self, fleet: Fleet, timeout_s: float) -> None:
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._pools: dict[Path, Pool] = {}

    def of(self, path: Path) -> Pool:
        """The pool of a model; made on first use."""
        pool = self._pools.get(path)
        if pool is None:
            pool = self._pools[path] = Pool(self._fleet, path, self._timeout_s)
        return pool

    def changed(self, instance: Instance, _previous: State | None = None) -> None:
        """An instance changed its state, or why it need not be waited for; called by the registry on the loop."""
        if pool := self._pools.get(instance.model_path):
            pool.changed(instance)
