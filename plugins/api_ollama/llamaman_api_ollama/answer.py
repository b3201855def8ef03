"""Carrying out one answer: from the first operation of a call to the last line. A generator of operations, pure.

The engine is always asked to stream, also for clients that did not ask for it, so that one that leaves frees its
slot. Status and headers are held back until there is something to say, so that an error before it has its own status.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from llamaman import (
    Call,
    Chunk,
    Emit,
    Event,
    Lease,
    LlamaManError,
    Next,
    Op,
    Reply,
    Request,
    Result,
    Serving,
    Start,
)
from llamaman_api_ollama import errors, stream
from llamaman_api_ollama.stream import Delta, Shape, ToolCalls

#: Runs after the engine's answer, with its text; gives members for the last object.
Tail = Callable[[str], Generator[Op, Event, dict[str, Any]]]


def json_reply(data: Mapping[str, Any]) -> Reply:
    """A whole answer."""
    return Reply(200, errors.JSON, stream.text(data))


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is told.

    :ivar top: alternatives per token that the client asked for.
    :ivar read: what an event of the call means.
    :ivar tail: more to ask when the engine is done.
    """

    shape: Shape
    model: str
    stream: bool
    top: int
    read: Callable[[Mapping[str, Any]], Delta]
    tail: Tail | None = None


def tell(call: Call, manner: Manner, request: Request, lease: Lease) -> Serving:
    """Ask the engine and tell the client what it says."""
    telling = _Telling(manner)
    event = yield call
    try:
        while isinstance(event, Chunk):
            yield from telling.take(manner.read(event.data), event.at)
            event = yield Next()
        assert isinstance(event, Result)
        if event.status >= 400:
            raise errors.of_engine(event)
        if call.mode == "plain":
            yield from telling.take(manner.read(_object(event.body)), event.at)
        if telling.finish is None:
            raise errors.Told(502, errors.STOPPED)
        calls = telling.calls.whole(cut_off=telling.finish == "length")
    except LlamaManError as error:
        yield Emit(errors.line(error)) if telling.started else errors.reply(error)
        return
    more = (yield from manner.tail("".join(telling.content))) if manner.tail else {}
    at = event.at or telling.at
    ended = {
        "done_reason": "length" if telling.finish == "length" else "stop",
        **more,
        **stream.figures(telling.timings, received=request.received, granted=lease.granted, ended=at),
    }
    yield from telling.end(calls, ended, at)


class _Telling:
    """What has been told, and what is still to be."""

    def __init__(self, manner: Manner) -> None:
        self._manner = manner
        self.started = False
        self.content: list[str] = []
        self._thinking: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self.calls = ToolCalls()
        self.finish: str | None = None
        self.timings: Mapping[str, Any] | None = None
        self.at = 0.0

    def take(self, delta: Delta, at: float) -> Generator[Op, Event, None]:
        """One event of the engine."""
        self.at = at
        self.finish = delta.finish or self.finish
        self.timings = delta.timings or self.timings
        self.calls.add(delta.calls)
        if not delta.is_news:
            return
        manner = self._manner
        logprobs = stream.logprobs(delta.logprobs, manner.top)
        self.content.append(delta.content)
        if manner.stream:
            data = stream.answer(
                manner.shape, manner.model, at, content=delta.content, thinking=delta.thinking
            )
            yield from self._emit({**data, "logprobs": logprobs} if logprobs else data)
        else:
            self._thinking.append(delta.thinking)
            self._logprobs += logprobs

    def end(
        self, calls: list[dict[str, Any]], ended: Mapping[str, Any], at: float
    ) -> Generator[Op, Event, None]:
        """The last of it: whole tool calls on a line of their own, then the line with the figures."""
        manner = self._manner
        if manner.stream:
            if calls:
                yield from self._emit(stream.answer(manner.shape, manner.model, at, calls=calls))
            yield from self._emit({**stream.answer(manner.shape, manner.model, at, done=True), **ended})
            return
        data = stream.answer(
            manner.shape,
            manner.model,
            at,
            content="".join(self.content),
            thinking="".join(self._thinking),
            calls=calls,
            done=True,
        )
        data.update(ended)
        if self._logprobs:
            data["logprobs"] = self._logprobs
        yield json_reply(data)

    def _emit(self, data: Mapping[str, Any]) -> Generator[Op, Event, None]:
        if not self.started:
            self.started = True
            yield Start(200, stream.NDJSON)
        yield Emit(stream.line(data))


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise errors.Told(502, "the engine's answer is not understood")
    return data
