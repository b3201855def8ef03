"""``GET /api/events/stream``: what happens, as server-sent events, on the event loop.

For dashboards and scripts. ``?topic=`` chooses one topic; without it come all that the caller may read. Each frame
has the event's id, so that a client that comes back with ``Last-Event-ID`` gets what it missed; where the ring no
longer has all of that, an event named ``reset`` says instead that the client must read the state anew. A client that
reads more slowly than things happen is let go when the ring has overtaken it, and comes back the same way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from llamaman.access import Access
from llamaman.core.auth import allows
from llamaman.core.events import VIEW_TOPICS, Event, Events
from llamaman.errors import InvalidField
from llamaman.gateway.log_stream import KEEPALIVE, KEEPALIVE_S
from llamaman.gateway.streams import LAST_EVENT_ID, StreamCount
from llamaman.records import Identity, StreamRoute

PATTERN: Final = "/api/events/stream"
_BATCH = 64


class EventFeed:
    """The open event streams. Made on the loop.

    :param is_live: whether a caller still counts; the stream of a revoked key or an ended session ends.
    """

    def __init__(
        self,
        events: Events,
        loop: asyncio.AbstractEventLoop,
        *,
        count: StreamCount | None = None,
        is_live: Callable[[Identity], bool] = lambda identity: True,
    ) -> None:
        self._events = events
        self._loop = loop
        self._count = count or StreamCount()
        self._is_live = is_live

    def route(self) -> StreamRoute:
        """The route to be mounted on the loop."""
        return StreamRoute("GET", PATTERN, Access.VIEW, self.open, query=("topic", LAST_EVENT_ID))

    def open(self, identity: Identity, values: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Start a stream.

        :raises InvalidField: a topic that this caller may not read, or an id that is none.
        :raises QueueFull: too many open streams.
        """
        topic = values.get("topic")
        if topic is not None and not may_read(identity, topic):
            raise InvalidField("topic", f"topic must be one of {', '.join(sorted(VIEW_TOPICS))}")
        last = values.get(LAST_EVENT_ID)
        if last is not None and not (last.isascii() and last.isdecimal() and len(last) <= 18):
            raise InvalidField(LAST_EVENT_ID, "Last-Event-ID must be the id of an event, a whole number")
        self._count.check(identity)
        return self._follow(identity, topic, int(last) if last is not None else None)

    async def _follow(self, identity: Identity, topic: str | None, last: int | None) -> AsyncIterator[bytes]:
        events, happened = self._events, asyncio.Event()

        def wanted(each: str) -> bool:
            return each == topic if topic is not None else may_read(identity, each)

        def wake(_: Event) -> None:
            self._loop.call_soon_threadsafe(happened.set)

        with self._count.open(identity):
            # The ring is the queue: a reader keeps nothing but its place, so it cannot hold up memory.
            unsubscribe = events.subscribe(topic, wake)
            try:
                position, opening = self._begin(wanted, last)
                yield opening
                while self._is_live(identity):
                    happened.clear()
                    fresh, is_whole = events.replay(wanted, position)
                    if not is_whole:
                        return  # it comes back with Last-Event-ID and is told so
                    for start in range(0, len(fresh), _BATCH):
                        yield b"".join(map(frame, fresh[start : start + _BATCH]))
                    if fresh:
                        position = fresh[-1].id
                    elif not await _within(happened, KEEPALIVE_S):
                        yield KEEPALIVE
            finally:
                unsubscribe()

    def _begin(self, wanted: Callable[[str], bool], last: int | None) -> tuple[int, bytes]:
        """From which id on the client gets events, and the first bytes of the stream."""
        here = self._events.last_id
        if last is None:
            return here, b"retry: 2000\nid: %d\n\n" % here
        if self._events.replay(wanted, last)[1]:
            return last, b"retry: 2000\n\n"
        return here, b'retry: 2000\nevent: reset\nid: %d\ndata: {"since":%d}\n\n' % (here, last)


async def _within(happened: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await happened.wait()
    except TimeoutError:
        return False
    return True


def may_read(identity: Identity, topic: str) -> bool:
    """Whether a caller who may VIEW may also read this topic."""
    return topic in VIEW_TOPICS or allows(identity, Access.ADMIN)


def frame(event: Event) -> bytes:
    """One event as it is sent."""
    text = json.dumps(event.as_dict(), ensure_ascii=False, separators=(",", ":"), default=str)
    return b"id: %d\ndata: %b\n\n" % (event.id, text.encode("utf-8", "replace"))
