"""The event stream: in order, without gaps that nobody tells, filtered by level, and no burden when slow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from llamaman.access import Scope
from llamaman.core.events import Events
from llamaman.errors import InvalidField, InvalidRequest, QueueFull
from llamaman.gateway import event_feed
from llamaman.gateway.event_feed import EventFeed
from llamaman.gateway.heads import check_head
from llamaman.gateway.log_stream import LogStreams
from llamaman.gateway.streams import StreamCount, values_for
from llamaman.limits import STREAMS_PER_CALLER
from llamaman.records import Identity

Run = Callable[[Coroutine[Any, Any, Any]], Any]

VIEWER = Identity("session", "vic", Scope.VIEW, session="s1")
ADMIN = Identity("session", "ann", Scope.ADMIN, session="s2")


def publish(events: Events, topic: str = "instances", number: int = 0) -> int:
    return events.publish(topic, "ready", {"n": number}, actor="test", reason="so").id


class Reader:
    """Reads frames as an EventSource does."""

    def __init__(self, items: AsyncIterator[bytes]) -> None:
        self._items = items
        self._rest = b""
        self.last_id: int | None = None

    async def opening(self) -> dict[str, str]:
        """The first frame."""
        return self._fields(await anext(self._items))

    async def next(self) -> dict[str, Any]:
        """The data of the next event; the stream's end fails."""
        while b"\n\n" not in self._rest:
            self._rest += await asyncio.wait_for(anext(self._items), 60)
        frame, _, self._rest = self._rest.partition(b"\n\n")
        fields = self._fields(frame)
        found: dict[str, Any] = json.loads(fields["data"])
        assert found["id"] == self.last_id
        return found

    async def ended(self) -> bool:
        try:
            await asyncio.wait_for(anext(self._items), 60)
        except StopAsyncIteration:
            return True
        return False

    async def close(self) -> None:
        await self._items.aclose()  # type: ignore[attr-defined] # an async generator in fact

    def _fields(self, frame: bytes) -> dict[str, str]:
        found = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
        if "id" in found:
            self.last_id = int(found["id"])
        return found


def feed(events: Events, **options: Any) -> EventFeed:
    return EventFeed(events, asyncio.get_running_loop(), **options)


def test_events_come_in_the_order_of_their_ids_from_any_thread(run: Run) -> None:
    async def main() -> None:
        events = Events()
        reader = Reader(feed(events).open(VIEWER, {}))
        assert (await reader.opening())["id"] == str(events.last_id)
        await asyncio.gather(
            *(asyncio.to_thread(lambda: [publish(events) for _ in range(50)]) for _ in range(4))
        )
        seen = [(await reader.next())["id"] for _ in range(200)]
        assert seen == list(range(seen[0], seen[0] + 200))
        await reader.close()

    run(main())


def test_a_new_reader_gets_what_happens_from_now_on(run: Run) -> None:
    async def main() -> None:
        events = Events()
        publish(events, number=1)
        reader = Reader(feed(events).open(VIEWER, {}))
        await reader.opening()
        publish(events, number=2)
        assert (await reader.next())["data"] == {"n": 2}
        await reader.close()

    run(main())


def test_whoever_comes_back_gets_what_was_missed_and_then_the_rest(run: Run) -> None:
    async def main() -> None:
        events = Events()
        first = publish(events)
        missed = [publish(events, topic) for topic in ("models", "instances", "presets")]
        reader = Reader(feed(events).open(VIEWER, {"last_event_id": str(first)}))
        assert "event" not in await reader.opening()
        assert [(await reader.next())["id"] for _ in missed] == missed
        live = publish(events)
        assert (await reader.next())["id"] == live
        await reader.close()

    run(main())


@pytest.mark.parametrize("behind", ["ring", "restart"])
def test_whoever_missed_too_much_is_told_to_read_the_state_anew(run: Run, behind: str) -> None:
    async def main() -> None:
        events = Events(ring=5)
        first = publish(events)
        if behind == "ring":
            for number in range(20):
                publish(events, number=number)
        else:
            first -= 100_000
        reader = Reader(feed(events).open(VIEWER, {"last_event_id": str(first)}))
        opening = await reader.opening()
        assert (opening["event"], json.loads(opening["data"])) == ("reset", {"since": first})
        live = publish(events)
        assert (await reader.next())["id"] == live, "and goes on from there"
        await reader.close()

    run(main())


