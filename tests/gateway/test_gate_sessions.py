"""The gate behind real sockets: what a session opens, and from which pages."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import Role, Scope
from llamaman.core.accounts.cookies import cookie_name

from .small_gate import (
    CHAT,
    COOKIE,
    INSTALL,
    LOCAL,
    MODELS,
    PULL,
    STREAM,
    bearer,
    gated,
    session_headers,
)

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
EVIL_HOST = "evil.example:5000"


def test_a_session_works_on_the_management_port_alone(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            cookie, token = house.session()
            mine = session_headers(house, cookie, token)
            status, _, answer = await house.ask("GET", MODELS, mine)
            assert (status, answer) == (200, {"actor": "session:ann"})
            assert (await house.ask("POST", CHAT, mine, b"{}"))[0] == 200
            assert (await house.ask("POST", "/api/instances", mine, b"{}"))[0] == 200
            assert house.caller().identity.actor == "session:ann"
            assert house.caller().csrf == token
            for door in ("proxy", "instance"):
                own = {**mine, "Origin": f"http://127.0.0.1:{house.ports[door]}"}
                assert (await house.ask("GET", MODELS, own, door=door))[0] == 401
                assert (await house.ask("POST", CHAT, own, b"{}", door=door))[0] == 401
            assert len(house.engine.heads) == 1

    run(main())


FOREIGN: list[dict[str, str | None]] = [
    {"Origin": None},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:8000"},
    {"Origin": "http://127.0.0.1"},
    {"Origin": "http://evil.example"},
    {"Origin": None, "Referer": "http://127.0.0.1:8000/"},
    {"X-CSRF-Token": None},
    {"X-CSRF-Token": "0" * 64},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "none"},
]


@pytest.mark.parametrize("require_auth", [True, False])
def test_a_sessions_change_needs_origin_site_and_token_each(
    run: Run, tmp_path: Path, require_auth: bool
) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = require_auth
            mine = session_headers(house, *house.session())
            for change in FOREIGN:
                merged = {**mine, **change}
                given = {name: value for name, value in merged.items() if value is not None}
                for method, path in (
                    ("POST", "/api/instances"),
                    ("DELETE", "/api/x"),
                    ("POST", CHAT),
                    ("POST", PULL),
                ):
                    body = None if method == "DELETE" else b"{}"
                    status, headers, _ = await house.ask(method, path, given, body)
                    assert status == 403, (change, method, path)
                    assert "access-control-allow-origin" not in headers
            assert house.reached == 0
            assert (await house.ask("POST", CHAT, mine, b"{}"))[0] == 200

    run(main())


def test_the_token_of_one_session_opens_nothing_for_another(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            cookie, _ = house.session()
            _, token = house.session(name="bob")
            assert (await house.ask("POST", "/api/x", session_headers(house, cookie, token), b"{}"))[0] == 403

    run(main())


def test_reading_with_a_session_fails_when_another_page_asks(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            cookie = {"Cookie": f"{COOKIE}={house.session()[0]}"}
            own = {"Origin": f"http://127.0.0.1:{house.ports['manage']}"}
            for path in ("/api/instances", MODELS, STREAM):
                for bad in (
                    {"Origin": "http://127.0.0.1:8000"},
                    {"Origin": "null"},
                    {"Sec-Fetch-Site": "same-site"},
                    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
                    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},
                ):
                    assert (await house.ask("GET", path, {**cookie, **bad}))[0] == 403, (path, bad)
            for good in ({}, own, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
                assert (await house.ask("GET", "/api/instances", {**cookie, **good}))[0] == 200, good
            link = {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
            }
            assert (await house.ask("GET", "/", {**cookie, **link}))[0] == 200
            image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
            assert (await house.ask("GET", "/", {**cookie, **image}))[0] == 403

    run(main())


def test_a_planted_cookie_changes_nothing_and_two_sessions_end_both(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            one, _ = house.session()
            planted = {"Cookie": f"{COOKIE}=EVIL; other=x; {COOKIE}={one}; {COOKIE}="}
            assert (await house.ask("GET", "/api/x", planted))[0] == 200
            two, _ = house.session(name="bob")
            both = {"Cookie": f"{COOKIE}={one}; {COOKIE}={two}"}
            assert (await house.ask("GET", "/api/x", both))[0] == 401
            for ended in (one, two):
                assert (await house.ask("GET", "/api/x", {"Cookie": f"{COOKIE}={ended}"}))[0] == 401

    run(main())


def test_a_dead_cookie_is_no_hindrance(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            dead = {"Cookie": f"{COOKIE}=gone"}
            house.settings["require_auth"] = False
            assert (await house.ask("POST", CHAT, dead, b"{}"))[0] == 200
            assert (await house.ask("GET", "/api/x", dead))[0] == 401
            key = house.key(Scope.ADMIN)
            status, _, _ = await house.ask("POST", "/api/x", {**dead, **bearer(key)}, b"{}")
            assert status == 200
            assert house.caller().identity.kind == "key"

    run(main())


def test_a_viewers_session_asks_no_models(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            mine = session_headers(house, *house.session(Role.VIEWER))
            assert (await house.ask("POST", CHAT, mine, b"{}"))[0] == 403
            assert house.reached == 0

    run(main())


def test_a_cookie_never_crosses_to_flask_and_set_cookie_comes_back(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.flask.extra = b"Set-Cookie: a=b; Path=/\r\nSet-Cookie: c=d\r\nServer: x\r\n"
            cookie, token = house.session()
            extra = {"User-Agent": "Probe", "X-Other": "1", "Forwarded": "for=1", "Accept-Language": "de"}
            mine = {**session_headers(house, cookie, token), **extra, "Referer": "http://127.0.0.1/x"}
            _, headers, _ = await house.ask("POST", "/api/x", mine, b"{}")
            assert headers["set-cookie"] == "c=d"
            assert headers["server"] == "llamaman"
            head = house.flask.heads[-1].decode()
            names = {line.split(":")[0].lower() for line in head.split("\r\n")[1:] if line}
            assert names == {
                "host",
                "content-type",
                "content-length",
                "user-agent",
                "accept-language",
                "referer",
                "x-llamaman-caller",
            }
            assert cookie not in head

    run(main())


def test_over_tls_only_the_secure_cookie_counts(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        trusted = (ipaddress.ip_network("127.0.0.1"),)
        async with gated(tmp_path, trusted_proxies=trusted) as house:
            cookie, token = house.session()
            host = "llm.lan"
            tls = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.5", "X-Forwarded-Host": host}
            plain = {"Cookie": f"{COOKIE}={cookie}", **tls}
            secure = {"Cookie": f"{cookie_name(INSTALL, True)}={cookie}", **tls}
            assert (await house.ask("GET", "/api/x", plain))[0] == 401
            assert (await house.ask("GET", "/api/x", secure))[0] == 200
            caller = house.caller()
            assert (caller.peer, caller.secure, caller.host) == ("203.0.113.5", True, host)
            change = {**secure, "X-CSRF-Token": token}
            for origin, expected in (
                (f"https://{host}", 200),
                (f"http://{host}", 403),
                ("https://127.0.0.1", 403),
            ):
                status, _, _ = await house.ask("POST", "/api/x", {**change, "Origin": origin}, b"{}")
                assert status == expected, origin

    run(main())


def test_what_an_untrusted_peer_says_of_itself_is_not_believed(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            claims = {
                "X-Forwarded-For": "10.0.0.1",
                "X-Forwarded-Proto": "https",
                "X-Forwarded-Host": "localhost",
            }
            assert (await house.ask("GET", "/login", claims, host=EVIL_HOST))[0] == 421
            assert (await house.ask("GET", "/login", claims))[0] == 200
            caller = house.caller()
            assert (caller.peer, caller.secure) == ("127.0.0.1", False)
            assert caller.host == f"127.0.0.1:{house.ports['manage']}"

    run(main())


def test_behind_a_trusted_proxy_its_word_for_the_host_is_judged(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, trusted_proxies=(ipaddress.ip_network("127.0.0.0/8"),)) as house:
            assert (await house.ask("GET", "/health", {"X-Forwarded-Host": "evil.example"}))[0] == 421

    run(main())


def test_an_ended_session_ends_its_open_stream(run: Run, tmp_path: Path, until: Any) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            cookie, _ = house.session()
            asked = asyncio.create_task(house.ask("GET", STREAM, {"Cookie": f"{COOKIE}={cookie}"}))
            await until(house.pipeline.exchanges.all)
            await asyncio.to_thread(house.accounts.sessions.end_of_user, "ann", by=LOCAL, reason="test")
            status, _, body = await asyncio.wait_for(asked, 60)
            assert status == 200
            assert "data: 1" in body
            assert (await house.ask("GET", STREAM, {"Cookie": f"{COOKIE}={cookie}"}))[0] == 401

    run(main())


def test_an_ended_session_ends_its_running_answer(run: Run, tmp_path: Path, until: Any) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.engine.hold = asyncio.Event()
            mine = session_headers(house, *house.session())
            asked = asyncio.create_task(house.ask("POST", CHAT, mine, b"{}"))
            await until(lambda: house.engine.heads)
            await asyncio.to_thread(house.accounts.sessions.end_of_user, "ann", by=LOCAL, reason="test")
            status, _, answer = await asyncio.wait_for(asked, 60)
            assert (status, "session has ended" in str(answer)) == (401, True)
            house.engine.hold.set()

    run(main())
