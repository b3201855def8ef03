"""Ports, surfaces and who may hold how many connections."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from llamaman.gateway.connections import address_group
from llamaman.gateway.limits import BodyBudget, Limits, Surface
from llamaman.gateway.listeners import Listeners, PortTaken

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MANAGE = Surface("manage")


async def say_surface(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the surface and, on a unix socket, the peer's user."""
    request = scope["extensions"]["llamaman.request"]
    text = f"{request.surface.name} {request.surface.instance_id} {request.peer_uid} {request.peer is None}"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})


def listeners_for(app: Any, **limits: Any) -> Listeners:
    return Listeners(app, limits=Limits(**limits), budget=BodyBudget(1 << 20))


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The body of one answer on an open connection."""
    writer.write(GET)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


def test_a_reserved_port_is_ours_before_anything_is_served(run: Any) -> None:
    async def check() -> None:
        sock = Listeners.reserve("127.0.0.1", 0)
        port = sock.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"{port}.*in use") as taken:
            Listeners.reserve("127.0.0.1", port)
        assert taken.value.port == port
        early = await asyncio.open_connection("127.0.0.1", port)
        listeners = listeners_for(say_surface)
        surface = Surface("instance", "i1")
        await listeners.open(surface, host="127.0.0.1", port=port, sock=sock)
        assert listeners.ports() == {surface: ("127.0.0.1", port)}
        assert await get(*early) == b"instance i1 None False"
        early[1].close()
        await listeners.shutdown(1)

    run(check())


def test_an_address_that_is_not_ours_is_named(run: Any) -> None:
    with pytest.raises(PortTaken, match=r"192\.0\.2\.1"):
        Listeners.reserve("192.0.2.1", 0)
    with pytest.raises(PortTaken, match="not an address"):
        Listeners.reserve("no.such.host.invalid", 0)


def test_sockets_are_not_inherited_and_do_not_wait_for_more_bytes(run: Any) -> None:
    async def check() -> None:
        sock = Listeners.reserve("127.0.0.1", 0)
        assert not os.get_inheritable(sock.fileno())
        listeners = listeners_for(say_surface)
        await listeners.open(MANAGE, host="", port=0, sock=sock)
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        await get(reader, writer)
        (connection,) = listeners.connections.members
        accepted = connection._transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_inheritable(accepted.fileno())
        writer.close()
        await listeners.shutdown(1)

    run(check())


def test_a_closed_surface_frees_its_port_and_lets_running_answers_end(run: Any, until: Any) -> None:
    async def check() -> None:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["extensions"]["llamaman.request"].surface != MANAGE:
                await go.wait()
            await say_surface(scope, receive, send)

        listeners = listeners_for(app)
        closing, other = Surface("instance", "i1"), MANAGE
        await listeners.open(closing, host="127.0.0.1", port=0)
        await listeners.open(other, host="127.0.0.1", port=0)
        port = listeners.ports()[closing][1]
        idle = await asyncio.open_connection("127.0.0.1", port)
        busy = await asyncio.open_connection("127.0.0.1", port)
        kept = await asyncio.open_connection(*listeners.ports()[other])
        await get(*kept)
        busy[1].write(GET)
        await until(lambda: len(listeners.connections.tasks) == 1 and len(listeners.connections.members) == 3)

        await listeners.close(closing)
        assert listeners.ports().keys() == {other}
        assert await idle[0].read() == b""
        Listeners.reserve("127.0.0.1", port).close()
        go.set()
        answer = await busy[0].read()
        assert b"200 OK" in answer
        assert b"connection: close" in answer
        assert await get(*kept) == b"manage None None False"
        for _, writer in (idle, busy, kept):
            writer.close()
        await listeners.shutdown(1)

    run(check())


def test_a_surface_is_opened_once(run: Any) -> None:
    async def check() -> None:
        listeners = listeners_for(say_surface)
        await listeners.open(MANAGE, host="127.0.0.1", port=0)
        with pytest.raises(RuntimeError, match="already open"):
            await listeners.open(MANAGE, host="127.0.0.1", port=0)
        await listeners.shutdown(0)

    run(check())


@pytest.mark.parametrize("in_time", [True, False])
def test_shutdown_waits_for_its_grace_and_then_cancels(run: Any, until: Any, in_time: bool) -> None:
    async def check() -> None:
        cancelled: list[bool] = []
        may_answer = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await may_answer.wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            await say_surface(scope, receive, send)

        listeners = listeners_for(app)
        await listeners.open(MANAGE, host="127.0.0.1", port=0)
        reader, writer = await asyncio.open_connection(*listeners.ports()[MANAGE])
        writer.write(GET)
        await until(lambda: len(listeners.connections.tasks) == 1)
        ending = asyncio.create_task(listeners.shutdown(600 if in_time else 0.1))
        await until(lambda: not listeners.ports())
        if in_time:
            may_answer.set()
        await ending
        assert (b"200 OK" if in_time else b" 503 ") in await reader.read()
        assert cancelled == ([] if in_time else [True])
        assert not listeners.connections.members
        writer.close()

    run(check())


def test_a_unix_socket_has_its_mode_and_names_its_peer(run: Any, tmp_path: Path) -> None:
    async def check() -> None:
        path = tmp_path / "admin.sock"
        admin = Surface("admin")
        listeners = listeners_for(say_surface)
        await listeners.open_unix(admin, path, 0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await get(reader, writer) == b"admin None %d True" % os.getuid()
        with pytest.raises(PortTaken, match="another program listens"):
            await listeners_for(say_surface).open_unix(admin, path, 0o600)
        writer.close()
        await listeners.close(admin)
        assert not path.exists()
        await listeners.shutdown(0)

    run(check())


def test_a_stale_socket_file_is_replaced_and_anything_else_is_not(run: Any, tmp_path: Path) -> None:
    async def check() -> None:
        path = tmp_path / "admin.sock"
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(path))
        dead.close()
        listeners = listeners_for(say_surface)
        await listeners.open_unix(MANAGE, path, 0o660)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        await listeners.shutdown(0)
        path.write_text("precious")
        with pytest.raises(PortTaken, match="not a socket"):
            await listeners.open_unix(MANAGE, path, 0o660)
        assert path.read_text() == "precious"

    run(check())


def test_the_oldest_idle_connection_makes_room(run: Any, until: Any) -> None:
    async def check() -> None:
        listeners = listeners_for(say_surface, total=2)
        await listeners.open(MANAGE, host="127.0.0.1", port=0)
        address = listeners.ports()[MANAGE]
        first = await asyncio.open_connection(*address)
        await get(*first)
        second = await asyncio.open_connection(*address)
        await get(*second)
        await asyncio.sleep(0.01)
        await get(*first)  # now the second one is idle for longer
        third = await asyncio.open_connection(*address)
        await get(*third)
        assert await second[0].read() == b""
        await get(*first)
        assert len(listeners.connections.members) == 2
        for _, writer in (first, second, third):
            writer.close()
        await listeners.shutdown(0)

    run(check())


def test_a_connection_whose_first_request_is_on_the_way_keeps_its_place(run: Any, until: Any) -> None:
    async def check() -> None:
        listeners = listeners_for(say_surface, total=1, fresh_s=600)
        await listeners.open(MANAGE, host="127.0.0.1", port=0)
        address = listeners.ports()[MANAGE]
        fresh = await asyncio.open_connection(*address)
        late = await asyncio.open_connection(*address)
        assert (await late[0].read()).startswith(b"HTTP/1.1 503 ")
        assert await get(*fresh) == b"manage None None False"
        (served,) = listeners.connections.members
        silent_since_long = await asyncio.open_connection(*address)  # the one before was served and is idle
        await until(lambda: served not in listeners.connections.members)
        (silent,) = listeners.connections.members
        silent._opened -= 601
        other = await asyncio.open_connection(*address)
        assert await silent_since_long[0].read() == b""
        await get(*other)
        for _, writer in (fresh, late, silent_since_long, other):
            writer.close()
        await listeners.shutdown(0)

    run(check())


def test_when_all_connections_are_busy_a_new_one_is_told_so(run: Any, until: Any) -> None:
    async def check() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(60)

        listeners = listeners_for(app, total=1)
        await listeners.open(MANAGE, host="127.0.0.1", port=0)
        address = listeners.ports()[MANAGE]
        busy = await asyncio.open_connection(*address)
        busy[1].write(GET)
        await until(lambda: len(listeners.connections.tasks) == 1)
        late = await asyncio.open_connection(*address)
        answer = await late[0].read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b"connection: close" in answer
        busy[1].close()
        late[1].close()
        await listeners.shutdown(0)

    run(check())


def test_one_address_gets_its_share_and_loopback_is_exempt(run: Any, monkeypatch: Any) -> None:
    async def check() -> None:
        listeners = listeners_for(say_surface, per_address=1)
        await listeners.open(MANAGE, host="127.0.0.1", port=0)
        address = listeners.ports()[MANAGE]
        many = [await asyncio.open_connection(*address) for _ in range(5)]
        for pair in many:
            assert await get(*pair) == b"manage None None False"
        # Clients of this test can only come from loopback, so it is taken for a foreign network here.
        monkeypatch.setattr("llamaman.gateway.wire.address_group", lambda host: "198.51.100.7")
        first = await asyncio.open_connection(*address)
        await get(*first)
        second = await asyncio.open_connection(*address)
        answer = await second[0].read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"this address already has 1 connections" in answer
        first[1].close()
        while listeners.connections._groups:
            await asyncio.sleep(0.005)
        third = await asyncio.open_connection(*address)
        await get(*third)
        for _, writer in (*many, first, second, third):
            writer.close()
        await listeners.shutdown(0)

    run(check())


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", None),
        ("127.8.8.8", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("", None),
    ],
)
def test_addresses_count_by_ipv4_address_or_ipv6_network(host: str, group: str | None) -> None:
    assert address_group(host) == group
