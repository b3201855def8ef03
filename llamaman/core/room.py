"""Room for one more running model: the one queue in which starts wait, and the evictions that make it.

What is decided is in :mod:`llamaman.core.admission`; here it is carried out, on the event loop. Requests' starts
come in the order of asking. Administrators, embedding models and installations without a limit pass by the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaman.core import messages as m
from llamaman.core.admission import Admit, Confirm, Decision, Launcher, Policy, Refuse, Wait, decide
from llamaman.core.demand import always
from llamaman.core.events import Events
from llamaman.core.instance import Instance
from llamaman.core.roster import Roster
from llamaman.errors import Conflict, LlamaManError, ModelUnavailable

#: Seconds after which a waiting start is looked at again, whatever has been heard of.
LOOK_AGAIN_S = 0.5


class Confirmation(Conflict):
    """The caller must confirm that a limit is to be exceeded."""

    code = "confirm_required"
    confirm_required = True


class Unwanted(ModelUnavailable):
    """Everybody who waited for this start has left."""


@dataclass(frozen=True, slots=True)
class Start:
    """What is to start.

    :ivar starting: the id of an existing instance, which does not count against itself.
    """

    model: str
    launcher: Launcher
    embedding: bool = False
    confirmed: bool = False
    starting: str | None = None
    wanted: Callable[[], bool] = always


@dataclass(slots=True, eq=False)
class _Waiting:
    start: Start
    since: float
    for_what: str = ""
    spared: set[str] = field(default_factory=set)


class Room:
    """The queue.

    :param end: asks for a stop; False when the instance goes on.
    :param refuse_if_closing: raises when the manager ends.
    :param refuse_if_lost: raises when the runtime of this name cannot be reached.
    :param patience_s: how long a start may wait for room.
    """

    def __init__(
        self,
        roster: Roster,
        events: Events,
        policy: Callable[[], Policy],
        *,
        end: Callable[[Instance, m.Stop], Awaitable[bool]],
        refuse_if_closing: Callable[[], None],
        refuse_if_lost: Callable[[str], None],
        drain_s: float,
        patience_s: float,
    ) -> None:
        self._roster = roster
        self._events = events
        self._policy = policy
        self._end = end
        self._refuse_if_closing = refuse_if_closing
        self._refuse_if_lost = refuse_if_lost
        self._drain_s = drain_s
        self._patience_s = patience_s
        self._lock = asyncio.Lock()
        self._queue: list[_Waiting] = []
        self._sleepers: set[asyncio.Future[None]] = set()

    @contextlib.asynccontextmanager
    async def for_one(self, start: Start) -> AsyncIterator[None]:
        """Wait until there is room; it is kept while the block runs, in which the start has to begin.

        :raises Confirmation: an administrator has to confirm it.
        :raises ModelUnavailable: there will be no room, or not in time.
        :raises Unwanted: nobody waits for it any more.
        """
        waiting = _Waiting(start, time.monotonic())
        try:
            while True:
                await self._until_free(waiting)
                async with self._lock:
                    if self._decide(waiting) == Admit():
                        yield
                        return
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self.stir()

    def stir(self) -> None:
        """Something has changed: have those who wait look again."""
        sleepers, self._sleepers = self._sleepers, set()
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    @property
    def is_awaited(self) -> bool:
        """Whether any start waits."""
        return bool(self._queue)

    def waits(self) -> Sequence[tuple[str, str]]:
        """(model, what it waits for) of every start in the queue, in its order."""
        return [(waiting.start.model, waiting.for_what) for waiting in tuple(self._queue)]

    # --- waiting -------------------------------------------------------------------------------------

    async def _until_free(self, waiting: _Waiting) -> None:
        """Return when nothing has to leave for it any more."""
        start = waiting.start
        while True:
            self._refuse_if_closing()
            if not start.wanted():
                raise Unwanted(f"nobody waits for model '{start.model}' any more")
            decision = self._decide(waiting)
            if isinstance(decision, Confirm):
                raise Confirmation(decision.message)
            if isinstance(decision, Refuse):
                raise self._refused(start, decision)
            if self._is_next(waiting) and isinstance(decision, Admit):
                if not decision.victims:
                    return
                await self._evict(decision.victims, waiting)
                continue
            self._note(waiting, decision)
            left_s = self._patience_s - (time.monotonic() - waiting.since)
            if self._patience_s and left_s <= 0:
                told = f"no room for model '{start.model}' within {self._patience_s:g} s (REQUEST_TIMEOUT)"
                self._publish("refused", start, f"{told}: it waited for {waiting.for_what}")
                raise ModelUnavailable(told, detail=f"it waited for {waiting.for_what}", retry_after=30)
            wait_s = decision.seconds if isinstance(decision, Wait) else None
            await self._sleep(min(LOOK_AGAIN_S if wait_s is None else wait_s, LOOK_AGAIN_S))

    def _decide(self, waiting: _Waiting) -> Decision:
        start = waiting.start
        return decide(
            start.launcher,
            [instance.view() for instance in sorted(self._roster.all(), key=lambda i: i.created)],
            self._policy(),
            embedding=start.embedding,
            confirmed=start.confirmed,
            starting=start.starting,
            now=None if start.launcher == "admin" else time.time(),
            spared=waiting.spared,
        )

    def _is_next(self, waiting: _Waiting) -> bool:
        start = waiting.start
        if start.launcher == "admin" or start.embedding or self._policy().max_models <= 0:
            return True
        return not self._queue or self._queue[0] is waiting

    def _note(self, waiting: _Waiting, decision: Decision) -> None:
        if self._is_next(waiting) and isinstance(decision, Wait):
            waiting.for_what = decision.message
        else:
            waiting.for_what = f"its turn, behind {', '.join(w.start.model for w in self._ahead(waiting))}"
        if waiting in self._queue:
            return
        if waiting.start.launcher != "admin":
            self._queue.append(waiting)
        self._publish("waiting", waiting.start, f"model '{waiting.start.model}' waits for {waiting.for_what}")

    def _ahead(self, waiting: _Waiting) -> list[_Waiting]:
        if waiting not in self._queue:
            return list(self._queue)
        return self._queue[: self._queue.index(waiting)]

    async def _sleep(self, seconds: float) -> None:
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            await asyncio.wait((sleeper,), timeout=max(seconds, 0.005))
        finally:
            self._sleepers.discard(sleeper)

    # --- making room ---------------------------------------------------------------------------------

    async def _evict(self, victims: Sequence[str], waiting: _Waiting) -> None:
        """Ask them to leave; who does not is spared from now on, unless nobody else is left."""
        leaving = [(i, self._leave(i, waiting.start)) for v in victims if (i := self._roster.get(v))]
        failed = None
        for instance, gone in leaving:
            if not await gone:
                waiting.spared.add(instance.id)
                failed = instance
        if failed is None or not isinstance(self._decide(waiting), Refuse):
            return
        self._refuse_if_lost(failed.runtime)
        why = f"is busy and could not be evicted within {self._drain_s:g} s (DRAIN_TIMEOUT)"
        told = f"model '{failed.model}' {why}"
        self._publish("refused", waiting.start, told)
        by_hand = (
            waiting.start.launcher == "admin"
        )  # others need not hear which models there are besides theirs
        raise ModelUnavailable(told if by_hand else f"what is loaded {why}", detail=told, retry_after=30)

    def _leave(self, instance: Instance, start: Start) -> Awaitable[bool]:
        target: m.Target = "sleeping" if instance.wakes_on_request else "stopped"
        reason = f"evicted for model '{start.model}'"
        return self._end(instance, m.Stop(target, "admission", reason, self._drain_s, give_up=True))

    def _refused(self, start: Start, decision: Refuse) -> LlamaManError:
        self._publish("refused", start, decision.message, **decision.inputs)
        return ModelUnavailable(decision.message, retry_after=30, inputs=decision.inputs)

    def _publish(self, kind: str, start: Start, reason: str, **inputs: Any) -> None:
        self._events.publish(
            "admission", kind, {"model": start.model, **inputs}, actor=start.launcher, reason=reason
        )
