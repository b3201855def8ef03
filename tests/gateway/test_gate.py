"""The gate behind real sockets: keys, host names, sessions, forms, and what Flask is told."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import Role, Scope
from llamaman.core.accounts.cookies import cookie_name, presession_name
from llamaman.limits import FORM_BODY, HASHES_AT_ONCE, HASHES_WAITING, MANAGEMENT_BODY

from .small_gate import CHAT, COOKIE, INSTALL, LOCAL, MODELS, PULL, STREAM, Gated, gated, read_answer

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DOORS = ("manage", "proxy", "instance")
EVIL_HOST = "evil.example:5000"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def session_headers(house: Gated, cookie: str, token: str) -> dict[str, str]:
    """What our own page sends."""
    return {
        "Cookie": f"{COOKIE}={cookie}",
        "Origin": f"http://127.0.0.1:{house.ports['manage']}",
        "Sec-Fetch-Site": "same-origin",
        "X-CSRF-Token": token,
    }


# --- keys and host names -------------------------------------------------------------------------------


@pytest.mark.parametrize("require_auth", [True, False])
def test_a_foreign_host_name_is_refused_on_every_route_that_strangers_may_have(
    run: Run, tmp_path: Path, require_auth: bool
) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = require_auth
            public = [("GET", "/health", door) for door in DOORS]
            public += [("GET", "/api/version", "manage"), ("GET", "/api/version", "proxy")]
            public += [("GET", "/", "proxy"), ("HEAD", "/", "proxy")]
            public += [("GET", path, "manage") for path in ("/login", "/setup", "/static/a.css", "/nothing")]
            public += [("POST", "/login", "manage"), ("OPTIONS", "/login", "manage")]
            public += [
                (m, p, d) for d in DOORS for m, p in (("POST", CHAT), ("GET", MODELS), ("GET", "/nope"))
            ]
            for method, path, door in public:
                status, headers, answer = await house.ask(
                    method, path, body=b"{}" if method == "POST" else None, door=door, host=EVIL_HOST
                )
                assert status == 421, (method, path, door)
                assert "access-control-allow-origin" not in headers
                assert method == "HEAD" or "LLAMAMAN_ALLOWED_HOSTS=evil.example" in str(answer)
            assert house.reached == 0

    run(main())


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "[::1]:1", "localhost", "llamaman:42069", "nas.lan", "x.internal"]
)
def test_names_that_no_stranger_can_own_are_served(run: Run, tmp_path: Path, host: str) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = False
            for door in DOORS:
                assert (await house.ask("GET", "/health", door=door, host=host))[0] == 200
                assert (await house.ask("GET", MODELS, door=door, host=host))[0] == 200

    run(main())


def test_names_that_the_operator_gave_are_served(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        parts: dict[str, Any] = {
            "allowed_hosts": ("llm.example.org",),
            "public_url": "https://public.example.org:8443/llm",
            "host_names": ("box.example.org",),
        }
        async with gated(tmp_path, **parts) as house:
            for name in (
                "llm.example.org",
                "public.example.org:8443",
                "public.example.org",
                "box.example.org:5000",
            ):
                assert (await house.ask("GET", "/health", host=name))[0] == 200, name
            assert (await house.ask("GET", "/health", host="other.example.org"))[0] == 421

    run(main())


def test_a_made_up_key_stands_in_nobody_s_way_where_none_is_needed(run: Run, tmp_path: Path) -> None:
    """Clients that cannot be set up without a key are told by their manuals to type anything."""

    async def main() -> None:
        async with gated(tmp_path) as house:
            for key in ("ollama", "sk-no-key-required", "EMPTY"):
                for headers in (bearer(key), {"X-Api-Key": key}):
                    house.settings["require_auth"] = False
                    for door in DOORS:
                        assert (await house.ask("GET", MODELS, headers, door=door))[0] == 200
                        assert (await house.ask("GET", MODELS, headers, door=door, host=EVIL_HOST))[0] == 421
                    foreign = {**headers, "Origin": "https://evil.example"}
                    assert (await house.ask("GET", MODELS, foreign))[0] == 403, "it vouches for nobody"
                    assert (await house.ask("GET", "/api/x", headers))[0] == 401, (
                        "management needs a real one"
                    )
                    house.settings["require_auth"] = True
                    assert (await house.ask("GET", MODELS, headers))[0] == 401
            house.settings["require_auth"] = False
            revoked = bearer("llm-once-a-key-of-ours")
            assert (await house.ask("GET", MODELS, revoked))[0] == 401, "its owner should hear of it"

    run(main())


def test_a_valid_key_is_served_under_any_name_and_an_invalid_one_under_none(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            key = house.key(Scope.ADMIN)
            for door in DOORS:
                assert (await house.ask("GET", MODELS, bearer(key), door=door, host=EVIL_HOST))[0] == 200
                assert (await house.ask("GET", MODELS, {"X-Api-Key": key}, door=door, host=EVIL_HOST))[
                    0
                ] == 200
                assert (await house.ask("GET", MODELS, bearer("llm-guess"), door=door))[0] == 401
                assert (await house.ask("GET", MODELS, bearer("llm-guess"), door=door, host=EVIL_HOST))[
                    0
                ] == 401
                assert (await house.ask("GET", "/health", bearer(key), door=door, host=EVIL_HOST))[0] == 200
                assert (await house.ask("GET", "/health", bearer("llm-guess"), door=door))[0] == 200
            assert (await house.ask("GET", "/api/instances", bearer(key), host=EVIL_HOST))[0] == 200

    run(main())


def test_an_inference_refusal_has_the_shape_of_the_dialect(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            _, _, refused = await house.ask("POST", CHAT, body=b"{}", host=EVIL_HOST)
            assert "talk_error" in refused

    run(main())


# --- sessions ------------------------------------------------------------------------------------------


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


# --- strangers, forms, the first user ------------------------------------------------------------------


def test_strangers_asking_for_a_page_are_sent_to_set_up_or_to_log_in(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
            status, headers, _ = await house.ask("GET", "/", html)
            assert (status, headers["location"]) == (302, "/setup")
            house.session()
            status, headers, _ = await house.ask("GET", "/", html)
            assert (status, headers["location"]) == (302, "/login")
            status, headers, _ = await house.ask("GET", "/a/%C3%A9?b=c&d=/", html)
            assert (status, headers["location"]) == (302, "/login?next=/a/%25C3%25A9%3Fb%3Dc%26d%3D/")
            for method, path, given in (
                ("GET", "/", {}),
                ("GET", "/", {"Accept": "application/json"}),
                ("GET", "/api/instances", html),
                ("GET", "/v1/nothing", html),
                ("POST", "/", html),
                ("DELETE", "/", html),
            ):
                status, headers, _ = await house.ask(method, path, given)
                assert status == 401, (method, path)
                assert "location" not in headers
            assert house.reached == 0
            assert (await house.ask("GET", "/nothing", html, door="proxy"))[0] == 404

    run(main())


def test_without_users_management_is_closed_but_for_setting_up(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.settings["require_auth"] = False
            for path in ("/", "/api/instances", "/api/users", "/api/me", "/nothing", "/setup/a/b", "/loginx"):
                assert (await house.ask("GET", path))[0] == 401, path
            for path in ("/health", "/login", "/setup", "/setup/code"):
                assert (await house.ask("GET", path))[0] == 200, path

    run(main())


def test_forms_are_taken_from_our_own_pages_alone_whoever_sends_them(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            own = f"http://127.0.0.1:{house.ports['manage']}"
            cookie, _ = house.session()
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            for who in ({}, {"Cookie": f"{COOKIE}={cookie}"}):
                for path in ("/login", "/logout", "/setup", "/setup/code"):
                    for bad in (
                        {},
                        {"Origin": "null"},
                        {"Origin": "http://evil.example"},
                        {"Origin": "http://127.0.0.1:8000"},
                        {"Referer": "http://127.0.0.1:8000/login"},
                        {"Origin": own, "Sec-Fetch-Site": "same-site"},
                    ):
                        status, _, _ = await house.ask("POST", path, {**kind, **who, **bad}, b"a=b")
                        assert status == 403, (path, bad)
                    assert house.reached == 0
                    for good in ({"Origin": own}, {"Referer": f"{own}/login"}):
                        assert (await house.ask("POST", path, {**kind, **who, **good}, b"a=b"))[0] == 200
                    house.flask.heads.clear()

    run(main())


def test_a_forms_body_is_small_and_a_form(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            own = {"Origin": f"http://127.0.0.1:{house.ports['manage']}"}
            kind = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
            assert (await house.ask("POST", "/login", {**own, **kind}, b"a" * FORM_BODY))[0] == 200
            assert (await house.ask("POST", "/login", {**own, **kind}, b"a" * (FORM_BODY + 1)))[0] == 413
            for other in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
                assert (await house.ask("POST", "/login", {**own, "Content-Type": other}, b"{}"))[0] == 415, (
                    other
                )
            key = bearer(house.key(Scope.ADMIN))
            for method in ("POST", "PATCH", "PUT", "DELETE"):
                assert (await house.ask(method, "/api/x", {**key, **kind}, b"a=b"))[0] == 415, method
            assert (await house.ask("POST", "/api/x", key, b" " * (MANAGEMENT_BODY + 1)))[0] == 413

    run(main())


def test_a_stranger_is_told_the_token_of_the_pre_session(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            name = presession_name(INSTALL, False)
            await house.ask("GET", "/login")
            assert house.caller().csrf is None
            await house.ask("GET", "/login", {"Cookie": f"{name}=abc"})
            assert house.caller().csrf == house.accounts.sessions.presession_csrf("abc")
            # A planted one for a longer path comes first; ours is the last.
            await house.ask("GET", "/login", {"Cookie": f"{name}=planted; {name}=abc"})
            assert house.caller().csrf == house.accounts.sessions.presession_csrf("abc")

    run(main())


def test_only_the_machines_owner_needs_no_code(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            port = house.ports["manage"]
            for path in ("/setup", "/setup/x"):
                for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
                    await house.ask("GET", path, host=host)
                    assert house.caller().owns_machine, (path, host)
            for headers, host in (
                ({"Forwarded": "for=1"}, None),
                ({"X-Forwarded-For": "127.0.0.1"}, None),
                ({"X-Forwarded-Host": "localhost"}, None),
                ({"Via": "1.1 x"}, None),
                ({}, "nas.lan"),
                ({}, "192.168.0.1"),
                ({}, "app.localhost"),
            ):
                await house.ask("GET", "/setup", headers, host=host)
                assert not house.caller().owns_machine, (headers, host)
            await house.ask("GET", "/login")
            assert not house.caller().owns_machine
            house.session()
            await house.ask("GET", "/setup")
            assert not house.caller().owns_machine

    run(main())


@pytest.mark.real("another account")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another account")
def test_another_account_on_this_machine_needs_the_code(run: Run, tmp_path: Path) -> None:
    program = (
        "import os, socket, sys; os.setuid(12345); s = socket.socket(); s.connect(('127.0.0.1', int(sys.argv[1])));"
        "s.sendall(b'GET /setup HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n');"
        "sys.stdout.buffer.write(s.makefile('rb').read())"
    )

    async def main() -> None:
        async with gated(tmp_path) as house:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, str(house.ports["manage"]), stdout=asyncio.subprocess.PIPE
            )
            raw, _ = await child.communicate()
            assert read_answer(raw)[0] == 200
            assert not house.caller().owns_machine

    run(main())


def test_password_checks_queue_in_a_lane_of_their_own(run: Run, tmp_path: Path, until: Any) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            house.flask.hold = asyncio.Event()
            own = {
                "Origin": f"http://127.0.0.1:{house.ports['manage']}",
                "Content-Type": "application/x-www-form-urlencoded",
            }
            many = HASHES_AT_ONCE + HASHES_WAITING + 5
            logins = [asyncio.create_task(house.ask("POST", "/login", own, b"a=b")) for _ in range(many)]
            await until(lambda: sum(task.done() for task in logins) == 5)
            for task in logins:
                if task.done():
                    status, headers, _ = task.result()
                    assert (status, headers["retry-after"]) == (429, "1")
            await until(lambda: len(house.flask.heads) == HASHES_AT_ONCE)
            other = asyncio.create_task(house.ask("GET", "/login"))
            await until(lambda: len(house.flask.heads) == HASHES_AT_ONCE + 1)
            house.flask.hold.set()
            assert (await other)[0] == 200
            assert (
                sorted(answer[0] for answer in await asyncio.gather(*logins))
                == [200] * (many - 5) + [429] * 5
            )

    run(main())


# --- the admin socket and doors without users ----------------------------------------------------------


def test_the_admin_socket_needs_neither_name_nor_key_and_knows_no_cookies(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path) as house:
            cookie, _ = house.session()
            reader, writer = await asyncio.open_unix_connection(house.admin)
            writer.write(
                b"GET /api/x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nCookie: %b=%b\r\n\r\n"
                % (COOKIE.encode(), cookie.encode())
            )
            assert read_answer(await reader.read())[0] == 200
            writer.close()
            caller = house.caller()
            assert (caller.identity.kind, caller.surface, caller.csrf) == ("local", "admin", None)

    run(main())


def test_a_door_without_users_serves_keys_as_ever(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with gated(tmp_path, people=False) as house:
            key = house.key(Scope.ADMIN)
            assert (await house.ask("GET", "/api/x", bearer(key)))[0] == 200
            html = {"Accept": "text/html", "Cookie": f"{COOKIE}=x"}
            assert (await house.ask("GET", "/", html))[0] == 401

    run(main())
