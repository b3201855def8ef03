"""The gate behind real sockets: keys, host names, and the doors that know no users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import Scope

from .small_gate import (
    CHAT,
    COOKIE,
    MODELS,
    bearer,
    gated,
    read_answer,
)

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DOORS = ("manage", "proxy", "instance")
EVIL_HOST = "evil.example:5000"


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
