"""What a client may rely on, and what it cannot do: the connection class against raw sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import Any

import pytest

from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull, ClientGone
from llamaman.gateway.request import Request

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes, *headers: bytes) -> bytes:
    """A POST with a Content-Length."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), lines, body)


def request_of(scope: dict[str, Any]) -> Request:
    """The native request object of a scope."""
    request = scope["extensions"]["llamaman.request"]
    assert isinstance(request, Request)
    return request


async def reply(send: Any, body: bytes = b"ok", status: int = 200, headers: Any = ()) -> None:
    """A complete answer."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the body."""
    await reply(send, await request_of(scope).read_body(1 << 20))


async def deaf(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer 401 without a look at the body."""
    await reply(send, b"no", 401)


def test_one_connection_carries_many_requests(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(echo) as door:
            client = await door.connect()
            for body in (b"one", b"", b"three", b"three"):
                client.send(post(body))
                answer = await client.answer()
                assert (answer.status, answer.body) == (200, body)
                assert "connection" not in answer.headers
                assert answer.headers["server"] == "llamaman"
                assert answer.headers["date"].endswith("GMT")
            client.send(post(b"last", b"Connection: close"))
            assert (await client.answer()).headers["connection"] == "close"
            assert await client.at_end()

    run(check())


def test_a_repeated_head_with_another_body_is_another_request(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(echo) as door:
            client = await door.connect()
            head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
            for body in (b"aaa", b"bbb"):
                client.send(head + body)
                assert (await client.answer()).body == body
            client.send(head)
            client.send(b"cc")
            await asyncio.sleep(0)
            client.send(b"c")
            assert (await client.answer()).body == b"ccc"

    run(check())


def test_http_1_0_closes_unless_it_asks_to_stay(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(echo) as door:
            client = await door.connect()
            client.send(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.answer()).headers["connection"] == "keep-alive"
            client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
            assert (await client.answer()).headers["connection"] == "close"
            assert await client.at_end()

    run(check())


def test_a_head_request_gets_the_length_and_no_body(serve: Any, run: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await reply(send, b"12345")

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            for _ in range(2):
                client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = await client.answer(bodyless=True)
                assert answer.headers["content-length"] == "5"

    run(check())


@pytest.mark.parametrize("status", [204, 304])
def test_bodyless_statuses_send_no_body(serve: Any, run: Any, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await reply(send, b"never sent", status)

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            for _ in range(2):
                client.send(GET)
                answer = await client.answer()
                assert answer.status == status
                assert not {"content-length", "transfer-encoding"} & set(answer.headers)

    run(check())


def test_streams_are_chunked_for_1_1_and_end_with_the_connection_for_1_0(serve: Any, run: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"", b"a" * 10, b"b", b""):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            for _ in range(2):
                client.send(GET)
                answer = await client.answer()
                assert answer.headers["transfer-encoding"] == "chunked"
                assert answer.body == b"a" * 10 + b"bend"
            client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
            answer = await client.answer()
            assert (answer.headers["connection"], answer.body) == ("close", b"a" * 10 + b"bend")

    run(check())


def test_a_declared_length_is_used_and_kept_honest(serve: Any, run: Any, caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        declared = scope["query_string"]
        headers = [(b"content-length", declared), (b"date", b"x"), (b"server", b"x"), (b"x-a", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await send({"type": "http.response.body", "body": b"cd"})

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            client.send(b"GET /?4 HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await client.answer()
            assert (answer.body, answer.headers["content-length"]) == (b"abcd", "4")
            assert answer.headers["server"] == "llamaman"
            client.send(b"GET /?5 HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.head()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await client.reader.readexactly(5)

    run(check())
    assert "declared Content-Length" in caplog.text


def test_a_line_break_in_an_app_header_is_an_error_not_a_header(serve: Any, run: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await reply(send, headers=[(b"location", b"/x\r\nset-cookie: a=b")])

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            client.send(GET)
            answer = await client.answer()
            assert answer.status == 500
            assert "set-cookie" not in answer.headers

    run(check())


def test_an_app_that_fails_before_its_answer_becomes_a_500(serve: Any, run: Any, caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret detail")

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            client.send(GET)
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)) == (500, {"error": "internal error"})

    with caplog.at_level(logging.ERROR, "llamaman.gateway"):
        run(check())
    assert "secret detail" in caplog.text


def test_an_app_that_fails_in_its_answer_never_ends_it_quietly(serve: Any, run: Any) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise KeyError("x")

    async def forgetful(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})

    async def check() -> None:
        for app in (failing, forgetful):
            async with serve(app) as door:
                client = await door.connect()
                client.send(GET)
                with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                    await client.answer()

    run(check())


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


def test_a_client_that_lingers_after_an_early_answer_is_cut_off(serve: Any, run: Any, until: Any) -> None:
    async def check() -> None:
        async with serve(deaf, discard_s=0.1) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n")
            assert (await client.answer()).status == 401
            await until(lambda: not door.listeners.connections.members)

    run(check())


def test_nothing_is_pipelined_and_the_first_answer_still_arrives(serve: Any, run: Any) -> None:
    calls: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["path"])
        await asyncio.sleep(0.05)
        await reply(send)

    async def check() -> None:
        for first in (
            b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
        ):
            async with serve(app) as door:
                client = await door.connect()
                client.send(first + b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n")
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await client.at_end()
        assert calls == ["/first"] * 3

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


def test_closing_and_half_closing_both_mean_gone(serve: Any, run: Any) -> None:
    async def check() -> None:
        gone: asyncio.Queue[bool] = asyncio.Queue()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            request = request_of(scope)
            await request.read_body(100)
            await asyncio.shield(request.gone)
            gone.put_nowait(request.gone.done())
            assert (await receive())["type"] == "http.disconnect"
            await reply(send, b"still here")

        async with serve(app) as door:
            client = await door.connect()
            client.send(post(b"abc"))
            client.writer.write_eof()
            assert await gone.get()
            assert (await client.answer()).body == b"still here"
            assert await client.at_end()

            client = await door.connect()
            client.send(post(b"abc"))
            await client.writer.drain()
            client.writer.close()
            assert await gone.get()

    run(check())


def test_an_answer_to_a_lost_client_raises_client_gone(serve: Any, run: Any) -> None:
    async def check() -> None:
        seen: asyncio.Queue[BaseException] = asyncio.Queue()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
                    await asyncio.sleep(0.001)
            except Exception as error:
                seen.put_nowait(error)
                raise

        async with serve(app) as door:
            client = await door.connect()
            client.send(GET)
            await client.head()
            client.close()
            assert isinstance(await seen.get(), ClientGone)

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


def test_a_slow_head_gets_408(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(echo, head_s=0.1) as door:
            client = await door.connect()
            client.send(GET)
            assert (await client.answer()).status == 200
            client.send(b"GET / HTTP/1.1\r\nHost")
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert "0.1 seconds" in json.loads(answer.body)["error"]

    run(check())


def test_an_idle_connection_is_closed_after_its_time(serve: Any, run: Any, until: Any) -> None:
    async def check() -> None:
        async with serve(echo, keepalive_s=60) as door:
            members = door.listeners.connections.members
            for asks in (True, False):
                client = await door.connect()
                if asks:
                    client.send(GET)
                    assert (await client.answer()).status == 200
                await until(lambda: len(members) == 1 and all(member.is_idle for member in members))
                (connection,) = members
                assert 0 < connection.deadline - asyncio.get_running_loop().time() <= 60
                connection.deadline -= 60  # as if that long had passed
                assert await client.at_end()
                await until(lambda: not members)

    run(check())


def test_a_running_answer_outlives_the_idle_time(serve: Any, run: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        request_of(scope)._connection.check(asyncio.get_running_loop().time() + 3600)  # as the sweep will
        await reply(send)

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            client.send(GET)
            assert (await client.answer()).status == 200

    run(check())


def test_a_reader_that_stalls_is_aborted_and_slows_the_app_down(serve: Any, run: Any, until: Any) -> None:
    async def check() -> None:
        sent = 0
        seen: asyncio.Queue[BaseException] = asyncio.Queue()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal sent
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                    sent += 65536
            except Exception as error:
                seen.put_nowait(error)
                raise

        async with serve(app, write_stall_s=0.2) as door:
            # A plain socket that never reads: a stream reader would take the bytes off the kernel's hands.
            loop = asyncio.get_running_loop()
            sock = socket.create_connection(("127.0.0.1", door.port))
            sock.setblocking(False)
            await loop.sock_sendall(sock, GET)
            assert isinstance(await seen.get(), ClientGone)
            assert sent < 64 << 20
            await until(lambda: not door.listeners.connections.members)
            sock.close()

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


def test_the_scope_is_plain_asgi(serve: Any, run: Any) -> None:
    scopes: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await reply(send)

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            client.send(b"GET /a%20b?c=d HTTP/1.1\r\nHost: a\r\nX-Y: Z\r\n\r\n")
            await client.answer()
            (scope,) = scopes
            request = request_of(scope)
            assert scope["type"] == "http"
            assert (scope["method"], scope["path"], scope["raw_path"]) == ("GET", "/a b", b"/a%20b")
            assert scope["query_string"] == b"c=d"
            assert scope["headers"] == [(b"host", b"a"), (b"x-y", b"Z")]
            assert scope["server"] == ("127.0.0.1", door.port)
            assert scope["client"] == request.peer == client.writer.get_extra_info("sockname")
            assert request.peer_uid is None
            assert request.surface.name == "proxy"

    run(check())


def test_a_large_answer_arrives_whole_and_the_connection_lives_on(serve: Any, run: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await reply(send, b"y" * (8 << 20))

    async def check() -> None:
        async with serve(app) as door:
            client = await door.connect()
            for _ in range(2):
                client.send(GET)
                assert len((await client.answer()).body) == 8 << 20

    run(check())
