"""The engine client against servers that do exactly what a test tells them, byte by byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaman.gateway.upstream import Address, Response, Upstream, UpstreamError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """The engine's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """One request, head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        return head + await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        """Bytes that leave at once."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with a reset instead of an end of file."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def engine(script: Callable[[Peer, int], Awaitable[None]], **options: Any) -> AsyncIterator[Upstream]:
    """An engine that runs `script(peer, number)` for each connection, and a client to it."""
    number = 0
    tasks: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Peer(reader, writer), number)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    upstream = Upstream(Address("127.0.0.1", server.sockets[0].getsockname()[1]), **options)
    try:
        yield upstream
    finally:
        upstream.abort()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def get(upstream: Upstream, **options: Any) -> Response:
    options.setdefault("silence_s", 20.0)
    return await upstream.request("GET", b"/x", [(b"accept", b"*/*")], **options)


async def read_to_end(response: Response) -> bytes:
    parts = []
    while block := await response.read_block():
        parts.append(block)
    return b"".join(parts)


def test_a_request_is_one_well_formed_message(run: Any) -> None:
    async def check() -> None:
        seen: list[bytes] = []

        async def script(peer: Peer, number: int) -> None:
            while True:
                seen.append(await peer.request())
                await peer.send(OK)

        async with engine(script) as upstream:
            await (await get(upstream)).read_all(10)
            headers = [(b"Content-Type", b"a/b")]
            response = await upstream.request("POST", b"/p?q=1", headers, b"{}", silence_s=5, host=b"h:1")
            await response.read_all(10)
            await (await upstream.request("POST", b"/p", [], silence_s=5)).read_all(10)
        assert seen == [
            b"GET /x HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n",
            b"POST /p?q=1 HTTP/1.1\r\nhost: h:1\r\ncontent-type: a/b\r\ncontent-length: 2\r\n\r\n{}",
            b"POST /p HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n",
        ]

    run(check())


def test_a_large_body_arrives_whole(run: Any) -> None:
    async def check() -> None:
        sizes: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            sizes.append(len((await peer.request()).split(b"\r\n\r\n", 1)[1]))
            await peer.send(OK)

        async with engine(script) as upstream:
            response = await upstream.request("POST", b"/p", [], b"x" * (4 << 20), silence_s=20)
            assert await response.read_all(10) == b"ok"
        assert sizes == [4 << 20]

    run(check())


@pytest.mark.parametrize(
    ("target", "headers", "host"),
    [
        (b"/a\r\nX: y", [], b"h"),
        (b"/a b", [], b"h"),
        (b"/a", [(b"x", b"a\r\ny: b")], b"h"),
        (b"/a", [(b"x\n", b"a")], b"h"),
        (b"/a", [], b"h\r\nx: y"),
    ],
)
def test_nothing_can_be_injected_into_a_request(run: Any, target: bytes, headers: Any, host: bytes) -> None:
    async def check() -> None:
        with pytest.raises(ValueError, match="line break"):
            await Upstream(Address("127.0.0.1", 1)).request("GET", target, headers, silence_s=1, host=host)

    run(check())


def test_connections_are_reused_until_their_time(run: Any) -> None:
    async def check() -> None:
        numbers: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            while True:
                await peer.request()
                numbers.append(number)
                await peer.send(OK)

        async with engine(script, keepalive_s=600.0) as upstream:
            for _ in range(3):
                response = await get(upstream)
                assert (response.status, response.headers) == (200, [(b"content-length", b"2")])
                assert await read_to_end(response) == b"ok"
            upstream._idle[0].heard -= 601.0  # as if that long had passed
            await (await get(upstream)).read_all(10)
        assert numbers == [1, 1, 1, 2]

    run(check())


def test_no_more_connections_idle_than_allowed(run: Any, until: Any) -> None:
    async def check() -> None:
        closed: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            try:
                while True:
                    await peer.request()
                    await peer.send(OK)
            finally:
                closed.append(number)

        async with engine(script, max_idle=1) as upstream:
            responses = [await get(upstream) for _ in range(3)]
            for response in responses:
                await response.read_all(10)
            await until(lambda: len(closed) == 2)

    run(check())


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokgarbage",
    ],
)
def test_a_connection_that_said_more_or_wants_to_close_is_not_reused(run: Any, first: bytes) -> None:
    async def check() -> None:
        numbers: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            while True:
                await peer.request()
                numbers.append(number)
                await peer.send(first)

        async with engine(script) as upstream:
            for _ in range(2):
                assert await (await get(upstream)).read_all(10) == b"ok"
        assert numbers == [1, 2]

    run(check())


def test_bytes_that_nobody_asked_for_close_an_idle_connection(run: Any, until: Any) -> None:
    async def check() -> None:
        numbers: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            numbers.append(number)
            await peer.send(OK)
            if number == 1:
                await asyncio.sleep(0.02)
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake")
            await peer.request()

        async with engine(script) as upstream:
            assert await (await get(upstream)).read_all(10) == b"ok"
            await until(lambda: not upstream._all)
            assert await (await get(upstream)).read_all(10) == b"ok"
        assert numbers == [1, 2]

    run(check())


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_stale_reused_connection_is_retried_once_on_a_new_one(run: Any, end: str) -> None:
    async def check() -> None:
        requests: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            requests.append(number)
            await peer.send(OK)
            if number == 1:
                await peer.request()
                requests.append(number)
                if end == "reset":
                    peer.reset()
                return
            await peer.request()

        async with engine(script) as upstream:
            await (await get(upstream)).read_all(10)
            assert await (await get(upstream)).read_all(10) == b"ok"
        assert requests == [1, 1, 2]

    run(check())


