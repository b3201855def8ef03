"""Every route of a real manager, called by every identity, on every surface, with ``require_auth`` on and off.

The matrix is ``access_matrix.py``. A route that it does not list fails, and so does a row that no route matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from access_matrix import ALL, BAD, LATER, OPEN_TO, OPENED_BY_REQUIRE_AUTH_OFF, ROWS, Row, Surface
from callers import (
    PASSWORD,
    Caller,
    Lines,
    Reply,
    local,
    logged_in,
    stranger,
    with_key,
    with_session,
)

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import Manager
from llamaman.testing.visitor import Visitor

DENIED = (401, 403)


@dataclass(frozen=True, slots=True)
class House:
    """A running manager with an instance, a user of each role and every kind of caller."""

    manager: Manager
    ports: dict[Surface, int]
    callers: dict[str, Caller]
    lines: Lines


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One for all tests here; each leaves it as it was."""
    folder = tmp_path_factory.mktemp("matrix") / "m"
    env = {"LLAMAMAN_ADMIN_USER": "admin", "LLAMAMAN_ADMIN_PASSWORD": PASSWORD}
    with Manager(folder, env=env) as manager:
        for name in ("tiny", "other"):
            write_tiny_model(manager.models / f"{name}.gguf")
        manager.manage("POST", "/api/models/rescan")
        instance = manager.launch("tiny")
        for role in ("viewer", "manager"):
            manager.manage("POST", "/api/users", {"name": role, "password": PASSWORD, "role": role})
        lines = Lines()
        ports: dict[Surface, int] = {
            "manage": manager.port,
            "proxy": manager.proxy_port,
            "instance": instance["port"],
        }
        yield House(manager, ports, _callers(manager), lines)
        lines.close()
        assert manager.instance(instance["id"])["status"] == "healthy", "nothing was changed by all that"
        manager.terminate()
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


def _callers(manager: Manager) -> dict[str, Caller]:
    made = [stranger(), local(manager)]
    made += [with_key(f"key {s}", manager.key(s).secret) for s in ("view", "inference", "manage", "admin")]
    made.append(with_key("key of another model", manager.key("inference", models=["other"]).secret))
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    expired, revoked = manager.key("admin", expires=soon), manager.key("admin")
    manager.revoke(revoked)
    made += [with_key("key expired", expired.secret), with_key("key revoked", revoked.secret)]
    for role in ("viewer", "manager", "admin"):
        made.append(with_session(role, confirmed(logged_in(manager, role))))
    made.append(with_session("admin without CSRF", confirmed(logged_in(manager, "admin")), csrf=False))
    made.append(with_session("admin unconfirmed", logged_in(manager, "admin")))
    manager.until(
        lambda: manager.http("GET", "/api/instances", key=expired.secret).status == 401, "the key to expire"
    )
    return {caller.name: caller for caller in made}


def confirmed(visitor: Visitor) -> Visitor:
    answer = visitor.manage("POST", "/api/me/sudo", {"password": PASSWORD})
    assert answer.status == 200, answer.text
    return visitor


def listed(manager: Manager) -> set[tuple[str, str, str]]:
    """(method, path, surface) of every route that the manager says it serves."""
    rows = manager.manage("GET", "/api/routes")
    return {(row["method"], row["path"], row["surface"]) for row in rows if row["surface"] != "admin"}


def filled(row: Row) -> str:
    return re.sub(r"{([^}.]+)(?:\.\.\.)?}", lambda found: row.values.get(found[1], "nothing"), row.path)


def may(
    caller: str, row: Row, surface: Surface, method: str, *, require_auth: bool, is_session: bool
) -> bool:
    """What the matrix says."""
    if row.fixed:
        return True
    if caller in BAD:
        return False
    if is_session and surface != "manage":
        caller = "stranger"  # a cookie counts on the management port alone
    # An instance's port is about its model whatever is asked there.
    if caller == "key of another model" and (row.model or (surface == "instance" and row.level != "public")):
        return False
    if caller == "admin without CSRF" and method not in ("GET", "HEAD"):
        return False
    if caller == "admin unconfirmed" and row.sudo:
        return False
    opened = row.level == "inference" and not require_auth and caller in OPENED_BY_REQUIRE_AUTH_OFF
    return opened or caller in OPEN_TO[row.level]


def call(house: House, caller: Caller, row: Row, surface: Surface, method: str) -> Reply:
    # Bodies that a view would refuse anyway are sent also where none is needed, as a fuzzer does not; GET has none.
    body = row.body if method not in ("GET", "HEAD") else None
    return house.lines.call(caller, house.ports[surface], method, filled(row), body)


# --- the list ---------------------------------------------------------------------------------------------


def test_every_route_is_in_the_matrix_and_every_row_of_the_matrix_is_served(house: House) -> None:
    known = {(row.method, row.path, surface) for row in ROWS for surface in row.surfaces}
    served = listed(house.manager)
    assert served - known == set(), "a route that nobody has said who may call"
    assert known - served == set(), "a row that no route matches"
    arrived = {(method, path) for method, path, _ in LATER} & {(m, p) for m, p, s in served if s == "manage"}
    assert arrived == set(), "listed as arriving later, and here"