def test_topics_are_filtered_by_level(run: Run) -> None:
    async def main() -> None:
        events = Events()
        viewer, admin = (Reader(feed(events).open(who, {})) for who in (VIEWER, ADMIN))
        await viewer.opening(), await admin.opening()
        publish(events, "users")
        publish(events, "instances")
        assert (await viewer.next())["topic"] == "instances"
        assert [(await admin.next())["topic"] for _ in range(2)] == ["users", "instances"]
        with pytest.raises(
            InvalidField, match="topic must be one of admission, images, instances, models, presets"
        ):
            feed(events).open(VIEWER, {"topic": "users"})
        await viewer.close(), await admin.close()

    run(main())


def test_one_topic_can_be_chosen(run: Run) -> None:
    async def main() -> None:
        events = Events()
        reader = Reader(feed(events).open(ADMIN, {"topic": "users"}))
        await reader.opening()
        publish(events, "instances")
        publish(events, "users")
        assert (await reader.next())["topic"] == "users"
        await reader.close()

    run(main())


@pytest.mark.parametrize("last", ["", "x", "-1", "1" * 19, "\u0661"])
def test_an_id_that_is_none_is_refused(run: Run, last: str) -> None:
    async def main() -> None:
        with pytest.raises(InvalidField, match="Last-Event-ID"):
            feed(Events()).open(VIEWER, {"last_event_id": last})

    run(main())


def test_a_silent_stream_says_now_and_then_that_it_is_alive(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_feed, "KEEPALIVE_S", 0.01)

    async def main() -> None:
        events = Events()
        items = feed(events).open(VIEWER, {})
        await anext(items)
        publish(events)
        while (frame := await anext(items)) == b": keepalive\n\n":
            pass
        assert b'"topic":"instances"' in frame
        assert [await anext(items) for _ in range(2)] == [b": keepalive\n\n"] * 2
        await items.aclose()  # type: ignore[attr-defined] # an async generator in fact

    run(main())


def test_a_reader_that_the_ring_has_overtaken_is_let_go(run: Run) -> None:
    async def main() -> None:
        events = Events(ring=5)
        reader = Reader(feed(events).open(VIEWER, {}))
        await reader.opening()
        for number in range(20):
            publish(events, number=number)
        assert await reader.ended()

    run(main())


def test_the_stream_of_a_caller_who_no_longer_counts_ends(run: Run) -> None:
    async def main() -> None:
        events, live = Events(), [VIEWER]
        reader = Reader(feed(events, is_live=lambda who: who in live).open(VIEWER, {}))
        await reader.opening()
        publish(events)
        await reader.next()
        live.clear()
        publish(events)
        assert await reader.ended()

    run(main())


def test_event_and_log_streams_of_a_caller_are_counted_together_and_leave_nothing(run: Run) -> None:
    async def main() -> None:
        events, count = Events(), StreamCount()
        source = feed(events, count=count)
        readers = [Reader(source.open(VIEWER, {})) for _ in range(STREAMS_PER_CALLER)]
        for reader in readers:
            await reader.opening()
        logs = LogStreams(lambda instance_id: None, count=count)  # type: ignore[arg-type,return-value] # not asked
        for full in (lambda: source.open(VIEWER, {}), lambda: logs.open(VIEWER, {"id": "x"})):
            with pytest.raises(QueueFull, match="16 streams are open"):
                full()
        source.open(ADMIN, {})  # somebody else has room
        for reader in readers:
            await reader.close()
        source.open(VIEWER, {})
        assert not events._subscribers

    run(main())


def head_of(target: bytes, *headers: tuple[bytes, bytes]) -> Any:
    return check_head(b"GET", target, "1.1", [(b"Host", b"x"), *headers])


def test_a_stream_gets_the_query_that_its_route_names(run: Run) -> None:
    async def main() -> None:
        route = feed(Events()).route()
        head = head_of(b"/api/events/stream?topic=a%20b&other=1", (b"Last-Event-ID", b"7"))
        assert values_for(route, {}, head) == {"topic": "a b", "last_event_id": "7"}
        assert values_for(route, {}, head_of(b"/api/events/stream")) == {}
        plain = LogStreams(lambda instance_id: None).route()  # type: ignore[arg-type,return-value] # not asked
        assert values_for(plain, {"id": "i"}, head) == {"id": "i"}
        with pytest.raises(InvalidField, match="topic is given twice"):
            values_for(route, {}, head_of(b"/x?topic=a&topic=b"))
        with pytest.raises(InvalidRequest, match="percent-encoded"):
            values_for(route, {}, head_of(b"/x?topic=%ff"))

    run(main())