def test_a_fresh_connection_is_never_retried(run: Any) -> None:
    async def check() -> None:
        requests: list[int] = []

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            requests.append(number)

        async with engine(script) as upstream:
            with pytest.raises(UpstreamError) as failed:
                await get(upstream)
            assert (failed.value.kind, failed.value.sent, failed.value.received) == ("reset", True, False)
        assert requests == [1]

    run(check())


@pytest.mark.parametrize(("end", "kind"), [("close", "truncated"), ("reset", "reset")])
def test_a_reused_connection_that_answered_with_one_byte_is_not_retried(
    run: Any, end: str, kind: str
) -> None:
    async def check() -> None:
        requests: list[int] = []
        byte_arrived = asyncio.Event()

        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            requests.append(number)
            await peer.send(OK)
            await peer.request()
            requests.append(number)
            await peer.send(b"H")
            await byte_arrived.wait()
            if end == "reset":
                peer.reset()

        async with engine(script) as upstream:
            await (await get(upstream)).read_all(10)
            (connection,) = upstream._all
            asking = asyncio.ensure_future(get(upstream))
            while not connection._received or len(requests) < 2:
                await asyncio.sleep(0.005)
            byte_arrived.set()
            with pytest.raises(UpstreamError) as failed:
                await asking
            assert (failed.value.kind, failed.value.received) == (kind, True)
        assert requests == [1, 1]

    run(check())


@pytest.mark.parametrize(
    ("wire", "end", "kind", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", "close", None, b"abcde"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "close", "truncated", b"abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "reset", "reset", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", "close", None, b"abc"),
        (CHUNKED + b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n", "close", None, b"abc"),
        (CHUNKED + b"3\r\nabc\r\n0\r\n", "close", "truncated", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n", "close", "truncated", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n", "reset", "reset", b"abc"),
        (CHUNKED + b"3\r\nabc\r\nzz\r\n", "stay", "protocol", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", "close", None, b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", "reset", "reset", b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "stay", None, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "stay", None, b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "stay", None, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\n" + OK, "stay", None, b"ok"),
    ],
)
def test_complete_truncated_and_reset_are_never_confused(
    run: Any, wire: bytes, end: str, kind: str | None, body: bytes
) -> None:
    async def check() -> None:
        for cuts in (False, True):
            got_head = asyncio.Event()

            async def script(
                peer: Peer, number: int, cuts: bool = cuts, got: asyncio.Event = got_head
            ) -> None:
                await peer.request()
                for piece in [wire[i : i + 1] for i in range(len(wire))] if cuts else [wire]:
                    await peer.send(piece)
                    if cuts:
                        await asyncio.sleep(0)
                await got.wait()
                if end == "reset":
                    peer.reset()
                elif end == "stay":
                    await peer.request()

            async with engine(script) as upstream:
                got = b""
                failure = None
                try:
                    response = await get(upstream)
                    while len(got) < len(body):
                        got += await response.read_block()
                    got_head.set()
                    while block := await response.read_block():
                        got += block
                    assert response.complete
                except UpstreamError as error:
                    failure = error.kind
                assert (failure, got) == (kind, body)

    run(check())


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4 + OK,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000,
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_http_or_beyond_a_bound_is_a_protocol_error(run: Any, wire: bytes) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(wire)
            await peer.request()

        async with engine(script) as upstream:
            with pytest.raises(UpstreamError) as failed:
                await get(upstream)
            assert failed.value.kind == "protocol"
            assert not upstream._idle

    run(check())


@pytest.mark.parametrize("tail", [b"3;" + b"x" * 500_000, b"0\r\n" + b"T: y\r\n" * 80_000])
def test_endless_chunk_framing_is_a_protocol_error(run: Any, tail: bytes) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(CHUNKED + b"1\r\na\r\n" + tail)
            await peer.request()

        async with engine(script) as upstream:
            with pytest.raises(UpstreamError) as failed:
                await read_to_end(await get(upstream))
            assert failed.value.kind == "protocol"

    run(check())


def test_an_answer_to_head_has_no_body(run: Any) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            await peer.request()

        async with engine(script) as upstream:
            response = await upstream.request("HEAD", b"/", [], silence_s=5)
            assert await response.read_all(10) == b""
            assert dict(response.headers) == {b"content-length": b"5"}

    run(check())


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


def test_read_all_has_a_limit(run: Any) -> None:
    async def check() -> None:
        async def script(peer: Peer, number: int) -> None:
            await peer.request()
            await peer.send(CHUNKED + b"a\r\n0123456789\r\n" * 100 + b"0\r\n\r\n")
            await peer.request()

        async with engine(script) as upstream:
            with pytest.raises(UpstreamError, match="larger than 500 bytes"):
                await (await get(upstream)).read_all(500)
        async with engine(script) as upstream:
            assert len(await (await get(upstream)).read_all(1000)) == 1000

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


def test_nobody_listening_is_a_connect_error_with_nothing_sent(run: Any, tmp_path: Path) -> None:
    async def check() -> None:
        for address in (Address("127.0.0.1", 1), Address(path=str(tmp_path / "none.sock"))):
            with pytest.raises(UpstreamError) as failed:
                await get(Upstream(address))
            assert (failed.value.kind, failed.value.sent) == ("connect", False)

    run(check())


def test_unix_sockets_work_the_same_way(run: Any, tmp_path: Path) -> None:
    async def check() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(reader, writer)
            await peer.request()
            await peer.send(OK)
            await peer.request()
            await peer.send(CHUNKED + b"1\r\na\r\n")
            await reader.read()
            writer.close()

        path = str(tmp_path / "engine.sock")
        server = await asyncio.start_unix_server(accept, path)
        upstream = Upstream(Address(path=path))
        assert await (await get(upstream)).read_all(10) == b"ok"
        assert await (await get(upstream)).cancel() is True
        server.close()

    run(check())
