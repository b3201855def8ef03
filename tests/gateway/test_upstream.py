"""Requests to an engine: what is sent, over which connection, and when it is sent once more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llamaman.gateway.upstream import Address, Upstream, UpstreamError

from .scripted_engine import CHUNKED, OK, Peer, engine, get, read_to_end


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
