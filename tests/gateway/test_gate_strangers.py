"""The gate behind real sockets: strangers, forms, the first user, and the lane of the passwords."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import Scope
from llamaman.core.accounts.cookies import presession_name
from llamaman.limits import FORM_BODY, HASHES_AT_ONCE, HASHES_WAITING, MANAGEMENT_BODY

from .small_gate import (
    COOKIE,
    INSTALL,
    bearer,
    gated,
    read_answer,
)

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]


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
