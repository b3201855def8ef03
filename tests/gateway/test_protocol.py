"""What a client may rely on, and what it cannot do: requests and answers over raw sockets."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from .plain_apps import GET, echo, post, reply, request_of


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
