"""An engine's answers: complete, broken off or nonsense, and never taken for one another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llamaman.gateway.upstream import UpstreamError

from .scripted_engine import CHUNKED, OK, Peer, engine, get, read_to_end


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
