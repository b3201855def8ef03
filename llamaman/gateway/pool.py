"""Demand, tickets and grants: which request runs on which instance, and when.

One pool per model. A request that finds a free slot and nobody waiting is granted at once, without a
future or a timer; everybody else takes a ticket in a strict FIFO. A grant holds the instance's slots (all
of them or none) until it is released. Permits never exceed the server's own slots: llama-server's queue
cannot be left, so nothing may ever wait in it. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamaman.core.admission import Launcher
from llamaman.core.demand import Demand
from llamaman.core.instance import Instance
from llamaman.errors import LlamaManError, ModelUnavailable, QueueFull
from llamaman.gateway import placing
from llamaman.gateway.affinity import Homes
from llamaman.gateway.grant import Grant
from llamaman.gateway.placing import Wish
from llamaman.records import State

__all__ = ["Fleet", "Pool", "Pools", "Wish"]


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
        instance = self._choose(wish, self._fleet.of_model(self._path))
        return self._grant(instance, wish) if instance else None

    async def wait(self, wish: Wish) -> Grant:
        """Queue for a grant, starting or waking an instance when none is there.

        :raises QueueFull: the queue is at its limit, or the wait took longer than REQUEST_TIMEOUT.
        :raises LlamaManError: whatever stands in the way of the start.
        :raises ModelUnavailable: what is to serve it is on its way, but nobody need wait for that now.
        """
        instances = self._candidates(wish.only)
        if delay := placing.delay(instances):
            raise delay
        if too_heavy := placing.too_heavy(wish, instances):
            raise too_heavy
        if self._is_full(instances):
            raise QueueFull("request queue full", retry_after=1)
        loop = asyncio.get_running_loop()
        ticket = _Ticket(loop.create_future(), wish)
        if wish.weight:
            self._tickets.append(ticket)
        else:
            self._tickets.appendleft(ticket)  # it takes no slot, so nobody waits the longer for it
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
            if not self._waiting[wish.only]:
                del self._waiting[wish.only]
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
            return len(self._tickets) >= placing.DEFAULT_QUEUE_DEPTH
        alive = [i for i in instances if i.state in placing.ALIVE]
        return all(
            self._waiting_for(i) >= placing.depth(i) + max(0, i.capacity - i.active)
            for i in alive or instances
        )

    # --- granting ------------------------------------------------------------------------------------

    def after_release(self, instance: Instance) -> None:
        """Slots came free."""
        self._fleet.released(instance)
        if self._tickets:
            self.pump()

    def pump(self) -> None:
        """Grant whatever can be granted, in order.

        Nobody is overtaken on an instance that it waits for, so a heavy ticket never starves; and nobody is held up
        on one that those before it could never have.
        """
        instances = self._fleet.of_model(self._path)
        free = {i.id: i for i in instances if placing.serves(i) and i.active < i.capacity}
        for ticket in self._tickets:
            wish = ticket.wish
            if wish.weight and not self._is_wanted(free):
                return
            if ticket.future.done() or (wish.weight and wish.only is not None and wish.only not in free):
                continue
            instance = self._choose(wish, free.values() if wish.weight else instances)
            if instance is None:
                self._keep_free(ticket, free)
                continue
            ticket.future.set_result(self._grant(instance, wish))
            if instance.active >= instance.capacity:
                free.pop(instance.id, None)

    def _is_wanted(self, free: Collection[str]) -> bool:
        """Whether anybody may wait for any of these."""
        return bool(free) and (self._waiting[None] > 0 or any(self._waiting[each] for each in free))

    def _keep_free(self, ticket: _Ticket, free: dict[str, Instance]) -> None:
        """Give nobody else what this one will have when more slots are free there, unless it needs too many."""
        wish = ticket.wish
        candidates = self._candidates(wish.only)
        if too_heavy := placing.too_heavy(wish, candidates):
            ticket.future.set_exception(too_heavy)
            return
        for instance in candidates:
            if instance.capacity >= wish.weight:
                free.pop(instance.id, None)

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
            if any(i.state in placing.ALIVE for i in self._candidates(wish.only)):
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
            if delay := placing.delay(self._candidates(only)):
                ticket.future.set_exception(delay)

    def _why(self, instance: Instance) -> LlamaManError:
        if instance.state is State.FAILED:
            return self._fleet.unavailable(instance)
        return ModelUnavailable(f"model '{instance.model}' was stopped: {instance.reason}", retry_after=5)

    def _choose(self, wish: Wish, instances: Iterable[Instance]) -> Instance | None:
        return placing.choose(wish, instances, self._homes.of(wish.home) if wish.home else None)

    def _grant(self, instance: Instance, wish: Wish) -> Grant:
        if wish.home:
            self._homes.note(wish.home, instance.id)
        return Grant(instance, placing.slots(wish, instance), self.after_release)

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


def _starter(wish: Wish) -> _Starter:
    return wish.only, wish.launcher, wish.key


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
