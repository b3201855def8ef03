"""Pages of other origins at the real door: what is shared, with whom, and what is refused before it costs anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import Scope

from .small_gate import CHAT, MODELS, PULL, STREAM, Gated, gated

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DOORS = ("manage", "proxy", "instance")
EVIL = "https://evil.example"
CORS = "access-control-allow-origin"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def preflight(
    house: Gated, path: str, origin: str, door: str = "proxy", names: str | None = None, **headers: str
) -> tuple[int, dict[str, str]]:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    if names is not None:
        asked["Access-Control-Request-Headers"] = names
    status, answer, body = await house.ask("OPTIONS", path, asked, door=door)
    assert status != 204 or body == ""
    return status, answer


@pytest.mark.parametrize("door", DOORS)
def test_with_require_auth_any_page_with_a_key_may_ask(run: Run, tmp_path: Path, door: str) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            key = bearer(house.key())
            for origin in (EVIL, "http://localhost:3000", "null", "app://x"):
                for method, path, body in (("POST", CHAT, b"{}"), ("GET", MODELS, None)):
                    status, headers, _ = await house.ask(
                        method, path, {**key, "Origin": origin}, body, door=door
                    )
                    assert status == 200
                    assert (headers[CORS], headers["vary"]) == (origin, "Origin")
                    assert "access-control-allow-credentials" not in headers

    run(main())


def test_a_page_can_read_why_it_was_refused(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            for key in ({}, bearer("llm-guess")):
                status, headers, _ = await house.ask("GET", MODELS, {**key, "Origin": EVIL}, door="proxy")
                assert (status, headers.get(CORS)) == (401, EVIL)
            wrong = {**bearer(house.key()), "Origin": EVIL}
            status, headers, _ = await house.ask("POST", CHAT, wrong, b"no json", door="proxy")
            assert (status, headers.get(CORS)) == (400, EVIL)
            big = {**wrong, "Content-Length": str(1 << 30), "Content-Type": "application/json"}
            status, headers, _ = await house.ask("POST", CHAT, big, door="proxy")
            assert (status, headers.get(CORS)) == (413, EVIL)

    run(main())


@pytest.mark.parametrize("door", DOORS)
def test_without_require_auth_a_foreign_page_reaches_nothing(run: Run, tmp_path: Path, door: str) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = False
            for origin in (
                EVIL,
                "null",
                "",
                "http://localhost.evil.example",
                "http://127.0.0.1.evil.example",
            ):
                for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
                    sent = {"Origin": origin, "Content-Type": kind}
                    status, headers, _ = await house.ask("POST", CHAT, sent, b"{}", door=door)
                    assert status == 403, (origin, kind)
                    assert CORS not in headers
                assert (await house.ask("GET", MODELS, {"Origin": origin}, door=door))[0] == 403
            assert house.reached == 0

    run(main())


def test_a_foreign_page_is_refused_before_its_body_is_there(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = False
            promised = {"Origin": EVIL, "Content-Length": "1000", "Content-Type": "application/json"}
            status, _, _ = await house.ask("POST", CHAT, promised, door="proxy")  # which sends no body
            assert status == 403

    run(main())


@pytest.mark.parametrize("door", DOORS)
def test_without_require_auth_local_pages_apps_and_named_ones_may_ask(
    run: Run, tmp_path: Path, door: str
) -> None:
    async def main() -> None:
        parts: dict[str, Any] = {
            "cors_origins": ("https://chat.example.org",),
            "public_url": "https://llm.example.org",
        }
        async with gated(tmp_path, **parts) as house:
            house.settings["require_auth"] = False
            own = f"http://127.0.0.1:{house.ports[door]}"
            for origin in (
                own,
                "http://localhost:3000",
                "http://[::1]:1",
                "tauri://localhost",
                "vscode-webview://abc",
                "https://chat.example.org",
                "https://llm.example.org",
            ):
                status, headers, _ = await house.ask("POST", CHAT, {"Origin": origin}, b"{}", door=door)
                assert (status, headers.get(CORS)) == (200, origin)
            key = bearer(house.key())
            status, headers, _ = await house.ask("POST", CHAT, {**key, "Origin": EVIL}, b"{}", door=door)
            assert (status, headers[CORS]) == (200, EVIL)

    run(main())


def test_an_answer_without_an_origin_says_nothing_about_origins(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            _, headers, _ = await house.ask("GET", MODELS, bearer(house.key()), door="proxy")
            assert CORS not in headers
            assert "vary" not in headers

    run(main())


@pytest.mark.parametrize("door", DOORS)
def test_a_preflight_is_answered_with_the_routes_methods_and_header_names(
    run: Run, tmp_path: Path, door: str
) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            status, headers = await preflight(
                house, CHAT, EVIL, door, "authorization, Content-Type, x y, <b>, x-stainless-lang"
            )
            assert status == 204
            assert headers[CORS] == EVIL
            assert headers["vary"] == "Origin"
            assert headers["access-control-allow-methods"] == "POST"
            assert headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-lang"
            assert headers["access-control-max-age"] == "600"
            assert "access-control-allow-private-network" not in headers
            assert "access-control-allow-credentials" not in headers
            _, headers = await preflight(house, MODELS, EVIL, door)
            assert headers["access-control-allow-methods"] == "GET"
            assert "access-control-allow-headers" not in headers
            assert house.reached == 0

    run(main())


def test_a_preflight_is_refused_where_the_request_would_be(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = False
            for origin, names in ((EVIL, "content-type"), ("null", None), (EVIL, "x-authorization")):
                status, headers = await preflight(house, CHAT, origin, names=names)
                assert status == 403
                assert not [name for name in headers if name.startswith("access-control-")]
            assert (await preflight(house, CHAT, "http://localhost:3000", names="content-type"))[0] == 204
            # The key that it announces is judged when it comes.
            assert (await preflight(house, CHAT, EVIL, names="authorization"))[0] == 204
            assert (await preflight(house, CHAT, EVIL, names="content-type,x-api-key"))[0] == 204
            status, _, _ = await house.ask(
                "OPTIONS",
                CHAT,
                {"Origin": EVIL, "Access-Control-Request-Method": "POST"},
                door="proxy",
                host="evil.example",
            )
            assert status == 421

    run(main())


def test_private_networks_are_opened_only_to_origins_that_may_ask(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        wants = {"Access-Control-Request-Private-Network": "true"}
        name = "access-control-allow-private-network"
        async with gated(tmp_path) as house:
            assert (await preflight(house, CHAT, EVIL, names="authorization", **wants))[1][name] == "true"
            house.settings["require_auth"] = False
            status, headers = await preflight(house, CHAT, EVIL, names="authorization", **wants)
            assert status == 204
            assert name not in headers
            assert (await preflight(house, CHAT, "http://localhost:1", **wants))[1][name] == "true"

    run(main())


@pytest.mark.parametrize("require_auth", [True, False])
def test_management_is_never_shared(run: Run, tmp_path: Path, require_auth: bool) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = require_auth
            key = bearer(house.key(Scope.ADMIN))
            for origin in (EVIL, "http://localhost:3000"):
                for path in ("/api/instances", "/login", "/", STREAM, PULL, "/health", "/nothing"):
                    status, headers = await preflight(
                        house, path, origin, "manage", "authorization,x-csrf-token"
                    )
                    assert status in (401, 403, 405), path
                    assert not [name for name in headers if name.startswith("access-control-")], path
                for path in ("/api/instances", "/health"):
                    _, headers, _ = await house.ask("GET", path, {**key, "Origin": origin})
                    assert CORS not in headers, path
                _, headers, _ = await house.ask("POST", PULL, {**key, "Origin": origin}, b"{}")
                assert CORS not in headers

    run(main())


def test_options_without_a_preflights_headers_is_a_method_like_others(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            assert (await house.ask("OPTIONS", CHAT, door="proxy"))[0] == 405
            assert (await house.ask("OPTIONS", CHAT, {"Origin": EVIL}, door="proxy"))[0] == 405
            assert (await house.ask("OPTIONS", CHAT))[0] == 401

    run(main())


def test_every_answer_of_an_instance_port_keeps_its_page_to_itself(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            key = bearer(house.key())
            asked: list[tuple[str, str, dict[str, str], bytes | None, int]] = [
                ("GET", "/health", {}, None, 200),
                ("GET", MODELS, key, None, 200),
                ("GET", MODELS, {**key, "Origin": EVIL}, None, 200),
                ("POST", CHAT, key, b"{}", 200),
                ("POST", CHAT, {}, b"{}", 401),
                ("POST", CHAT, key, b"no json", 400),
                ("POST", CHAT, {**key, "Content-Length": str(1 << 30)}, None, 413),
                ("GET", "/nothing", {}, None, 404),
                ("GET", "/tools", {}, None, 404),
                ("OPTIONS", CHAT, {"Origin": EVIL, "Access-Control-Request-Method": "POST"}, None, 204),
                ("GET", "/a/../b", {}, None, 400),
                ("GET", "/health", {"Origin": "a", "origin": "b"}, None, 400),
                ("GET", "/" + "a" * 40_000, {}, None, 431),
            ]
            for method, path, headers, body, status in asked:
                found, answer, _ = await house.ask(method, path, headers, body, door="instance")
                assert found == status, (method, path[:50])
                assert answer["content-security-policy"].startswith("default-src 'self'; script-src 'self' ")
                assert "frame-ancestors 'none'" in answer["content-security-policy"]
                assert answer["x-content-type-options"] == "nosniff"
                assert answer["cross-origin-opener-policy"] == "same-origin"
            _, answer, _ = await house.ask("GET", "/health", door="proxy")
            assert "content-security-policy" not in answer

    run(main())


def test_connections_with_a_key_do_not_count_against_their_address(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, limits={"per_address": 2}) as house:
            registry = house.listeners.connections
            key = house.key()
            for connection_key in (key, "llm-guess", None):
                reader, writer = await asyncio.open_connection("127.0.0.1", house.ports["proxy"])
                while not registry.members:
                    await asyncio.sleep(0.005)
                connection = next(iter(registry.members))
                registry._groups["192.0.2.1"] = 1
                connection.group = "192.0.2.1"  # loopback has none
                auth = f"Authorization: Bearer {connection_key}\r\n" if connection_key else ""
                writer.write(f"GET {MODELS} HTTP/1.1\r\nHost: a\r\n{auth}\r\n".encode())
                await reader.readuntil(b"\r\n\r\n")
                assert registry._groups.get("192.0.2.1") == (None if connection_key == key else 1)
                writer.transport.abort()
                while registry.members:
                    await asyncio.sleep(0.005)
                assert not registry._groups

    run(main())
