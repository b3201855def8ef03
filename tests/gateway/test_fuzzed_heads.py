"""A thousand broken heads at the real door, an echo behind both hops: at most one request comes out per head.

The heads are valid ones that were cut, doubled, mixed and poisoned by a seeded generator, so a failure repeats.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop

from llamaman.access import Scope

from .small_gate import CHAT, MODELS, TO_ENGINE, TO_FLASK, Gated, gated

HEADS = 1000
LANES = 8
DEADLINE_S = 60.0
#: Short, so that what waits for more ends by itself.
LIMITS = {"head_s": 0.1, "keepalive_s": 0.1, "body_grace_s": 0.1, "discard_s": 0.1}

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [^\r\n]*\r\n")

Mutation = Callable[[bytes, random.Random], bytes]

INSERTS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\xff\xfe",
    b"%2f",
    b"%00",
    b"/../",
    b"//",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content_Length: 5\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: keep-alive, close\r\n",
    b"Connection: content-length\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"Host: evil.example\r\n",
    b"X-LlamaMan-Caller: x.y\r\n",
    b"X_LlamaMan_Caller: x.y\r\n",
    b"Cookie: a=b\r\nCookie: c=d\r\n",
    b"Origin: null\r\n",
    b"X-Forwarded-For: 127.0.0.1\r\n",
    b"X" * 9000 + b": 1\r\n",
    b"X: " + b"y" * 40_000 + b"\r\n",
    b"X-N: 1\r\n" * 101,
    b" folded: 1\r\n",
    b"0\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /api/smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
)


def _place(raw: bytes, chance: random.Random) -> int:
    """Anywhere, but more often where a line begins."""
    starts = [at + 2 for at in range(len(raw)) if raw[at : at + 2] == b"\r\n"]
    return chance.choice(starts) if starts and chance.random() < 0.6 else chance.randint(0, len(raw))


def _insert(raw: bytes, chance: random.Random) -> bytes:
    at = _place(raw, chance)
    return raw[:at] + chance.choice(INSERTS) + raw[at:]


def _delete(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(raw))
    return raw[:at] + raw[at + chance.randint(1, 8) :]


def _flip(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(raw)) if raw else 0
    return raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :]


def _double_line(raw: bytes, chance: random.Random) -> bytes:
    lines = raw.split(b"\r\n")
    at = chance.randrange(len(lines))
    lines.insert(chance.randrange(len(lines)), lines[at])
    return b"\r\n".join(lines)


def _swap_lines(raw: bytes, chance: random.Random) -> bytes:
    lines = raw.split(b"\r\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\r\n".join(lines)


def _change_case(raw: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(raw))
    return raw[:at] + raw[at : at + 30].swapcase() + raw[at + 30 :]


def _cut_off(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randint(1, len(raw))]


def _twice(raw: bytes, chance: random.Random) -> bytes:
    return raw + raw


MUTATIONS: tuple[Mutation, ...] = (
    _insert,
    _insert,
    _insert,
    _delete,
    _flip,
    _double_line,
    _swap_lines,
    _change_case,
    _cut_off,
    _twice,
)


def seeds(key: str, origin: str) -> list[tuple[str, bytes]]:
    """(door, a valid request) for both hops."""
    auth = f"Host: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
    json_kind = "Content-Type: application/json\r\n"
    texts = [
        ("proxy", f"POST {CHAT} HTTP/1.1\r\n{auth}{json_kind}Content-Length: 2\r\n\r\n{{}}"),
        (
            "proxy",
            f"POST {CHAT} HTTP/1.1\r\n{auth}{json_kind}Transfer-Encoding: chunked\r\n\r\n"
            "1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        ),
        ("proxy", f"GET {MODELS}?a=b HTTP/1.1\r\n{auth}Accept: */*\r\n\r\n"),
        ("instance", f"POST {CHAT} HTTP/1.0\r\n{auth}{json_kind}Content-Length: 2\r\n\r\n{{}}"),
        ("manage", f"POST /api/things/1 HTTP/1.1\r\n{auth}{json_kind}Content-Length: 2\r\n\r\n{{}}"),
        (
            "manage",
            f"PATCH /api/x HTTP/1.1\r\n{auth}{json_kind}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
        ),
        ("manage", f"GET /api/things?a=b HTTP/1.1\r\n{auth}Accept: application/json\r\nCookie: a=b\r\n\r\n"),
        (
            "manage",
            f"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: {origin}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b",
        ),
        (
            "manage",
            f"OPTIONS {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: {origin}\r\n"
            "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n",
        ),
    ]
    return [(door, text.encode()) for door, text in texts]


def statuses(raw: bytes) -> list[int]:
    """Of every answer in what came back. The echo's own bodies hold no status line."""
    return [int(code) for code in _STATUS_LINE.findall(raw)]


