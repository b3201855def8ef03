"""Bodies over raw sockets: bounded, never half, never taken for a request, and read only when wanted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull, ClientGone

from .plain_apps import GET, deaf, echo, post, reply, request_of


def test_expect_continue_is_answered_only_when_the_body_is_wanted(serve: Any, run: Any) -> None:
    async def check() -> None:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        async with serve(echo) as door:
            client = await door.connect()
            for _ in range(2):
                client.send(head)
                assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                client.send(b"abc")
                assert (await client.answer()).body == b"abc"
        async with serve(deaf) as door:
            client = await door.connect()
            client.send(head)
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (401, "close")

    run(check())


def test_an_early_answer_reaches_a_client_that_is_still_uploading(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(deaf, discard_s=60) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (401, "close")
            # A server that closed over the unread body would answer these bytes with a reset.
            for _ in range(3):
                client.send(b"x" * 300_000)
                await client.writer.drain()
            client.writer.write_eof()
            assert await client.reader.read() == b"", "an end of file, no reset"

    run(check())


def test_what_follows_an_early_answer_is_dropped_and_no_request(serve: Any, run: Any, until: Any) -> None:
    calls: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["path"])
        await reply(send, b"no", 401)

    async def check() -> None:
        async with serve(app, discard_bytes=100_000, discard_s=60) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\nabc")
            assert (await client.answer()).status == 401
            client.send(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n" * 10_000)
            await until(lambda: not door.listeners.connections.members)
        assert calls == ["/"]

    run(check())


def test_a_chunked_body_that_breaks_is_refused_while_the_app_waits(serve: Any, run: Any, until: Any) -> None:
    seen: list[BaseException] = []
    calls: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["path"])
        try:
            await request_of(scope).read_body(1000)
        except ClientGone as gone:
            seen.append(gone)
            raise

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await until(lambda: bool(calls))
            client.send(b"zz\r\n")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert "chunked" in json.loads(answer.body)["error"]
        assert len(seen) == 1

    run(check())


def test_a_body_cut_off_by_the_client_is_never_handed_over(serve: Any, run: Any) -> None:
    async def check() -> None:
        seen: asyncio.Queue[BaseException] = asyncio.Queue()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await request_of(scope).read_body(1000)
            except Exception as error:
                seen.put_nowait(error)
                raise

        async with serve(app) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            await client.writer.drain()
            client.writer.close()
            assert isinstance(await seen.get(), ClientGone)

    run(check())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(serve: Any, run: Any, chunked: bool) -> None:
    seen: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await reply(send, await request_of(scope).read_body(1000))
        except BodyTooLarge as error:
            seen.append(error)
            raise

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            if chunked:
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(11):
                    client.send(b"64\r\n" + b"x" * 100 + b"\r\n")
            else:
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert len(seen) == 1

    run(check())


def test_a_body_at_the_limit_passes(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(echo) as door:
            client = await door.connect()
            client.send(post(b"x" * (1 << 20)))
            assert len((await client.answer()).body) == 1 << 20

    run(check())


def test_all_buffered_bodies_share_one_budget(serve: Any, run: Any, until: Any) -> None:
    async def check() -> None:
        seen: asyncio.Queue[BaseException] = asyncio.Queue()
        hold = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                body = await request_of(scope).read_body(1000)
            except BufferFull as error:
                seen.put_nowait(error)
                raise
            if scope["path"] == "/hold":
                await hold.wait()
            await reply(send, body)

        async with serve(app, budget_bytes=1000) as door:
            budget = door.listeners.connections.budget
            holder = await door.connect()
            holder.send(post(b"x" * 600).replace(b"/ ", b"/hold ", 1))
            await until(lambda: budget.used_bytes == 600)
            client = await door.connect()
            client.send(post(b"x" * 600))
            answer = await client.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert isinstance(await seen.get(), BufferFull)
            hold.set()
            assert (await holder.answer()).status == 200
            await until(lambda: budget.used_bytes == 0)
            client = await door.connect()
            client.send(post(b"x" * 600))
            assert (await client.answer()).status == 200

    run(check())


def test_a_trickling_body_is_ended(serve: Any, run: Any) -> None:
    seen: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await request_of(scope).read_body(1000)
        except BodyTooSlow as error:
            seen.append(error)
            raise

    async def check() -> None:
        async with serve(app, body_grace_s=0.1, discard_s=0.1) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\nabc")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert len(seen) == 1

    run(check())


def test_an_upload_is_streamed_with_back_pressure(serve: Any, run: Any, until: Any) -> None:
    async def check() -> None:
        go = asyncio.Event()
        total = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal total
            await go.wait()
            while True:
                message = await receive()
                total += len(message["body"])
                if not message["more_body"]:
                    break
            await reply(send, b"%d" % total)

        async with serve(app) as door:
            size = 32 << 20
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            client.send(b"x" * size)
            await until(lambda: any(c.body_paused for c in door.listeners.connections.members))
            (connection,) = door.listeners.connections.members
            assert connection.request.buffered < 1 << 20
            go.set()
            assert (await client.answer()).body == b"%d" % size

    run(check())


def test_an_asgi_app_can_read_a_chunked_body_and_wait_for_the_disconnect(serve: Any, run: Any) -> None:
    async def check() -> None:
        gone: asyncio.Queue[str] = asyncio.Queue()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body = b""
            more = True
            while more:
                message = await receive()
                body += message["body"]
                more = message["more_body"]
            watcher = asyncio.ensure_future(receive())
            await reply(send, body)
            gone.put_nowait((await watcher)["type"])

        async with serve(app) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            client.send(b"0\r\n\r\n")
            assert (await client.answer()).body == b"abc"
            assert await gone.get() == "http.disconnect"
            client.send(GET)
            assert (await client.answer()).status == 200

    run(check())
