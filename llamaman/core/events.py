"""What happened, why and by whom: a typed bus with a replay ring per topic.

Publishers are any thread; a callback runs in the publishing thread and must be quick and must not block.
Every text passes the redactor before anybody sees it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llamaman.core.redact import redact, redact_value

log = logging.getLogger("llamaman.events")

#: Events kept per topic for those who come later or were away.
RING = 1000

#: Topics for everybody who may VIEW; every other topic is ADMIN's.
VIEW_TOPICS = frozenset({"admission", "instances", "models", "presets", "images"})


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    :ivar id: grows over all topics, also over a restart, so it serves as an SSE ``Last-Event-ID``.
    :ivar data: JSON-able and read-only.
    """

    id: int
    topic: str
    kind: str
    at: float
    actor: str
    reason: str
    data: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The event as REST and SSE show it."""
        return {
            "id": self.id,
            "topic": self.topic,
            "kind": self.kind,
            "at": self.at,
            "actor": self.actor,
            "reason": self.reason,
            "data": dict(self.data),
        }


Callback = Callable[[Event], None]


class Events:
    """See the module's docstring. Ids start at the clock's milliseconds, which outruns any real rate."""

    def __init__(self, ring: int = RING, clock: Callable[[], float] = time.time) -> None:
        self._ring = ring
        self._clock = clock
        self._lock = threading.Lock()
        self._first = self._next = int(clock() * 1000)
        self._topics: dict[str, deque[Event]] = {}
        self._subscribers: tuple[tuple[str | None, Callback], ...] = ()
        self.failed_callbacks = 0

    def publish(self, topic: str, kind: str, data: Mapping[str, Any], *, actor: str, reason: str) -> Event:
        """Record an event and tell every subscriber; a subscriber's failure is logged and counted."""
        clean = MappingProxyType(redact_value(data))
        actor, reason = redact(actor), redact(reason)
        with self._lock:
            event = Event(self._next, topic, kind, self._clock(), actor, reason, clean)
            self._next += 1
            self._topics.setdefault(topic, deque(maxlen=self._ring)).append(event)
            subscribers = self._subscribers
        for wanted, callback in subscribers:
            if wanted is None or wanted == topic:
                self._tell(callback, event)
        return event

    def since(self, topic: str, event_id: int) -> tuple[Event, ...]:
        """Every kept event of ``topic`` after ``event_id``, oldest first; 0 gives all that are kept."""
        with self._lock:
            kept = tuple(self._topics.get(topic, ()))
        return tuple(event for event in kept if event.id > event_id)

    @property
    def last_id(self) -> int:
        """The id of the newest event, or the one before the first."""
        with self._lock:
            return self._next - 1

    def replay(self, wanted: Callable[[str], bool], event_id: int) -> tuple[list[Event], bool]:
        """Every kept event after ``event_id`` of the topics that ``wanted`` takes, in the order of their ids.

        All topics are read at one moment, so whoever goes on from the last one misses none.

        :returns: the events, and whether nothing is missing between ``event_id`` and the first of them: False also
            for an id that was given by an earlier run of the manager.
        """
        with self._lock:
            found: list[Event] = []
            is_whole = self._first <= event_id + 1 <= self._next
            for topic, kept in self._topics.items():
                if not wanted(topic):
                    continue
                if len(kept) >= self._ring and kept[0].id > event_id + 1:
                    is_whole = False
                for event in reversed(kept):
                    if event.id <= event_id:
                        break
                    found.append(event)
        return sorted(found, key=lambda event: event.id), is_whole

    def subscribe(self, topic: str | None, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` for each event of ``topic`` (None: of every topic); returns what ends it.

        Two threads that publish at the same time may deliver in either order: compare ids where it matters.
        """
        entry = (topic, callback)
        with self._lock:
            self._subscribers = (*self._subscribers, entry)

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers = tuple(other for other in self._subscribers if other is not entry)

        return unsubscribe

    def forget(self, topic: str) -> None:
        """Drop a topic's ring, such as that of a removed instance."""
        with self._lock:
            self._topics.pop(topic, None)

    def _tell(self, callback: Callback, event: Event) -> None:
        try:
            callback(event)
        except Exception:
            self.failed_callbacks += 1
            log.exception("a subscriber of %s events failed on %s", event.topic, event.kind)
