"""However a request ends: its permit, its connection and the engine's work end with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from llamaman.gateway import broken_engines
from llamaman.gateway import exchange as exchange_module
from llamaman.gateway.dialect import (
    JSON_HEADERS,
    SSE_HEADERS,
    Call,
    Calls,
    Chunk,
    Emit,
    Next,
    Reply,
    Result,
    Serving,
    Start,
)
from llamaman.records import State

from .small_pipeline import HEAD, Scripted, ask, chunk, event, house, whole

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Until = Callable[..., Awaitable[None]]
CHAT = "/v1/chat/completions"
END = b"0\r\n\r\n"
DONE = chunk(b"data: [DONE]\n\n") + END


def one(mode: str) -> Callable[[], Serving]:
    """A dialect that makes one call and hands the body on."""

    def serve() -> Serving:
        result: Any = yield Call("POST", CHAT, b"{}", mode=mode)  # type: ignore[arg-type] # a literal of the tests
        if not result.relayed:
            yield Reply(result.status, JSON_HEADERS, result.body)

    return serve


def events() -> Serving:
    """A dialect that takes a stream event by event."""
    yield Start(200, SSE_HEADERS)
    got: Any = yield Call("POST", CHAT, b"{}", mode="stream")
    while isinstance(got, Chunk):
        yield Emit(b"data: %b\n\n" % json.dumps(got.data).encode())
        got = yield Next()
    if got.status != 200:
        yield Emit(b"data: %b\n\n" % got.body)


SERVES = {"plain": one("plain"), "assemble": one("assemble"), "relay": one("relay"), "stream": events}


async def for_ever() -> None:
    """An engine's work that has no end of its own: only an engine that is told to stop comes to rest."""
    await asyncio.Event().wait()


def says(*pieces: bytes, goes_on: bool = False) -> Callable[[str, asyncio.StreamWriter], Awaitable[None]]:
    """An engine that sends these bytes, and then has done its work or goes on for ever."""

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if goes_on:
            await for_ever()

    return behave


@pytest.mark.parametrize("mode", ["assemble", "relay", "stream"])
def test_a_good_stream_leaves_nothing_behind(run: Run, until: Until, mode: str) -> None:
    async def main() -> None:
        async with house(Scripted(SERVES[mode]), says(HEAD, event("a"), event("b"), DONE)) as place:
            for _ in range(3):
                status, raw = await whole(place.port)
                assert (status, b"a" in raw) == (200, True)
            await until(place.at_rest)
            assert len(place.upstream._idle) == 1  # one connection carried all three

    run(main())


@pytest.mark.parametrize("mode", ["plain", "assemble", "relay", "stream"])
@pytest.mark.parametrize("when", ["before the head", "after the head", "in the middle"])
def test_a_client_that_leaves_ends_the_engines_work(run: Run, until: Until, mode: str, when: str) -> None:
    pieces = {"before the head": (), "after the head": (HEAD,), "in the middle": (HEAD, event("a"))}[when]

    async def main() -> None:
        async with house(Scripted(SERVES[mode]), says(*pieces, goes_on=True)) as place:
            _, writer = await ask(place.port)
            await until(lambda: place.engine.busy == 1)
            await asyncio.sleep(0.06)
            assert place.instance.active == 1
            writer.close()
            await until(place.at_rest)
            assert place.registry.suspects == 0

    run(main())


@pytest.mark.parametrize("mode", ["assemble", "relay", "stream"])
def test_an_error_inside_a_stream_is_told_and_leaves_nothing_behind(
    run: Run, until: Until, mode: str
) -> None:
    failed = chunk(b'data: {"error":{"code":500,"message":"out of luck"}}\n\n')

    async def main() -> None:
        for tail in (END, b""):  # the engine ends its answer, or goes on computing
            behave = says(HEAD, event("a"), failed + tail, goes_on=not tail)
            async with house(Scripted(SERVES[mode]), behave) as place:
                if mode == "relay" and not tail:
                    continue  # passed on as it is; the end is the engine's
                status, raw = await whole(place.port)
                assert b"out of luck" in raw
                assert status == (500 if mode == "assemble" else 200)
                await until(place.at_rest)

    run(main())