async def exchange(port: int, pieces: list[bytes]) -> bytes:
    """Send, and read to the end of the connection, which the door decides about."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        while data := await reader.read(1 << 16):
            got += data
    except ConnectionError:
        pass  # cut off by the door, which is an answer too
    finally:
        writer.transport.abort()
    return got


def header_names(head: bytes) -> set[str]:
    return {line.partition(b":")[0].decode("latin-1").lower() for line in head.split(b"\r\n")[1:] if line}


def assert_clean(house: Gated) -> None:
    """Nothing behind the door got anything but whole requests with allowed names."""
    assert not house.engine.broken
    assert not house.flask.broken
    for behind, allowed in ((house.engine, TO_ENGINE), (house.flask, TO_FLASK)):
        for head in behind.heads:
            assert header_names(head) <= allowed, head
            assert b"smuggled" not in head or head.startswith(b"POST /api/smuggled")


async def lane(folder: Path, number: int) -> int:
    """One lane's share, one head after the other, so that what comes out belongs to what went in."""
    chance = random.Random(f"lane {number}")
    came_out = 0
    async with gated(folder, limits=LIMITS) as house:
        cases = seeds(house.key(Scope.ADMIN), "http://127.0.0.1")
        for _ in range(HEADS // LANES):
            door, raw = chance.choice(cases)
            for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
                raw = chance.choice(MUTATIONS)(raw, chance) or b"\r\n"
            pieces, most = [raw], 1
            if chance.random() < 0.4:
                places = sorted({chance.randint(0, len(raw)) for _ in range(4)})
                pieces = [raw[a:b] for a, b in pairwise([0, *places, len(raw)])]
                most = max(
                    1, raw.count(b"\r\n\r\n")
                )  # the rest may come after the answer, as a head of its own
            before = house.reached
            async with asyncio.timeout(DEADLINE_S):
                got = await exchange(house.ports[door], pieces)
            context = (number, door, raw[:2000], got[:500])
            reached = house.reached - before
            assert reached <= most, context
            found = statuses(got)
            assert all(status == 100 or 200 <= status < 300 or 400 <= status < 500 for status in found), (
                context
            )
            # What follows the last whole head, and comes after its answer, is refused for itself.
            assert len([status for status in found if status != 100]) <= most + (len(pieces) > 1), context
            came_out += reached
        await asyncio.sleep(0.05)
        assert_clean(house)
        assert came_out == house.reached, "a request came out after its connection had ended"
    return came_out


def test_a_broken_head_never_becomes_two_requests_and_never_hangs(tmp_path: Path) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(lane(tmp_path / str(n), n) for n in range(LANES))))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        came_out = sum(runner.run(asyncio.wait_for(main(), 300)))
    assert came_out > HEADS / 20, "the mutations are so hard that nothing is tested behind the door"


def test_what_the_fuzzer_begins_with_is_served(tmp_path: Path) -> None:
    """Else everything would be refused for the same dull reason."""

    async def main() -> None:
        async with gated(tmp_path, limits=LIMITS) as house:
            for door, raw in seeds(house.key(Scope.ADMIN), "http://127.0.0.1"):
                got = await exchange(house.ports[door], [raw])
                assert statuses(got)[0] in (200, 204), (raw, got)
            assert (len(house.engine.heads), len(house.flask.heads)) == (3, 4)
            assert_clean(house)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("seed", range(3))
def test_the_generator_repeats(seed: int) -> None:
    one, other = random.Random(seed), random.Random(seed)
    raw = seeds("k", "http://a")[0][1]
    assert [m(raw, one) for m in MUTATIONS] == [m(raw, other) for m in MUTATIONS]
