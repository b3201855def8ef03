"""An engine's event stream as parsed events, and as one assembled body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import orjson

from llamaman.errors import UpstreamFailed
from llamaman.gateway.assemble import Assembler
from llamaman.gateway.body import dump
from llamaman.gateway.dialect import Chunk, Result
from llamaman.gateway.engine_faults import put_right
from llamaman.gateway.host_paths import names_only
from llamaman.gateway.meter import Meter
from llamaman.gateway.sse import EventTooLarge, Splitter, iter_events
from llamaman.gateway.upstream import Response

#: Events that are parsed in one step, and those after which other streams have their turn.
_AT_ONCE = 64
_TURN = 256


class EventStream:
    """The events of one streamed answer, one at a time; progress, pings and ``[DONE]`` are swallowed.

    A block may hold thousands of events, of an engine that was faster than its reader: they are parsed a few at a
    time, and others get their turn in between.
    """

    __slots__ = ("_handed", "_left", "_meter", "_pending", "_splitter", "response")

    def __init__(self, response: Response, meter: Meter) -> None:
        self.response = response
        self._meter = meter
        self._splitter = Splitter()
        self._left: Iterator[bytes] = iter(())
        self._pending: list[dict[str, Any]] = []
        self._handed = 0

    @property
    def has_more(self) -> bool:
        """Whether the next event has come already.

        :raises UpstreamFailed: what has come makes no sense.
        """
        while not self._pending:
            some = list(islice(self._left, _AT_ONCE))
            if not some:
                return False
            self._pending = _parsed(some)
            self._pending.reverse()
        return True

    async def next(self) -> Chunk | Result:
        """The next event, or a Result at the complete end.

        :raises UpstreamError: the stream broke. :raises UpstreamFailed: it makes no sense.
        """
        while not self.has_more:
            block = await self.response.read_block()
            if not block:
                return Result(200, b"", at=time.time())
            self._left = iter_events(_whole_events(self._splitter, block))
        self._handed += 1
        if not self._handed % _TURN:
            await asyncio.sleep(0)
        event = self._pending.pop()
        if "error" in event and "choices" not in event:
            return stream_error(event["error"])
        self._meter.saw(event)
        return Chunk(event, time.time())


def _whole_events(splitter: Splitter, block: bytes) -> bytes:
    try:
        return splitter.feed(block)
    except EventTooLarge as error:
        raise UpstreamFailed(f"the engine is not understood: {error}") from None


def parse_events(block: bytes) -> list[dict[str, Any]]:
    """The JSON objects of whole SSE events that are news to a client.

    :raises UpstreamFailed: an event is not a JSON object.
    """
    return _parsed(iter_events(block))


def _parsed(datas: Iterable[bytes]) -> list[dict[str, Any]]:
    events = []
    for data in datas:
        if data == b"[DONE]":
            continue
        try:
            event = orjson.loads(data)
        except ValueError:
            raise UpstreamFailed("the engine sent an event that is not JSON") from None
        if not isinstance(event, dict):
            raise UpstreamFailed("the engine sent an event that is not an object")
        if "prompt_progress" not in event:
            events.append(event)
    return events


async def assemble(response: Response, meter: Meter, *, chat: bool) -> Result:
    """Read a streamed completion to its end and rebuild the engine's non-streamed body.

    :raises UpstreamError: the stream broke. :raises UpstreamFailed: it makes no sense.
    """
    assembler = Assembler(chat=chat)
    splitter = Splitter()
    while block := await response.read_block():
        for event in parse_events(_whole_events(splitter, block)):
            if "error" in event and "choices" not in event:
                return stream_error(event["error"])
            meter.saw(event)
            assembler.add(event)
    return Result(200, assembler.body())


def stream_error(error: object) -> Result:
    """An error inside a stream as the answer that a client which did not stream would have got."""
    status = error.get("code") if isinstance(error, dict) else None
    told = names_only(dump({"error": error}))
    known = status if isinstance(status, int) and 400 <= status <= 599 else 500
    return Result(*put_right(known, told))


def meter_body(meter: Meter, body: bytes) -> None:
    """Read the figures of a whole body, if it has any."""
    if b'"usage"' not in body and b'"timings"' not in body:
        meter.saw({})
        return
    try:
        data = orjson.loads(body)
    except ValueError:
        return
    if isinstance(data, dict):
        meter.saw(data)