@pytest.mark.parametrize("mode", ["assemble", "stream"])
@pytest.mark.parametrize("junk", [b"data: no json\n\n", b"data: [1]\n\n", b"x" * (9 << 20)])
@pytest.mark.parametrize("first", [True, False])
def test_a_stream_that_makes_no_sense_is_a_502_and_the_engine_is_stopped(
    run: Run, until: Until, mode: str, junk: bytes, first: bool
) -> None:
    async def main() -> None:
        pieces = (chunk(junk),) if first else (event("a"), chunk(junk))
        async with house(Scripted(SERVES[mode]), says(HEAD, *pieces, goes_on=True)) as place:
            status, raw = await whole(place.port)
            assert b"the engine" in raw
            assert b"internal" not in raw
            assert status == (502 if mode == "assemble" else 200)
            await until(place.at_rest)

    run(main())


@pytest.mark.parametrize("mode", ["plain", "assemble", "relay", "stream"])
def test_an_engine_that_breaks_off_is_an_error_never_a_short_answer(
    run: Run, until: Until, mode: str
) -> None:
    async def breaks(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + event("a"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    async def main() -> None:
        async with house(Scripted(SERVES[mode]), breaks) as place:
            status, raw = await whole(place.port)
            assert b'"error": "the engine broke the connection' in raw
            assert status == (502 if mode in ("plain", "assemble") else 200)
            await until(place.at_rest)

    run(main())


@pytest.mark.parametrize("mode", ["plain", "assemble", "relay", "stream"])
@pytest.mark.parametrize("answers", [True, False])
def test_a_lost_request_is_sent_again_only_to_an_engine_that_is_known_to_live(
    run: Run, until: Until, monkeypatch: pytest.MonkeyPatch, mode: str, answers: bool
) -> None:
    monkeypatch.setattr(broken_engines, "_EXIT_TOLD_S", 0.1)
    monkeypatch.setattr(broken_engines, "_ANSWER_S", 60.0)

    async def hangs_up(path: str, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def main() -> None:
        async with house(Scripted(SERVES[mode]), hangs_up) as place:
            place.engine.is_healthy = answers
            status, raw = await whole(place.port)
            assert b"the engine broke the connection" in raw
            assert status == (200 if mode == "stream" else 502)
            assert (len(place.engine.seen) > 1) == answers
            assert (place.registry.suspects > 0) == (not answers)
            await until(place.at_rest)

    run(main())


def test_when_one_of_several_calls_fails_the_others_are_stopped(run: Run, until: Until) -> None:
    def several() -> Serving:
        yield Calls([Call("POST", path, b"{}") for path in ("/a", "/fails", "/c")], limit=3)
        yield Reply(200, JSON_HEADERS, b"{}")

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/fails":
            await asyncio.sleep(0.05)
            writer.write(b"not http at all\r\n\r\n")
        await for_ever()

    async def main() -> None:
        async with house(Scripted(several), behave, slots=3) as place:
            lowest = 0
            task = asyncio.create_task(whole(place.port))
            while not task.done():
                lowest = min(lowest, place.instance.active)
                await asyncio.sleep(0)
            status, _ = await task
            assert status == 502
            await until(place.at_rest)
            assert lowest == 0  # a permit that is returned twice lets one too many in
            assert place.instance.active == 0

    run(main())


def test_several_calls_run_under_one_permit_and_keep_their_order(run: Run, until: Until) -> None:
    running = most = 0
    two_at_once = asyncio.Event()

    def several() -> Serving:
        got: Any = yield Calls([Call("POST", f"/{n}", b"{}") for n in range(6)], limit=2)
        yield Reply(200, JSON_HEADERS, json.dumps([r.body.decode() for r in got.results]).encode())

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            two_at_once.set()
        await two_at_once.wait()
        await asyncio.sleep(0.01)  # for a third one, which must not come
        running -= 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%b" % path.encode())

    async def main() -> None:
        async with house(Scripted(several), behave) as place:
            status, raw = await whole(place.port)
            assert (status, json.loads(raw.split(b"\r\n\r\n", 1)[1])) == (200, [f"/{n}" for n in range(6)])
            assert most == 2
            await until(place.at_rest)

    run(main())


def test_a_revoked_request_is_told_why_and_leaves_nothing_behind(run: Run, until: Until) -> None:
    from llamaman.errors import Unauthorized

    async def main() -> None:
        async with house(Scripted(SERVES["relay"]), says(HEAD, event("a"), goes_on=True)) as place:
            reader, _ = await ask(place.port)
            await reader.readuntil(b"data: ")
            (running,) = place.pipeline.exchanges.all()
            running.end(Unauthorized("Invalid API key"))
            assert b"Invalid API key" in await reader.read()
            await until(place.at_rest)

    run(main())


# --- a dialect's own bugs -------------------------------------------------------------------------------


class Bug(Exception):
    """What nobody expected; its text is nobody's business but the log's."""


def broken_at_once() -> Serving:
    raise Bug("secret")
    yield


def broken_after_the_call(mode: str) -> Callable[[], Serving]:
    def serve() -> Serving:
        yield Call("POST", CHAT, b"{}", mode=mode)  # type: ignore[arg-type] # a literal of the tests
        raise Bug("secret")

    return serve


def broken_in_the_stream() -> Serving:
    yield Start(200, SSE_HEADERS)
    yield Call("POST", CHAT, b"{}", mode="stream")
    yield Emit(b"data: first\n\n")
    raise Bug("secret")


def broken_in_its_own_end() -> Serving:
    try:
        yield Start(200, SSE_HEADERS)
        yield Call("POST", CHAT, b"{}", mode="stream")
        yield Emit(b"data: first\n\n")
        yield from broken_at_once()
    finally:
        raise Bug("secret of the end")


def broken_when_closed() -> Serving:
    try:
        yield Start(200, SSE_HEADERS)
        yield Call("POST", CHAT, b"{}", mode="stream")
        while True:
            yield Emit(b"data: first %b\n\n" % (b"x" * 65536))
    finally:
        raise Bug("secret")


class BrokenOpen(Scripted):
    """A dialect that cannot read requests."""

    def open(self, request: Any) -> Any:
        raise Bug("secret")


class Nonsense(Scripted):
    """A dialect that returns and yields what nobody asked for."""

    def open(self, request: Any) -> Any:
        return {"not": "an intent"}


BUGS: dict[str, tuple[Scripted, int]] = {
    "open": (BrokenOpen(broken_at_once), 500),
    "open returns nonsense": (Nonsense(broken_at_once), 500),
    "serve": (Scripted(broken_at_once), 500),
    "serve is no generator": (Scripted(lambda: None), 500),  # type: ignore[arg-type,return-value] # the mistake
    "after a plain call": (Scripted(broken_after_the_call("plain")), 500),
    "after an assembled call": (Scripted(broken_after_the_call("assemble")), 500),
    "in a stream": (Scripted(broken_in_the_stream), 200),
    "in its own end": (Scripted(broken_in_its_own_end), 200),
}


@pytest.mark.parametrize("where", BUGS)
def test_a_bug_of_a_dialect_is_told_in_its_own_shape_and_leaves_nothing_behind(
    run: Run, until: Until, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    dialect, expected = BUGS[where]

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + event("a"))
        if "call" in where:
            writer.write(DONE)
        else:
            await for_ever()

    async def main() -> None:
        async with house(dialect, behave) as place:
            for _ in range(2):  # the second finds the permit that the first has given back
                status, raw = await whole(place.port)
                assert status == expected
                told = b'{"error": "plugin \'scripted\': internal error'
                assert (b"\r\n\r\n%b" if expected == 500 else b"data: %b") % told in raw
                assert b"secret" not in raw
                if expected == 200:
                    assert raw.endswith(END)
                await until(place.at_rest)
            for record in place.records:
                assert (record.outcome, record.status) == ("error", expected)

    run(main())
    logged = [record for record in caplog.records if record.exc_info and "dialect" in record.getMessage()]
    assert [record.getMessage() for record in logged] == [
        "request /ask through dialect 'scripted' failed"
    ] * 2


def test_a_dialect_that_fails_when_its_client_leaves_does_not_keep_the_engine_at_work(
    run: Run, until: Until
) -> None:
    async def main() -> None:
        async with house(Scripted(broken_when_closed), says(HEAD, event("a"), goes_on=True)) as place:
            reader, writer = await ask(place.port)
            await reader.readuntil(b"first")
            assert place.engine.busy == 1
            writer.close()
            await until(place.at_rest)

    run(main())


class BrokenError(Scripted):
    """A dialect that cannot even tell errors."""

    def error(self, error: Any, *, started: bool) -> Any:
        raise Bug("secret")


@pytest.mark.parametrize("serve", [broken_at_once, broken_in_the_stream])
def test_a_dialect_that_cannot_tell_its_errors_leaves_nothing_behind_either(
    run: Run, until: Until, serve: Callable[[], Serving]
) -> None:
    async def main() -> None:
        async with house(BrokenError(serve), says(HEAD, event("a"), goes_on=True)) as place:
            reader, writer = await ask(place.port)
            raw = await reader.read()
            writer.close()
            assert b"secret" not in raw
            assert raw.startswith(b"HTTP/1.1 500" if serve is broken_at_once else b"HTTP/1.1 200")
            assert not raw.endswith(END), "what broke off does not look complete"
            await until(place.at_rest)

    run(main())


# --- heartbeats -----------------------------------------------------------------------------------------


def test_a_waiting_stream_is_kept_alive_and_then_answered(
    run: Run, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "HEARTBEAT_S", 0.03)

    async def main() -> None:
        has_waited = asyncio.Event()

        async def behave(path: str, writer: asyncio.StreamWriter) -> None:
            await has_waited.wait()
            writer.write(HEAD + event("late") + DONE)

        async with house(Scripted(SERVES["relay"], stream=True), behave) as place:
            reader, writer = await ask(place.port)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            for _ in range(2):
                await reader.readuntil(b": waiting\n\n")
            has_waited.set()
            rest = await reader.read()
            writer.close()
            assert b"late" in rest
            assert rest.endswith(END)
            await until(place.at_rest)

    run(main())


@pytest.mark.parametrize("waits_for", ["the engine's head", "a slot"])
def test_an_error_after_a_heartbeat_is_an_event_of_the_stream(
    run: Run, until: Until, monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    monkeypatch.setattr(exchange_module, "HEARTBEAT_S", 0.03)
    refusal = b'{"error":{"message":"too long"}}'
    has_waited = asyncio.Event()

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        await has_waited.wait()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(refusal), refusal))

    async def main() -> None:
        async with house(Scripted(SERVES["relay"], stream=True), behave) as place:
            if waits_for == "a slot":
                place.instance.state = State.STARTING
            reader, writer = await ask(place.port)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b": waiting\n\n")
            if waits_for == "a slot":
                place.registry.turn(place.instance, State.FAILED, "too long")
            has_waited.set()
            rest = await reader.read()
            writer.close()
            assert rest.index(b'data: {"error"') < rest.index(b"too long")
            assert rest.endswith(END)
            await until(place.at_rest)

    run(main())


def test_an_answer_that_comes_in_time_has_no_heartbeat_and_its_own_status(run: Run) -> None:
    async def main() -> None:
        def refused() -> Serving:
            yield Reply(418, JSON_HEADERS, b"{}")

        async with house(Scripted(refused, stream=True), says()) as place:
            status, raw = await whole(place.port)
            assert (status, b"waiting" in raw) == (418, False)

    run(main())


def test_results_of_a_call_are_told_apart_from_a_relayed_stream() -> None:
    assert (Result(200, b"").relayed, Result(200, b"", relayed=True).relayed) == (False, True)
