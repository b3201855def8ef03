"""An engine is asked for listed paths alone, in our own spelling, by those who may; its heads reach nobody.

Every route that llama-server has, in every way to spell it, through a real door with real keys. Behind it stands
an echo that keeps each head it gets and says too much in its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import OPENS, Access, Scope
from llamaman.gateway.endpoints import ASSETS, ENDPOINTS, Endpoint

from . import small_pipeline
from .small_gate import Gated, gated

#: Every route of llama-server's source, a router's and a cloud's among them; their methods, and all the others.
ENGINE_ROUTES = (
    *("/health", "/v1/health", "/metrics", "/props", "/models", "/v1/models", "/completion", "/completions"),
    *("/v1/completions", "/chat/completions", "/v1/chat/completions", "/v1/chat/completions/control"),
    *("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens", "/responses", "/v1/responses"),
    *("/responses/input_tokens", "/v1/responses/input_tokens", "/audio/transcriptions"),
    *("/v1/audio/transcriptions", "/v1/messages", "/v1/messages/count_tokens", "/infill", "/embedding"),
    *("/embeddings", "/v1/embeddings", "/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/tokenize"),
    *("/detokenize", "/apply-template", "/lora-adapters", "/slots", "/slots/0", "/v1/systemone"),
    *("/models/load", "/models/unload", "/models/sse", "/v1/stream", "/v1/stream/abc", "/v1/streams"),
    *("/v1/streams/lookup", "/cors-proxy", "/tools", "/predict", "/sw.js", "/index.html", "/bundle.js"),
)
METHODS = ("GET", "POST", "DELETE", "PUT")
NEVER = (
    *(
        "/tools",
        "/cors-proxy",
        "/models/load",
        "/models/unload",
        "/models/sse",
        "/v1/stream",
        "/v1/stream/abc",
    ),
    *(
        "/v1/streams",
        "/v1/streams/lookup",
        "/v1/chat/completions/control",
        "/predict",
        "/v1/systemone",
        "/sw.js",
    ),
)
FORM = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n--b--\r\n'
TOO_MUCH = (
    b"Server: llama.cpp\r\nAccess-Control-Allow-Origin: *\r\nSet-Cookie: a=b\r\nX-Path: /srv/models\r\n"
    b"Content-Security-Policy: default-src *\r\nETag: x\r\nContent-Encoding: identity\r\n"
)
#: What an answer of an engine may carry; the rest belongs to this door.
OURS = {"date", "server", "content-type", "content-length"}
STANDING = {"content-security-policy", "x-content-type-options", "cross-origin-opener-policy"}
#: The dialect of the door itself, which comes before the engine's own routes.
OF_THE_DOOR = {("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/health")}


def spellings(path: str) -> list[str]:
    """Twelve ways to write a path; the first is the plain one."""
    last = path.rindex("/")
    letter = last + 1 + (path[last + 1 :] > "")
    coded = path[:-1] + f"%{ord(path[-1]):02x}"
    return [
        path,
        coded,
        coded[:-2] + coded[-2:].upper(),
        "".join(f"%{ord(char):02X}" if char.isalpha() else char for char in path),
        path[:-1] + f"%25{ord(path[-1]):02x}",  # decodes to a percent sign, and is not decoded again
        path[:last] + "%2f" + path[last + 1 :],
        path[:last] + "/" + path[last:],
        path[:last] + "/." + path[last:],
        path[:last] + "/x/.." + path[last:],
        path[:letter].upper() + path[letter:].upper(),
        path + "/",
        path + "%00",
    ]


@pytest.fixture(autouse=True)
def _a_model_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(small_pipeline.MODEL, embedding=True)
    for name in ("find", "by_path"):
        monkeypatch.setattr(small_pipeline.Models, name, lambda self, what: model)


class Client:
    """One connection that is kept as long as the door keeps it."""

    def __init__(self, port: int, key: str | None) -> None:
        self._port = port
        self._head = f"Host: x\r\n{f'Authorization: Bearer {key}' if key else 'X-Nothing: here'}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, target: str, *, form: bool = False, adapters: bool = False
    ) -> tuple[int, dict[str, str], bytes]:
        kind, body = "application/json", b'{"model":"tiny","prompt":"a","id_slot":1}'
        if form:
            kind, body = "multipart/form-data; boundary=b", FORM
        if adapters:
            body = b'[{"id":0,"scale":1.0}]'
        if method in ("GET", "DELETE"):
            body = b""
        head = f"{method} {target} HTTP/1.1\r\n{self._head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(head.encode() + body)
        async with asyncio.timeout(60):
            raw = await reader.readuntil(b"\r\n\r\n")
            first, *lines = raw[:-4].decode("latin-1").split("\r\n")
            pairs = [line.split(": ", 1) for line in lines]
            headers = dict(pairs)  # type: ignore[arg-type] # pairs, as the split says
            assert len(headers) == len(pairs), raw
            content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split(" ")[1]), headers, content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def listed(method: str, path: str, *, upstream: bool) -> Endpoint | None:
    wanted = path.replace("/slots/0", "/slots/{id_slot}")
    return next(
        (e for e in ENDPOINTS if (e.method, e.path) == (method, wanted) and (upstream or e.instance)), None
    )


def routes() -> Iterator[tuple[str, str]]:
    for path in ENGINE_ROUTES:
        for method in METHODS:
            yield method, path


def literal(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {(endpoint.upstream or endpoint.path).replace('{id_slot}', '0')} HTTP/1.1"


def may(scope: Scope | None, level: Access, *, auth: bool) -> bool:
    return level in (OPENS[scope] if scope else frozenset()) or (level is Access.INFERENCE and not auth)


def first_lines(house: Gated) -> list[str]:
    found = [head.split(b"\r\n")[0].decode("latin-1") for head in house.engine.heads]
    house.engine.heads.clear()
    return found


@pytest.mark.parametrize("upstream", [False, True], ids=["instance port", "upstream"])
def test_an_engine_is_asked_for_listed_paths_in_our_spelling_by_those_who_may(
    tmp_path: Path, upstream: bool
) -> None:
    async def run() -> None:
        async with gated(tmp_path / "house") as house:
            house.engine.extra = TOO_MUCH
            door, before = ("proxy", "/upstream/tiny") if upstream else ("instance", "")
            for auth, scope in [(True, None), *((True, scope) for scope in Scope), (False, None)]:
                house.settings["require_auth"] = auth
                client = Client(house.ports[door], house.key(scope) if scope else None)
                for method, path in routes():
                    await check(house, client, method, path, before, scope, auth=auth)
                client.close()
            assert not house.engine.broken
            assert not house.flask.heads

    asyncio.run(run())


async def check(
    house: Gated, client: Client, method: str, path: str, before: str, scope: Scope | None, *, auth: bool
) -> None:
    endpoint = listed(method, path, upstream=bool(before))
    of_the_door = not before and (method, path) in OF_THE_DOOR
    # Whatever the scope, a spelling is either the path or none: all of them for the two who may most and least.
    ways = spellings(path) if scope in (None, Scope.ADMIN) and auth else [path]
    for number, way in enumerate(ways):
        status, headers, _ = await client.ask(
            method, before + way, form="transcriptions" in path, adapters=path == "/lora-adapters"
        )
        seen = first_lines(house)
        if of_the_door:
            continue
        where = f"{method} {before + way} as {scope}: {status} {seen}"
        is_the_path = number < 4  # the first four decode to it
        if endpoint and is_the_path and may(scope, endpoint.access, auth=auth):
            assert (status, seen) == (200, [literal(endpoint)]), where
            allowed = OURS | (set() if before else STANDING)
            assert set(headers) == allowed, headers
            assert headers["server"] == "llamaman"
            assert "default-src *" not in headers.get("content-security-policy", "")
        else:
            assert seen == [], where
            if endpoint and is_the_path:
                assert status in (401, 403), where
            else:
                # What stands for a slot's number is looked at after the caller.
                assert status in (400, 404, 405, *((401, 403) if path == "/slots/0" else ())), where
                assert status != 405 or (path, method) not in {(p, m) for p in NEVER for m in METHODS}, where


def test_the_list_and_what_is_never_forwarded_have_nothing_in_common() -> None:
    assert not {e.path for e in (*ENDPOINTS, *ASSETS)} & set(NEVER)
    assert set(NEVER) <= set(ENGINE_ROUTES)
    upstreams = {e.upstream or e.path for e in ENDPOINTS}
    assert {path.replace("/slots/0", "/slots/{id_slot}") for path in ENGINE_ROUTES} >= upstreams


def test_the_query_that_an_engine_gets_is_ours(tmp_path: Path) -> None:
    async def run() -> None:
        async with gated(tmp_path / "house") as house:
            client = Client(house.ports["instance"], house.key(Scope.MANAGE))
            for asked, got in (
                ("/slots/0?action=er%61se&filename=%2fetc", "POST /slots/0?action=erase HTTP/1.1"),
                ("/completion?model=/x&autoload=1", "POST /completion HTTP/1.1"),
            ):
                assert (await client.ask("POST", asked))[0] == 200
                assert first_lines(house) == [got]
            assert (await client.ask("POST", "/slots/0?action=rm"))[0] == 400
            assert (await client.ask("POST", "/slots/7"))[0] in (200, 404)
            house.engine.heads.clear()
            client.close()

    asyncio.run(run())


# --- llama.cpp's own page -------------------------------------------------------------------------------

PAGE: tuple[Any, ...] = ("/", "/index.html", "/bundle.js", "/_app/immutable/chunks/a.B1.js", "/favicon.svg")


@pytest.mark.parametrize("on", [True, False])
def test_the_page_is_there_for_everybody_while_it_is_switched_on(tmp_path: Path, on: bool) -> None:
    async def run() -> None:
        async with gated(tmp_path / "house", web_ui=on) as house:
            house.engine.extra = TOO_MUCH.replace(b"identity", b"gzip")
            client = Client(house.ports["instance"], None)
            for path in PAGE:
                status, headers, _ = await client.ask("GET", path)
                assert status == (200 if on else 404), path
                seen = first_lines(house)
                assert seen == ([f"GET {'/' if path == '/index.html' else path} HTTP/1.1"] if on else [])
                extra = {"content-encoding", "cache-control"} if on else set()
                assert set(headers) == OURS | STANDING | extra
            for path in ("/sw.js", "/_app/../props", "/_app/%2e%2e/props", "/_app/", "/_app/.x", "/other.js"):
                assert (await client.ask("GET", path))[0] in (400, 404), path
            assert (await client.ask("POST", "/"))[0] == 405
            # What the page asks for by itself needs the key that its user has typed in.
            for path in ("/props", "/models"):
                assert (await client.ask("GET", path))[0] == 401
            assert first_lines(house) == []
            client.close()
            client = Client(house.ports["instance"], house.key())
            for method, path in (("GET", "/props"), ("GET", "/models"), ("POST", "/completion")):
                assert (await client.ask(method, path))[0] == 200
            client.close()

    asyncio.run(run())
