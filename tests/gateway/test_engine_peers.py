"""Engines may not call us: the other end of the connection decides, before anything else does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from llamaman.access import Scope
from llamaman.core.audit import Audit
from llamaman.gateway.engine_peers import REPEAT_S, SENTENCE, EnginePeers
from llamaman.gateway.refusals import recorder
from llamaman.runtime import Runtime

from .small_gate import CHAT, MODELS, STREAM, Gated, gated, read_answer

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DOORS = ("manage", "proxy", "instance")
ENGINE = "127.0.0.2"  # the kernel of this machine answers for all of 127/8, so a peer's address can be chosen


class Containers:
    """A runtime whose engines have addresses."""

    name = "containers"

    def __init__(self, *addresses: str) -> None:
        self.addresses = frozenset(addresses)
        self.broken = False

    def peers(self) -> frozenset[str]:
        if self.broken:
            raise OSError("no daemon")
        return self.addresses


def peers(*runtimes: object, **more: Any) -> EnginePeers:
    return EnginePeers([cast(Runtime, runtime) for runtime in runtimes], **more)


async def ask(
    house: Gated,
    source: str,
    door: str,
    method: str = "GET",
    path: str = "/health",
    headers: str = "",
    body: str = "",
) -> tuple[int, dict[str, str], Any]:
    """One request from an address of choice; only its head is sent when ``body`` is what it promises."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.ports[door], local_addr=(source, 0))
    try:
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n{body}".encode()
        )
        async with asyncio.timeout(60):
            return read_answer(await reader.read())
    finally:
        writer.close()


def test_an_engine_is_refused_on_every_port_whatever_it_asks_for_and_brings(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, engines=peers(Containers(ENGINE))) as house:
            key = f"Authorization: Bearer {house.key(Scope.ADMIN)}\r\n"
            forwarded = "X-Forwarded-For: 127.0.0.1\r\n"
            for door in DOORS:
                for method, path in (
                    ("GET", "/health"),
                    ("GET", "/login"),
                    ("GET", "/nothing"),
                    ("GET", MODELS),
                    ("GET", STREAM),
                    ("OPTIONS", CHAT),
                    ("DELETE", "/api/instances/x"),
                ):
                    for extra in ("", key, forwarded):
                        status, headers, answer = await ask(house, ENGINE, door, method, path, extra)
                        assert (status, answer) == (403, {"error": SENTENCE}), (door, method, path, extra)
                        assert headers["connection"] == "close"
            assert house.reached == 0

    run(main())


def test_its_body_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, engines=peers(Containers(ENGINE))) as house:
            for door in DOORS:
                promise = "Content-Type: application/json\r\nContent-Length: 100000\r\n"
                assert (await ask(house, ENGINE, door, "POST", CHAT, promise, "{"))[0] == 403

    run(main())


def test_others_are_served_and_a_forwarded_address_makes_nobody_an_engine(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, engines=peers(Containers(ENGINE))) as house:
            for door in DOORS:
                for source in ("127.0.0.1", "127.0.0.3"):
                    assert (await ask(house, source, door))[0] == 200
                    forwarded = f"X-Forwarded-For: {ENGINE}\r\n"
                    assert (await ask(house, source, door, headers=forwarded))[0] == 200

    run(main())


def test_the_addresses_of_now_count_also_on_a_connection_that_is_open(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        runtime = Containers()
        async with gated(tmp_path, engines=peers(runtime)) as house:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", house.ports["manage"], local_addr=(ENGINE, 0)
            )
            try:
                for addresses, expected in ((frozenset(), b" 200 "), (frozenset({ENGINE}), b" 403 ")):
                    runtime.addresses = addresses
                    writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert expected in head.split(b"\r\n")[0]
                    if expected == b" 200 ":
                        await reader.readuntil(b"}")
            finally:
                writer.close()
            runtime.addresses = frozenset()
            assert (await ask(house, ENGINE, "manage"))[0] == 200

    run(main())


def test_the_local_socket_has_no_address_and_is_served(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, engines=peers(Containers(ENGINE))) as house:
            reader, writer = await asyncio.open_unix_connection(str(house.admin))
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert read_answer(await reader.read())[0] == 200
            writer.close()

    run(main())


def test_a_flood_is_recorded_once_a_minute_and_address(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(tmp_path / "audit")
    now = [1000.0]

    async def main() -> None:
        engines = peers(Containers(ENGINE, "127.0.0.3"), clock=lambda: now[0])
        async with gated(tmp_path / "data", engines=engines, refused=recorder(audit)) as house:
            for _ in range(5):
                assert (await ask(house, ENGINE, "proxy"))[0] == 403
            assert (await ask(house, "127.0.0.3", "instance"))[0] == 403
            now[0] += REPEAT_S + 1
            assert (await ask(house, ENGINE, "manage", path="/setup/abc"))[0] == 403

    with caplog.at_level(logging.WARNING, "llamaman.gateway"):
        run(main())
    try:
        assert audit.flush()
        found = [(entry["address"], entry["object"]) for entry in audit.read()]
    finally:
        audit.close()
    told = [record.getMessage() for record in caplog.records if "model's container" in record.getMessage()]
    assert [message.split()[0] for message in told] == [ENGINE, "127.0.0.3", ENGINE]
    assert {address for address, _ in found} == {ENGINE, "127.0.0.3"}
    assert all("abc" not in what for _, what in found)


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        ("172.20.0.5", "::ffff:172.20.0.5"),
        ("::ffff:172.20.0.5", "172.20.0.5"),
        ("fd00:0:0::2", "fd00::2"),
        ("fe80::1", "fe80::1%eth0"),
    ],
)
def test_one_address_is_the_same_in_every_spelling(run: Run, named: str, seen: str) -> None:
    assert peers(Containers(named)).is_engine(seen)
    assert not peers(Containers(named)).is_engine("172.20.0.6")


def test_the_addresses_of_all_runtimes_count_and_a_runtime_without_any_is_no_matter(run: Run) -> None:
    both = peers(object(), Containers("172.20.0.5"), Containers("172.21.0.5"))
    assert both.is_engine("172.20.0.5")
    assert both.is_engine("172.21.0.5")
    assert not both.is_engine("172.22.0.5")
    assert not peers(object()).is_engine("172.20.0.5")


def test_a_runtime_that_cannot_tell_leaves_its_last_word_standing(run: Run) -> None:
    runtime = Containers("172.20.0.5")
    engines = peers(runtime)
    assert engines.is_engine("172.20.0.5")
    runtime.broken = True
    assert engines.is_engine("172.20.0.5")
    assert not engines.is_engine("172.20.0.6")
