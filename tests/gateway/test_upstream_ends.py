"""How answers of an engine end early: by silence, by their reader, and by the end of the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llamaman.gateway.upstream import UpstreamError

from .scripted_engine import CHUNKED, OK, Peer, engine, get, read_to_end


def test_silence_is_noticed_in_head_and_body(run: Any) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            if number == 2:
                await peer.send(CHUNKED + b"1\r\na\r\n")
            await peer.reader.read()

        async with engine(script) as upstream:
            with pytest.raises(UpstreamError) as failed:
                await get(upstream, silence_s=0.1)
            assert (failed.value.kind, failed.value.sent, failed.value.received) == ("silent", True, False)
            response = await get(upstream, silence_s=2.0)
            assert await response.read_block() == b"a"
            with pytest.raises(UpstreamError) as failed:
                await response.read_block()
            assert failed.value.kind == "silent"

    run(check())


def test_bytes_that_flow_are_no_silence_however_long_the_answer_takes(run: Any) -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(CHUNKED)
            while True:
                await go.wait()
                go.clear()
                await peer.send(b"1\r\na\r\n")

        async with engine(script) as upstream:
            response = await get(upstream, silence_s=600.0)
            (connection,) = upstream._all
            for _ in range(3):  # as if 500 s had passed before each byte
                connection.heard -= 500.0
                go.set()
                assert await response.read_block() == b"a"
                connection._check_silence()
                assert response.failure is None
            connection.heard -= 601.0
            connection._check_silence()
            with pytest.raises(UpstreamError) as failed:
                await response.read_block()
            assert failed.value.kind == "silent"

    run(check())


def test_a_shorter_silence_counts_on_a_reused_connection(run: Any) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(OK)
            await peer.request()
            await peer.reader.read()

        async with engine(script) as upstream:
            await (await get(upstream, silence_s=3600)).read_all(10)
            with pytest.raises(UpstreamError, match="silent"):
                await get(upstream, silence_s=0.1)

    run(check())


def test_an_unread_answer_stops_the_engine_and_costs_no_silence(run: Any, until: Any) -> None:
    async def check() -> None:
        size = 64 << 20
        sent = 0

        async def script(peer: Peer, number: int) -> None:
            nonlocal sent
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size >> 16):
                await peer.send(b"x" * 65536)
                sent += 65536
            await peer.request()

        async with engine(script) as upstream:
            response = await get(upstream, silence_s=600.0)
            (connection,) = upstream._all
            await until(lambda: connection._paused)
            for _ in range(200):  # turns in which the engine would send, if it could
                await asyncio.sleep(0)
            assert sent < size
            connection.heard -= 601.0  # as if it had been unread for that long
            connection._check_silence()
            assert response.failure is None
            assert response.unread < 3 << 20
            assert len(await read_to_end(response)) == size

    run(check())


def test_cancel_half_closes_and_waits_for_the_engine(run: Any) -> None:
    async def check() -> None:
        saw: list[str] = []

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(CHUNKED + b"1\r\na\r\n")
            assert await peer.reader.read() == b""
            saw.append("end of file")
            for _ in range(3):  # an engine in the middle of its batch
                await peer.send(b"1\r\nb\r\n")
                await asyncio.sleep(0.02)
            saw.append("stopped")

        async with engine(script) as upstream:
            response = await get(upstream)
            assert await response.read_block() == b"a"
            assert await response.cancel() is True
            assert saw == ["end of file", "stopped"]
            assert not upstream._idle

    run(check())


def test_cancel_gives_up_on_an_engine_that_does_not_stop(run: Any) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(CHUNKED)
            while True:
                await peer.send(b"1\r\na\r\n")
                await asyncio.sleep(0.01)

        async with engine(script) as upstream:
            response = await get(upstream)
            assert await response.cancel(drain_s=0.1) is False

    run(check())


def test_cancel_works_while_the_answer_is_held_back_unread(run: Any, until: Any) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (8 << 20))
            await peer.reader.read()

        async with engine(script) as upstream:
            response = await get(upstream)
            (connection,) = upstream._all
            await until(lambda: connection._paused)
            assert await response.cancel(drain_s=10) is True

    run(check())


def test_a_caller_cancelled_before_the_head_leaves_the_drain_to_its_keeper(run: Any) -> None:
    async def check() -> None:
        saw = asyncio.Event()

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.reader.read()
            saw.set()

        async with engine(script) as upstream:
            kept: list[Any] = []
            waiting = asyncio.ensure_future(get(upstream, abandon=kept.append))
            while not upstream._all:
                await asyncio.sleep(0.005)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await kept[0] is True
            assert saw.is_set()

    run(check())


def test_abort_ends_running_answers_at_once_and_refuses_new_ones(run: Any) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(CHUNKED + b"1\r\na\r\n")
            await peer.reader.read()

        async with engine(script) as upstream:
            response = await get(upstream)
            assert await response.read_block() == b"a"
            reading = asyncio.ensure_future(response.read_block())
            await asyncio.sleep(0)
            upstream.abort()
            with pytest.raises(UpstreamError) as failed:
                await reading
            assert failed.value.kind == "reset"
            with pytest.raises(UpstreamError) as failed:
                await get(upstream)
            assert (failed.value.kind, failed.value.sent) == ("connect", False)

    run(check())


def test_close_lets_a_running_answer_end(run: Any) -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(CHUNKED + b"1\r\na\r\n")
            await go.wait()
            await peer.send(b"1\r\nb\r\n0\r\n\r\n")
            await peer.request()

        async with engine(script) as upstream:
            response = await get(upstream)
            await upstream.close()
            go.set()
            assert await read_to_end(response) == b"ab"
            assert not upstream._idle

    run(check())


def test_a_released_unfinished_answer_drops_its_connection(run: Any) -> None:
    async def check() -> None:
        numbers: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            numbers.append(number)
            await peer.send(CHUNKED + b"1\r\na\r\n")
            await peer.reader.read()

        async with engine(script) as upstream:
            for _ in range(2):
                response = await get(upstream)
                response.release()
                with pytest.raises(UpstreamError, match="released"):
                    await response.read_block()
        assert numbers == [1, 2]

    run(check())
