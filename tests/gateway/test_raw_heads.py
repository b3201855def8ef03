"""Raw bytes against the real door: status, what the app saw, and that packet borders change nothing."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvloop

from llamaman.access import Scope

from .small_gate import CHAT, MODELS, TO_ENGINE, TO_FLASK, gated

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"

# (name, bytes on the wire, expected status)
CASES: list[tuple[str, bytes, int]] = [
    ("plain", GET + b"\r\n", 200),
    ("leading line break", b"\r\n" + GET + b"\r\n", 200),
    ("http 1.0", b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", 200),
    ("empty header value", GET + b"X-Empty:\r\nX-Other: 1\r\n\r\n", 200),
    ("value with spaces", GET + b"X-A:   b c  \r\n\r\n", 200),
    ("obs-text value", GET + b"X-A: caf\xe9\r\n\r\n", 200),
    ("underscore name", GET + b"X_Forwarded_For: 1\r\n\r\n", 200),
    ("options", b"OPTIONS /a HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ("query", b"GET /a?b=c%2F..//d HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ("escaped letter", b"GET /v1/%6dodels HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ("ipv6 host", b"GET / HTTP/1.1\r\nHost: [::1]:5000\r\n\r\n", 200),
    ("body", POST + b"Content-Length: 3\r\n\r\nabc", 200),
    ("empty body", POST + b"Content-Length: 0\r\n\r\n", 200),
    ("chunked body", POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", 200),
    ("chunked with trailers", POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\n\r\n", 200),
    (
        "upgrade offer with a body",
        POST
        + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nContent-Length: 3\r\n\r\nabc",
        200,
    ),
    (
        "upgrade offer with a chunked body",
        POST
        + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        200,
    ),
    ("upgrade offer without a body", GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    ("connection close", GET + b"Connection: close\r\n\r\n", 200),
    ("100 headers", GET + b"".join(b"X-%d: 1\r\n" % n for n in range(99)) + b"\r\n", 200),
    ("same key twice over", GET + b"Authorization: Bearer k\r\nX-Api-Key: k\r\n\r\n", 200),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("no host in 1.0", b"GET / HTTP/1.0\r\n\r\n", 400),
    ("two hosts", GET + b"Host: b\r\n\r\n", 400),
    ("same host twice", GET + b"Host: a\r\n\r\n", 400),
    ("empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ("host list", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    ("host with user", b"GET / HTTP/1.1\r\nHost: x@a\r\n\r\n", 400),
    ("http 0.9", b"GET /\r\n\r\n", 400),
    ("http 0.9 line", b"GET /\r\n", 400),
    ("http 2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("http 1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    ("rtsp", b"DESCRIBE / RTSP/1.0\r\nHost: a\r\n\r\n", 400),
    ("icecast", b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n", 400),
    ("absolute form", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("connect", b"CONNECT b:443 HTTP/1.1\r\nHost: b\r\n\r\n", 400),
    ("trace", b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("unknown method", b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("lower-case method", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("space in a name", GET + b"X A: 1\r\n\r\n", 400),
    ("space before the colon", GET + b"X-A : 1\r\n\r\n", 400),
    ("line folding", GET + b"X-A: 1\r\n 2\r\n\r\n", 400),
    ("first header folded", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("bare line feeds", b"GET / HTTP/1.1\nHost: a\n\n", 400),
    ("one bare line feed", GET + b"X: 1\n\r\n", 400),
    ("bare carriage return", GET + b"X: 1\r2\r\n\r\n", 400),
    ("nul in a value", GET + b"X: 1\x002\r\n\r\n", 400),
    ("control in a value", GET + b"X: 1\x012\r\n\r\n", 400),
    ("nul in the target", b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("raw high byte in the target", b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("escaped nul", b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("backslash", b"GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("escaped backslash", b"GET /a%5Cb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("double slash", b"GET //a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("escaped slash", b"GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("dot segments", b"GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("escaped dot segments", b"GET /a/%2e%2e/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("single dot", b"GET /a/./b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("invalid utf-8", b"GET /%c3%28 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("half an escape", b"GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("fragment", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("long target", b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("101 headers", GET + b"".join(b"X-%d: 1\r\n" % n for n in range(100)) + b"\r\n", 400),
    ("huge head", GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    ("endless head", GET + b"X: " + b"a" * 40_000, 431),
    ("two lengths", POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    ("length list", POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    ("signed length", POST + b"Content-Length: +3\r\n\r\nabc", 400),
    ("negative length", POST + b"Content-Length: -3\r\n\r\nabc", 400),
    ("hex length", POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    (
        "length and chunked",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "chunked and length",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    (
        "two encodings",
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("gzip encoding", POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("unknown encoding", POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("chunked in 1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("bad chunk size", POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    ("chunk without its end", POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
    ("endless chunk extension", POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 40_000, 400),
    (
        "endless trailers",
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)),
        400,
    ),
    ("repeated authorization", GET + b"Authorization: a\r\nauthorization: b\r\n\r\n", 400),
    ("repeated api key", GET + b"X-Api-Key: a\r\nX-API-KEY: a\r\n\r\n", 400),
    ("repeated origin", GET + b"Origin: a\r\nOrigin: a\r\n\r\n", 400),
    ("repeated content type", GET + b"Content-Type: a\r\nContent-Type: a\r\n\r\n", 400),
    ("repeated cookie", GET + b"Cookie: a\r\nCookie: b\r\n\r\n", 400),
    ("repeated cluster header", GET + b"X-Cluster-Node: a\r\nX-Cluster-Node: a\r\n\r\n", 400),
    (
        "repeated cluster header in another case",
        GET + b"X-Cluster-Secret: a\r\nx-cluster-SECRET: b\r\n\r\n",
        400,
    ),
    ("repeated referer", GET + b"Referer: http://a/\r\nReferer: http://b/\r\n\r\n", 400),
    ("repeated token", GET + b"X-CSRF-Token: a\r\nX-CSRF-Token: a\r\n\r\n", 400),
    ("repeated site", GET + b"Sec-Fetch-Site: none\r\nSec-Fetch-Site: same-origin\r\n\r\n", 400),
    ("repeated key with an underscore", GET + b"X-Api-Key: a\r\nX_Api_Key: b\r\n\r\n", 200),
    ("chain of proxies", GET + b"X-Forwarded-For: a\r\nX-Forwarded-For: b\r\nVia: c\r\nVia: d\r\n\r\n", 200),
    ("trailing slash", b"GET /a/ HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ("two different keys", GET + b"Authorization: Bearer a\r\nX-Api-Key: b\r\n\r\n", 400),
    ("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
]


async def mirror(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with everything the app was given."""
    body = await scope["extensions"]["llamaman.request"].read_body(1 << 20)
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode("latin-1"),
        "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": body.decode("latin-1"),
    }
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


