"""What is being answered now, and how somebody with the right to do so ends it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

import pytest

from llamaman.errors import NotFound
from llamaman.gateway.dialect import SSE_HEADERS, Call, Chunk, Emit, Next, Serving, Start
from llamaman.gateway.exchange import OpenStream
from llamaman.gateway.in_flight import InFlight, RequestView
from llamaman.records import NOBODY

from .small_pipeline import HEAD, House, Scripted, ask, event, house

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Until = Callable[..., Coroutine[Any, Any, None]]


async def one_event_and_silence(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + event("once upon"))
    await asyncio.Event().wait()


async def silence(path: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def streaming() -> Serving:
    yield Start(200, SSE_HEADERS)
    got: Any = yield Call("POST", "/v1/chat/completions", b"{}", mode="stream")
    while isinstance(got, Chunk):
        yield Emit(b"data: %b\n\n" % json.dumps(got.data).encode())
        got = yield Next()


def whole() -> Serving:
    yield Call("POST", "/v1/chat/completions", b"{}", mode="assemble")


def in_flight(inside: House) -> InFlight:
    return InFlight(inside.pipeline.exchanges, asyncio.get_running_loop())


async def seen(flight: InFlight) -> list[RequestView]:
    """As management sees it: from a thread of its own."""
    return await asyncio.to_thread(flight.views)


def test_a_request_is_shown_with_what_it_does_and_no_word_of_what_it_says(run: Run, until: Until) -> None:
    async def main() -> None:
        async with house(Scripted(streaming, stream=True), one_event_and_silence) as inside:
            flight = in_flight(inside)
            assert await seen(flight) == []
            begun = time.monotonic()
            _, writer = await ask(inside.port, b'{"prompt": "my secret"}')
            await until(lambda: any(e.phase == "generate" for e in flight._views()))
            (view,) = await seen(flight)
            assert (view.model, view.instance_id, view.dialect, view.path) == (
                "tiny",
                "i0",
                "scripted",
                "/ask",
            )
            assert (view.stream, view.surface, view.address) == (True, "proxy", "127.0.0.1")
            assert (view.actor, view.key_id, view.session) == ("none", None, None)
            assert (view.prompt_tokens, view.completion_tokens) == (None, None), (
                "unknown until the engine says so"
            )
            assert 0 <= view.seconds <= time.monotonic() - begun + 0.001  # it is rounded
            assert "secret" not in json.dumps(asdict(view))
            writer.close()
            await until(inside.at_rest)
            assert await seen(flight) == []

    run(main())


def test_a_request_that_waits_for_a_slot_is_in_the_queue(run: Run, until: Until) -> None:
    async def main() -> None:
        async with house(Scripted(whole), silence, slots=1) as inside:
            flight = in_flight(inside)
            writers = [(await ask(inside.port))[1] for _ in range(2)]
            await until(lambda: sorted(view.phase for view in flight._views()) == ["prefill", "queue"])
            for writer in writers:
                writer.close()
            await until(inside.at_rest)

    run(main())


@pytest.mark.parametrize("serve", [whole, streaming], ids=["before the answer", "in the answer"])
def test_a_cancelled_request_is_told_by_whom_and_its_slot_is_free(
    run: Run, until: Until, serve: Callable[[], Serving]
) -> None:
    async def main() -> None:
        behave = silence if serve is whole else one_event_and_silence
        async with house(Scripted(serve, stream=serve is streaming), behave) as inside:
            flight = in_flight(inside)
            reader, writer = await ask(inside.port)
            wanted = "prefill" if serve is whole else "generate"
            await until(lambda: any(view.phase == wanted for view in flight._views()))
            (view,) = await seen(flight)
            await asyncio.to_thread(flight.cancel, view.id, "session:ann")
            answer = await reader.read()
            assert b"cancelled by session:ann" in answer
            assert answer.startswith(b"HTTP/1.1 403" if serve is whole else b"HTTP/1.1 200")
            writer.close()
            await until(inside.at_rest)
            with pytest.raises(NotFound, match="may be over already"):
                await asyncio.to_thread(flight.cancel, view.id, "session:ann")

    run(main())


def test_only_the_one_that_was_named_is_cancelled(run: Run, until: Until) -> None:
    async def main() -> None:
        async with house(Scripted(whole), silence, slots=2) as inside:
            flight = in_flight(inside)
            writers = [(await ask(inside.port))[1] for _ in range(2)]
            await until(lambda: len(flight._views()) == 2)
            first, second = await seen(flight)
            await asyncio.to_thread(flight.cancel, second.id, "key:ci")
            await until(lambda: len(flight._views()) == 1)
            assert [view.id for view in await seen(flight)] == [first.id]
            for writer in writers:
                writer.close()
            await until(inside.at_rest)

    run(main())


def test_log_and_event_streams_are_no_requests(run: Run) -> None:
    async def main() -> None:
        async with house(Scripted(whole), silence) as inside:
            flight = in_flight(inside)
            stream = OpenStream(NOBODY)
            inside.pipeline.exchanges.add(stream)
            assert await seen(flight) == []
            with pytest.raises(NotFound):
                await asyncio.to_thread(flight.cancel, stream.id, "session:ann")

    run(main())
