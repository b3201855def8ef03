"""Demand, tickets and grants: which request runs on which instance, and when.

One pool per model. A request that finds a free slot and nobody waiting is granted at once, without a
future or a timer; everybody else takes a ticket in a strict FIFO. A grant holds the instance's slots (all
of them or none) until it is released. Permits never exceed the server's own slots: llama-server's queue
cannot be left, so nothing may ever wait in it. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamaman.core import fetching
from llamaman.core.admission import Launcher
from llamaman.core.demand import Demand
from llamaman.core.instance import Instance
from llamaman.errors import InvalidField, LlamaManError, ModelUnavailable, QueueFull, RuntimeLost
from llamaman.gateway.affinity import Homes
from llamaman.gateway.grant import Grant
from llamaman.records import ModelView, State

DEFAULT_QUEUE_DEPTH = 200
#: More requests than this at home than elsewhere, and another instance reads the prompt anew.
CLEARLY_BUSIER = 1

_COMING = frozenset(
    {State.QUEUED, State.PREPARING, State.STARTING, State.BACKOFF, State.STOPPING, State.DRAINING}
)
_ALIVE = _COMING | {State.READY}


class Fleet(Protocol):
    """What the pool needs of the instance registry."""

    def of_model(self, path: Path) -> list[Instance]:
        """The instances of one model file."""

    async def ensure_running(self, demand: Demand) -> None:
        """Start or wake what is missing; raises why it cannot."""

    def released(self, instance: Instance) -> None:
        """A request has left it."""

    def unavailable(self, instance: Instance) -> LlamaManError:
        """Why a failed instance cannot serve."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants of its model's pool.

    :ivar weight: the slots that it needs; 0 for what runs beside what generates.
    :ivar most: the slots that it takes where there are so many; it never waits for more than an instance has.
    :ivar only: the instance that it came through, None for any.
    :ivar home: requests of the same value find their prompt's beginning in one instance's cache.
    :ivar key: the id of the API key whose cold starts are counted, None where they are not.
    """

    model: ModelView
    weight: int = 1
    most: int = 0
    only: str | None = None
    launcher: Launcher = "openai"
    embedding: bool = False
    context: int | None = None
    home: str | None = None
    key: str | None = None


@dataclass(slots=True, eq=False)
class _Ticket:
    future: asyncio.Future[Grant]
    wish: Wish
    timer: asyncio.TimerHandle | None = None


#: Who starts a model: launchers have different rights and keys have used up different shares of theirs, so each
#: has a start of its own, of which the first that may goes ahead.
_Starter = tuple[str | None, Launcher, str | None]


class Pool:
    """The queue of one model."""

    __slots__ = ("_ensuring", "_fleet", "_homes", "_path", "_tickets", "_timeout_s", "_waiting")

    def __init__(self, fleet: Fleet, path: Path, timeout_s: float) -> None:
        self._fleet = fleet
        self._path = path
        self._timeout_s = timeout_s
        self._tickets: deque[_Ticket] = deque()
        self._waiting: Counter[str | None] = Counter()  # tickets by the instance that they wait for
        self._ensuring: dict[_Starter, asyncio.Task[None]] = {}
        self._homes = Homes()

    def try_now(self, wish: Wish) -> Grant | None:
        """A grant if that is possible without overtaking anybody."""
        if self._tickets and wish.weight:
            return None
        instance = self._choose(wish)
        return self._grant(instance, wish) if instance else None

    async def wait(self, wish: Wish) -> Grant:
        """Queue for a grant, starting or waking an instance when none is there.

        :raises QueueFull: the queue is at its limit, or the wait took longer than REQUEST_TIMEOUT.
        :raises LlamaManError: whatever stands in the way of the start.
        :raises ModelUnavailable: what is to serve it is on its way, but nobody need wait for that now.
        """
        instances = self._candidates(wish.only)
        if delay := _delay(instances):
            raise delay
        if self._is_full(instances):
            raise QueueFull("request queue full", retry_after=1)
        loop = asyncio.get_running_loop()
        ticket = _Ticket(loop.create_future(), wish)
        self._tickets.append(ticket)
        self._waiting[wish.only] += 1
        self._arm(ticket)
        self.show()
        try:
            if any(i.state is State.READY for i in instances):
                self.pump()  # those before it may wait for another instance, or it can never be served
            else:
                self._ensure(wish)
            return await ticket.future
        except asyncio.CancelledError:
            if ticket.future.done() and not ticket.future.cancelled() and not ticket.future.exception():
                ticket.future.result().release()
            raise
        finally:
            if ticket.timer:
                ticket.timer.cancel()
            self._tickets.remove(ticket)
            self._waiting[wish.only] -= 1
            self.show()
            self.pump()  # it may have stood in the way of those behind it

    @property
    def loading(self) -> bool:
        """Whether waiting now means waiting for a model to load."""
        return not any(i.state is State.READY for i in self._fleet.of_model(self._path))

    def show(self) -> None:
        """Write the queue's length where the card of each instance reads it."""
        for instance in self._fleet.of_model(self._path):
            instance.queued = self._waiting_for(instance)

    def _waiting_for(self, instance: Instance) -> int:
        return self._waiting[None] + self._waiting[instance.id]

    def _is_full(self, instances: Collection[Instance]) -> bool:
        """Whether as many wait for each of these as may, not counting those that find a free slot."""
        if not instances:
            return len(self._tickets) >= DEFAULT_QUEUE_DEPTH
        alive = [i for i in instances if i.state in _ALIVE]
        return all(
            self._waiting_for(i) >= _depth(i) + max(0, i.capacity - i.active) for i in alive or instances
        )

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
            wish = ticket.wish
            instance = self._choose(wish, awaited)
            if instance:
                ticket.future.set_result(self._grant(instance, wish))
            elif self._refuse_if_too_heavy(ticket):
                continue
            elif wish.only is None:
                break
            else:
                awaited.add(wish.only)

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
        # It fell asleep, or made room for another, while somebody queued for it.
        comes_back = instance.state is State.SLEEPING or instance.actor == "admission"
        for ticket in tuple(self._tickets):
            wish = ticket.wish
            if ticket.future.done() or _starter(wish) in self._ensuring:
                continue
            if any(i.state in _ALIVE for i in self._candidates(wish.only)):
                continue
            if wish.only not in (None, instance.id):
                continue
            if comes_back:
                self._ensure(wish)
            else:
                ticket.future.set_exception(self._why(instance))

    def _send_away(self, instance: Instance) -> None:
        """Tell those who have nobody else to wait for."""
        for ticket in self._tickets:
            only = ticket.wish.only
            if ticket.future.done() or only not in (None, instance.id):
                continue
            if delay := _delay(self._candidates(only)):
                ticket.future.set_exception(delay)

    def _why(self, instance: Instance) -> LlamaManError:
        if instance.state is State.FAILED:
            return self._fleet.unavailable(instance)
        return ModelUnavailable(f"model '{instance.model}' was stopped: {instance.reason}", retry_after=5)

    def _choose(self, wish: Wish, awaited: Collection[str] = ()) -> Instance | None:
        """The least busy instance with room for it, or the one that knows its conversation unless that is busier.

        Of equally busy ones the one that was not used for longest, so that conversations have a cache each.
        """
        best: Instance | None = None
        home = self._homes.of(wish.home) if wish.home else None
        at_home: Instance | None = None
        only = wish.only
        for instance in self._fleet.of_model(self._path):
            if instance.state is not State.READY or instance.unsettled or instance.last_exit is not None:
                continue
            if instance.id in awaited or (only is not None and instance.id != only):
                continue
            if instance.capacity - instance.active < _slots(wish, instance):
                continue
            if instance.id == home:
                at_home = instance
            if best is None or _busyness(instance) < _busyness(best):
                best = instance
        if at_home and best and at_home.active - best.active <= CLEARLY_BUSIER:
            return at_home
        return best

    def _grant(self, instance: Instance, wish: Wish) -> Grant:
        if wish.home:
            self._homes.note(wish.home, instance.id)
        return Grant(instance, _slots(wish, instance), self.after_release)

    def _refuse_if_too_heavy(self, ticket: _Ticket) -> bool:
        ready = [i for i in self._candidates(ticket.wish.only) if i.state is State.READY]
        if not ready or any(i.capacity >= ticket.wish.weight for i in ready):
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

    def _ensure(self, wish: Wish) -> None:
        starter = _starter(wish)
        if starter in self._ensuring:
            return
        demand = Demand(
            wish.model,
            wish.launcher,
            wish.only,
            wish.embedding,
            wish.context,
            wish.key,
            wanted=lambda: any(_starter(ticket.wish) == starter for ticket in self._tickets),
        )
        task = asyncio.get_running_loop().create_task(self._fleet.ensure_running(demand))
        self._ensuring[starter] = task
        task.add_done_callback(lambda done: self._ensured(starter, done))

    def _ensured(self, starter: _Starter, task: asyncio.Task[None]) -> None:
        self._ensuring.pop(starter, None)
        error = task.exception() if not task.cancelled() else None
        if error is None:
            self.pump()
            for instance in self._candidates(starter[0]):
                self.changed(instance)
            self._ask_again(starter)
            return
        failure = (
            error if isinstance(error, LlamaManError) else LlamaManError("internal error while starting")
        )
        if failure is not error:
            task.get_loop().call_exception_handler({"message": "starting a model failed", "exception": error})
        for ticket in tuple(self._tickets):
            if _starter(ticket.wish) == starter and not ticket.future.done():
                ticket.future.set_exception(failure)

    def _ask_again(self, starter: _Starter) -> None:
        """For those who came when a start was being given up for want of anybody who waited."""
        for ticket in self._tickets:
            if _starter(ticket.wish) == starter and not ticket.future.done():
                if not self._candidates(starter[0]):
                    self._ensure(ticket.wish)
                return

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


def _slots(wish: Wish, instance: Instance) -> int:
    return max(wish.weight, min(wish.most, instance.capacity))


def _busyness(instance: Instance) -> tuple[int, float]:
    return instance.active, instance.last_release or 0.0


def _depth(instance: Instance) -> int:
    depth = instance.options.get("max_queue_depth")
    return DEFAULT_QUEUE_DEPTH if depth is None else int(depth)


def _starter(wish: Wish) -> _Starter:
    return wish.only, wish.launcher, wish.key


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

    def has_choice(self, path: Path) -> bool:
        """Whether a model has several instances."""
        return len(self._fleet.of_model(path)) > 1

    def changed(self, instance: Instance, _previous: State | None = None) -> None:
        """An instance changed its state, or why it need not be waited for; called by the registry on the loop."""
        if pool := self._pools.get(instance.model_path):
            pool.changed(instance)