async def outcome(door: Any, pieces: list[bytes]) -> tuple[int, bool, Any]:
    """(status, whether the connection ends, what was answered) when the pieces come one by one."""
    client = await door.connect()
    try:
        for piece in pieces:
            client.send(piece)
            if len(pieces) > 1:
                await asyncio.sleep(0.0005)
        answer = await client.answer()
        ends = answer.headers.get("connection") == "close"
        if ends:
            client.writer.write_eof()
            assert await client.at_end()
        return answer.status, ends, json.loads(answer.body)
    finally:
        client.close()


def cut(raw: bytes, chance: random.Random) -> list[bytes]:
    """Random pieces, with a liking for cuts in the first bytes and around line ends."""
    borders = [i for i in range(1, len(raw)) if raw[i - 1 : i + 1] in (b"\r\n", b"\n\r") or i < 4]
    places = chance.sample(range(1, len(raw)), min(3, len(raw) - 1))
    places += chance.sample(borders, min(3, len(borders)))
    marks = [0, *sorted(set(places)), len(raw)]
    return [raw[a:b] for a, b in pairwise(marks)]


def test_the_table_is_as_large_as_promised() -> None:
    assert len(CASES) >= 60
    assert len({name for name, _, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(("raw", "status"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_raw_head_gets_its_status_however_it_is_cut(serve: Any, raw: bytes, status: int) -> None:
    async def check() -> None:
        async with serve(mirror) as door:
            whole = await outcome(door, [raw])
            assert whole[0] == status
            if status != 200:
                assert whole[1], "a refused head must end the connection"
                assert whole[2]["error"]
            chance = random.Random(raw)
            cuts = [cut(raw, chance) for _ in range(20)]
            for pieces in cuts:
                result = await outcome(door, pieces)
                # A refusal may come from the part that has arrived, in other words for the same rule.
                assert result[:2] == whole[:2], pieces
                assert status != 200 or result == whole, pieces

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(check(), 120))


#: Not cut into pieces: what comes after the first answer is a request of its own.
FOLLOWED: list[tuple[str, bytes, int]] = [
    ("bytes after the request", GET + b"\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    (
        "bytes after the body",
        POST + b"Content-Length: 1\r\n\r\naGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        200,
    ),
    ("a body that is longer than it says", POST + b"Content-Length: 3\r\n\r\nabc{}", 200),
]

#: What lies behind the two hops: inference for a POST and a list of models, or management for everything.
BEHIND = [("proxy", CHAT.encode(), MODELS.encode()), ("manage", b"/api/things", b"/api/things")]


@pytest.mark.parametrize(("door", "post", "get"), BEHIND, ids=["engine", "flask"])
def test_behind_both_hops_at_most_one_request_comes_out_and_only_allowed_headers(
    tmp_path: Path, door: str, post: bytes, get: bytes
) -> None:
    async def main() -> None:
        async with gated(tmp_path, limits={"discard_s": 0.1}) as house:
            key = b"Authorization: Bearer %b\r\n" % house.key(Scope.ADMIN).encode()
            served, followed = 0, {name for name, _, _ in FOLLOWED}
            for name, raw, status in CASES + FOLLOWED:
                kind = b"Content-Type: application/json\r\n" if raw.startswith(b"POST") else b""
                sent = raw.replace(b"Host: a\r\n", b"Host: a\r\n" + key + kind, 1)
                if b"authorization" in raw.lower() or b"x-api-key" in raw.lower():
                    sent = raw
                sent = sent.replace(b"POST / ", b"POST %b " % post, 1).replace(b"GET / ", b"GET %b " % get, 1)
                sent = sent.replace(b"\r\nabc", b"\r\n{ }").replace(b"\r\nde\r\n", b"\r\n  \r\n")
                chance = random.Random(raw)
                ways = [[sent]] if name in followed else [[sent], cut(sent, chance), cut(sent, chance)]
                for pieces in ways:
                    before = house.reached
                    answer = await whole_answer(house.ports[door], pieces)
                    first = int(answer[9:12])
                    reached = house.reached - before
                    if status == 200:
                        assert first in (200, 204, 400, 401, 404, 405), (name, answer)
                        assert reached <= 1, name
                    else:
                        assert (first, reached) == (status, 0), (name, answer)
                    served += reached
            assert served >= 9, "nothing came through, so nothing was shown"
            assert not house.engine.broken
            assert not house.flask.broken
            for behind, names in ((house.engine, TO_ENGINE), (house.flask, TO_FLASK)):
                for head in behind.heads:
                    lines = head.split(b"\r\n")[1:-2]
                    assert {line.partition(b":")[0].decode().lower() for line in lines} <= names

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 120))


async def whole_answer(port: int, pieces: list[bytes]) -> bytes:
    """Everything that comes back: once an answer is whole, our side of the connection ends, and then the door's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.0005 if len(pieces) > 1 else 0)
        while data := await reader.read(1 << 16):
            got += data
            if is_whole(got) and writer.can_write_eof():
                writer.write_eof()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return got


def is_whole(answer: bytes) -> bool:
    """Whether an answer has arrived with its body."""
    head, end, body = answer.partition(b"\r\n\r\n")
    _, named, length = head.lower().partition(b"content-length: ")
    return bool(end) and (not named or len(body) >= int(length.split(b"\r\n")[0]))


def test_the_body_survives_an_upgrade_offer(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(mirror) as door:
            for name, raw, _ in CASES:
                if name.startswith("upgrade offer with a"):
                    status, _, seen = await outcome(door, [raw])
                    assert (status, seen["body"]) == (200, "abc")

    run(check())


def test_dropped_names_and_trailers_never_reach_the_app(serve: Any, run: Any) -> None:
    async def check() -> None:
        async with serve(mirror) as door:
            table = {name: raw for name, raw, _ in CASES}
            _, _, seen = await outcome(door, [table["underscore name"]])
            assert seen["headers"] == [["host", "a"]]
            _, _, seen = await outcome(door, [table["chunked with trailers"]])
            assert "x-t" not in dict(seen["headers"])

    run(check())
