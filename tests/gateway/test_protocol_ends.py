"""How a connection ends: a client that leaves, that says nothing, and that does not read."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from llamaman.gateway.limits import ClientGone

from .plain_apps import GET, deaf, echo, post, reply, request_of


def test_a_client_that_lingers_after_an_early_answer_is_cut_off(serve: Any, run: Any, until: Any) -> None:
    async def check() -> None:
        async with serve(deaf, discard_s=0.1) as door:
            client = await door.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n")
            assert (await client.answer()).status == 401
            await until(lambda: not door.listeners.connections.members)

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