def test_the_level_a_route_shows_is_the_one_of_the_matrix(house: House) -> None:
    shown = {
        (r["method"], r["path"], r["surface"]): r["level"] for r in house.manager.manage("GET", "/api/routes")
    }
    for row in ROWS:
        for surface in row.surfaces:
            want = "view" if row.level == "own" else row.level
            assert shown[row.method, row.path, surface] == want, (row.method, row.path, surface)


# --- the walk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("require_auth", [True, False], ids=["require_auth", "open"])
@pytest.mark.parametrize("surface", ["manage", "proxy", "instance"])
def test_everybody_gets_what_the_matrix_says(house: House, surface: Surface, require_auth: bool) -> None:
    house.manager.setting(require_auth=require_auth)
    wrong: list[str] = []
    calls = 0
    for row in ROWS:
        if surface not in row.surfaces or row.form:
            continue
        for caller in house.callers.values():
            if caller.socket is not None and surface != "manage":
                continue
            for method in ("GET", "HEAD") if row.method == "GET" else (row.method,):
                want = may(
                    caller.name, row, surface, method, require_auth=require_auth, is_session=caller.is_session
                )
                if row.ends_session and want:
                    continue  # by itself below
                reply = call(house, caller, row, surface, method)
                calls += 1
                # 501 is the engine's: a random model cannot fill in.
                failed = reply.status >= 500 and reply.status != 501
                let_in = reply.status not in DENIED or (row.told != "" and row.told in reply.text)
                if let_in is not want or failed:
                    wish = "let in" if want else "refused"
                    wrong.append(
                        f"{caller.name}: {method} {row.path} -> {reply.status}, to be {wish}; {reply.text[:160]}"
                    )
    house.manager.setting(require_auth=True)
    print(f"{calls} calls")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("surface", ["manage", "proxy", "instance"])
def test_a_surface_answers_404_for_what_belongs_to_another(house: House, surface: Surface) -> None:
    wrong: list[str] = []
    here = {(row.method, row.path) for row in ROWS if surface in row.surfaces}
    paths = {path for _, path in here}
    for row in ROWS:
        if (row.method, row.path) in here:
            continue
        for name in ("stranger", "key admin", "admin"):
            caller = house.callers[name]
            reply = call(house, caller, row, surface, row.method)
            want = {404, 405} if row.path in paths else {404}
            if surface == "manage" and name == "stranger":
                want = {401}  # who is nobody learns nothing about management, not even what is not there
            if reply.status not in want:
                wrong.append(f"{name}: {row.method} {row.path} -> {reply.status} {reply.text[:120]}")
    assert not wrong, "\n".join(wrong)


# --- rows that need a test of their own -------------------------------------------------------------------


@pytest.mark.parametrize("role", ["viewer", "manager", "admin"])
def test_logging_out_everywhere_is_open_to_every_session_and_ends_it(house: House, role: str) -> None:
    manager = house.manager
    visitor = logged_in(manager, role)
    spare = Caller(f"spare {role}", with_session("", visitor).headers, is_session=True)
    assert house.lines.call(spare, manager.port, "GET", "/api/instances").status == 200
    without = with_session(f"spare {role} without", visitor, csrf=False)
    assert house.lines.call(without, manager.port, "DELETE", "/api/me/sessions").status == 403
    assert house.lines.call(spare, manager.port, "DELETE", "/api/me/sessions").status == 200
    assert house.lines.call(spare, manager.port, "GET", "/api/instances").status == 401
    house.callers.update(  # the others of that user are gone too, as they should be
        {
            name: with_session(
                name, visitor if "unconfirmed" in name else confirmed(visitor), csrf="CSRF" not in name
            )
            for name in house.callers
            if name.split()[0] == role
            for visitor in [logged_in(manager, role)]
        }
    )


def test_a_form_is_shown_to_a_stranger_and_takes_nothing_without_its_token(house: House) -> None:
    visitor = Visitor(house.manager.port)
    page = visitor.call("GET", "/login")
    assert (page.status, page.headers["content-type"].partition(";")[0]) == (200, "text/html")
    fields = {"username": "admin", "password": PASSWORD}
    assert Visitor(house.manager.port).post("/login", fields).status == 403, "no pre-session, no token"
    assert visitor.post("/login", fields).status == 403, "a pre-session, no token"
    assert visitor.post("/login", {**fields, "csrf_token": "0" * 64}).status == 403
    other = Visitor(house.manager.port)
    assert visitor.post("/login", {**fields, "csrf_token": other.token("/login")}).status == 403, "another's"
    assert visitor.submit("/login", **fields).status in (302, 303)


def test_a_page_is_shown_by_way_of_the_login_to_a_browser_that_is_not_logged_in(house: House) -> None:
    answer = Visitor(house.manager.port).call("GET", "/", headers={"Accept": "text/html"})
    assert (answer.status, answer.headers["location"]) == (302, "/login")


def test_the_matrix_names_what_arrives_later_once() -> None:
    places = [(method, path) for method, path, _ in LATER]
    assert len(places) == len(set(places))
    # One path may be served by another surface today; what counts is management and the proxy.
    assert not set(places) & {
        (row.method, row.path) for row in ROWS if row.surfaces in (ALL, frozenset({"manage"}))
    }
