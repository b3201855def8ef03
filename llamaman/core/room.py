"""Room for one more running model: the one queue in which starts wait, and the evictions that make it.

What is decided is in :mod:`llamaman.core.admission`; here it is carried out, on the event loop. Requests' starts
come in the order of asking; what a key may not start yet, since it has started so much, joins the queue when it may.
Administrators, embedding models and installations without a limit pass by the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llamaman.core import messages as m
from llamaman.core.admission import Admit, Confirm, Decision, Launcher, Policy, Refuse, Wait, decide
from llamaman.core.cold_starts import Claim, ColdStarts
from llamaman.core.demand import always
from llamaman.core.events import Events
from llamaman.core.instance import Instance
from llamaman.core.roster import Roster
from llamaman.errors import Conflict, LlamaManError, ModelUnavailable, TooManyRequests

#: Seconds after which a waiting start is looked at again, whatever has been heard of.
LOOK_AGAIN_S = 0.5


class Confirmation(Conflict):
    """The caller must confirm that a limit is to be exceeded."""

    code = "confirm_required"
    confirm_required = True


class Unwanted(ModelUnavailable):
    """Everybody who waited for this start has left, or is waiting for another one of the same model."""


@dataclass(frozen=True, slots=True)
class Start:
    """What is to start.

    :ivar starting: the id of an existing instance, which does not count against itself.
    :ivar key: the key among whose cold starts it counts, None where they are not counted.
    :ivar wanted: whether anybody still waits for just this start.
    """

    model: str
    launcher: Launcher
    embedding: bool = False
    confirmed: bool = False
    starting: str | None = None
    key: str | None = None
    wanted: Callable[[], bool] = always


@dataclass(slots=True, eq=False)
class _Waiting:
    start: Start
    since: float
    for_what: str = ""
    spared: set[str] = field(default_factory=set)
    claim: Claim | None = None

    def begun(self) -> None:
        """The start has begun, and its key's minute with it."""
        if self.claim is not None:
            self.claim.begun = time.monotonic()


class Place(Protocol):
    """The room that a start was given."""

    def begun(self) -> None:
        """Say that the start really began; else it does not count among those of its key."""


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
        self._early: list[_Waiting] = []  # whose keys may not start anything yet
        self._cold_starts = ColdStarts()
        self._sleepers: set[asyncio.Future[None]] = set()

    @contextlib.asynccontextmanager
    async def for_one(self, start: Start) -> AsyncIterator[Place]:
        """Wait until there is room; it is kept while the block runs, in which the start has to begin.

        :raises Confirmation: an administrator has to confirm it.
        :raises ModelUnavailable: there will be no room, or not in time.
        :raises TooManyRequests: the key has started so much that its next turn comes too late.
        :raises Unwanted: nobody waits for it any more.
        """
        waiting = _Waiting(start, time.monotonic())
        try:
            await self._until_its_key_may(waiting)
            if self._takes_a_turn(start):
                self._queue.append(waiting)
            while True:
                await self._until_free(waiting)
                async with self._lock:
                    if self._decide(waiting) == Admit():
                        yield waiting
                        return
        finally:
            if waiting.claim is not None and waiting.claim.begun is None:
                self._cold_starts.give_back(waiting.claim)
                self.stir()
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
        return bool(self._queue or self._early)

    def waits(self) -> Sequence[tuple[str, str]]:
        """(model, what it waits for) of every start that waits for room, in order; then of those that may not yet."""
        queue = [
            (waiting.start.model, waiting.for_what) for waiting in tuple(self._queue) if waiting.for_what
        ]
        ahead = {model for model, _ in queue}
        early = {waiting.start.model: waiting.for_what for waiting in reversed(tuple(self._early))}
        return queue + [(model, what) for model, what in early.items() if what and model not in ahead]

    # --- waiting -------------------------------------------------------------------------------------

    async def _until_its_key_may(self, waiting: _Waiting) -> None:
        """Return when the key that asks may start one more, which is claimed for it."""
        start, key = waiting.start, waiting.start.key
        if key is None:
            return
        self._early.append(waiting)
        try:
            while limit := self._policy().cold_starts_per_minute:
                self._refuse_if_pointless(start)
                now = time.monotonic()
                ahead = sum(w.start.key == key for w in self._early[: self._early.index(waiting)])
                wait_s = self._cold_starts.wait_s(key, limit, now, ahead)
                if wait_s <= 0:
                    waiting.claim = self._cold_starts.claim(key)
                    waiting.for_what = ""
                    return
                if self._patience_s and wait_s > self._patience_s - (now - waiting.since):
                    raise self._too_many(start, limit, wait_s)
                turn = f"a turn of its key, which may start {_models(limit)} a minute; the next is in {wait_s:.0f} s"
                self._wait_for(waiting, turn, cold_starts_per_minute=limit, key_id=key)
                await self._sleep(min(wait_s, LOOK_AGAIN_S))
        finally:
            self._early.remove(waiting)

    def _too_many(self, start: Start, limit: int, wait_s: float) -> LlamaManError:
        seconds = math.ceil(wait_s)
        told = (
            f"this key may start {_models(limit)} a minute (setting inference.cold_starts_per_minute), and its next "
            f"turn is in {seconds} s, which is longer than a request may wait (REQUEST_TIMEOUT "
            f"{self._patience_s:g}); ask for a model that is loaded, or try again then"
        )
        inputs = {
            "cold_starts_per_minute": limit,
            "next_turn_s": seconds,
            "request_timeout_s": self._patience_s,
        }
        self._publish("refused", start, told, **inputs, key_id=start.key)
        return TooManyRequests(told, retry_after=seconds, inputs=inputs)

    def _refuse_if_pointless(self, start: Start) -> None:
        self._refuse_if_closing()
        if not start.wanted():
            raise Unwanted(f"nobody waits for this start of model '{start.model}' any more")

    async def _until_free(self, waiting: _Waiting) -> None:
        """Return when nothing has to leave for it any more."""
        start = waiting.start
        while True:
            self._refuse_if_pointless(start)
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
            self._wait_for(waiting, self._obstacle(waiting, decision))
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

    def _takes_a_turn(self, start: Start) -> bool:
        return start.launcher != "admin" and not start.embedding and self._policy().max_models > 0

    def _is_next(self, waiting: _Waiting) -> bool:
        return waiting not in self._queue or self._queue[0] is waiting

    def _obstacle(self, waiting: _Waiting, decision: Decision) -> str:
        if self._is_next(waiting) and isinstance(decision, Wait):
            return decision.message
        ahead = self._queue[: self._queue.index(waiting)]
        return f"its turn, behind {', '.join(dict.fromkeys(each.start.model for each in ahead))}"

    def _wait_for(self, waiting: _Waiting, what: str, **inputs: Any) -> None:
        if not waiting.for_what:
            told = f"model '{waiting.start.model}' waits for {what}"
            self._publish("waiting", waiting.start, told, **inputs)
        waiting.for_what = what

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
        self._wait_for(waiting, f"{', '.join(instance.model for instance, _ in leaving)} to leave")
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


def _models(count: int) -> str:
    return f"{count} model{'s' if count != 1 else ''}"
