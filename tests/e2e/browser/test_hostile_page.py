"""An administrator is logged in, and another tab shows a page from another port of the same host.

Such a page is same-site: its requests carry the session's cookie whatever SameSite says, and it may plant
cookies of our name. It is tried on each name of this machine, since a browser says less about a request
(no Sec-Fetch-Site) on plain HTTP from a network. Then with each defence off alone: the others still hold.
Then with all of them off, where the same attempts do harm.

What is not tried: a hostile *server* on another port of the same host is given the cookie itself, by the
rules of cookies. That is why no instance port, whose answers a model may decide, passes one on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamaman.testing.manager import Manager
from llamaman.testing.visitor import Visitor

pytestmark = pytest.mark.real("chromium")

ATTACK = (Path(__file__).parent / "hostile.js").read_text(encoding="utf-8")
ASK = """async ([path, options]) => {
    const answer = await fetch(path, options);
    return {status: answer.status, body: await answer.json()};
}"""
PASSWORD = "correct horse battery staple"
MALLORY = "a password of mallory"

#: What each defence refuses by itself: headers of a request that is a session's own in everything else.
REFUSED = {
    "origin": {"Origin": "http://evil.example"},
    "csrf-token": {"X-CSRF-Token": ""},
    "fetch-site": {"Sec-Fetch-Site": "same-site"},
    "json-only": {"Content-Type": "text/plain"},
}


def ask(page: Any, path: str, method: str = "GET", body: object = None, token: str = "") -> dict[str, Any]:
    """What our own page gets when it calls the management API."""
    options: dict[str, Any] = {"method": method, "headers": {"X-CSRF-Token": token}}
    if body is not None:
        options["body"] = json.dumps(body)
        options["headers"]["Content-Type"] = "application/json"
    return dict(page.evaluate(ASK, [path, options]))


def state(manager: Manager) -> dict[str, Any]:
    """Everything that the attempts are after."""
    return {
        "keys": [(key["id"], key["name"]) for key in manager.manage("GET", "/api/api-keys")],
        "instances": [(each["id"], each["generation"], each["status"]) for each in manager.instances()],
        "settings": manager.manage("GET", "/api/settings"),
        "presets": manager.manage("GET", "/api/presets"),
        "users": [
            (user["name"], user["role"], user["disabled"]) for user in manager.manage("GET", "/api/users")
        ],
        "sessions": sorted(each["id"] for each in manager.manage("GET", "/api/sessions")),
    }


@pytest.fixture(scope="module")
def instance(manager: Manager) -> str:
    """A running instance to be stopped or listened to."""
    return str(manager.launch("tiny")["id"])


@pytest.fixture(scope="module", autouse=True)
def mallory(manager: Manager) -> None:
    """Somebody with an account of their own, who may look and no more."""
    body = {"name": "mallory", "password": MALLORY, "role": "viewer"}
    manager.manage("POST", "/api/users", body)


def log_in(visit: Any, origin: str) -> tuple[Any, str]:
    """The administrator's tab, who has just confirmed the password, and the token of the session."""
    visit.log_in(origin)
    page = visit.own(origin)
    token = ask(page, "/api/me")["body"]["csrf_token"]
    assert ask(page, "/api/me/sudo", "POST", {"password": PASSWORD}, token)["status"] == 200
    return page, token


def attack(visit: Any, hostile: Any, manager: Manager, host: str, instance: str) -> dict[str, Any]:
    """What a hostile page could read and hold on to; whether it did anything is for the caller to see."""
    stranger = Visitor(manager.port)
    token = stranger.token("/login")
    (planted,) = stranger.cookies.values()
    page = visit.page()
    page.goto(f"http://{host}:{hostile.port}/")
    told = {
        "target": f"http://{host}:{manager.port}",
        "cookie": visit.session()["name"],
        "model": str(manager.models / "tiny.gguf"),
        "instance": instance,
        "planted": {"cookie": planted, "token": token},
        # On plain HTTP from a network, browsers do not cut the tie to whoever opened a page, whatever it asks.
        "severs": host in ("localhost", "127.0.0.1"),
    }
    return dict(page.evaluate(ATTACK, told))


def test_a_hostile_page_changes_nothing_reads_nothing_and_logs_nobody_out(
    visit: Any, hostile: Any, manager: Manager, instance: str, host: str
) -> None:
    page, token = log_in(visit, f"http://{host}:{manager.port}")
    before = state(manager)
    found = attack(visit, hostile, manager, host, instance)
    assert found["read"] == {}
    if host in ("localhost", "127.0.0.1"):
        assert found["tied"] == [], "our pages cut the tie to whoever opened them"
    assert state(manager) == before
    me = ask(page, "/api/me")
    assert (me["status"], me["body"]["name"]) == (200, "admin")
    made = ask(page, "/api/api-keys", "POST", {"name": "mine", "scope": "inference"}, token)
    assert made["status"] == 201, "planted cookies do not keep the administrator from working either"
    assert ask(page, f"/api/api-keys/{made['body']['id']}", "DELETE", token=token)["status"] == 200


def test_a_link_on_a_hostile_page_logs_nobody_out(
    visit: Any, hostile: Any, manager: Manager, host: str
) -> None:
    origin = f"http://{host}:{manager.port}"
    visit.log_in(origin)
    page = visit.own(origin)
    other = visit.page()
    other.goto(f"http://{host}:{hostile.port}/")
    with other.expect_navigation():
        other.evaluate("url => { location = url }", f"{origin}/logout")
    assert other.get_by_role("button", name="Log out").count() == 1, "it asks, by a form"
    assert ask(page, "/api/me")["status"] == 200


def test_two_live_sessions_in_one_request_end_both_and_a_dead_one_beside_it_ends_none(
    visit: Any, hostile: Any, manager: Manager, plain_host: str
) -> None:
    visit.log_in(f"http://{plain_host}:{manager.port}")
    page = visit.own(f"http://{plain_host}:{manager.port}")
    name = visit.session()["name"]
    attacker = Visitor(manager.port)
    attacker.log_in("mallory", MALLORY)
    live = attacker.cookies[name]
    other = visit.page()
    other.goto(f"http://{plain_host}:{hostile.port}/")
    plant = "([name, value]) => { document.cookie = `${name}=${value}; path=/api` }"
    other.evaluate(plant, [name, "0" * len(live)])
    assert ask(page, "/api/me")["body"]["name"] == "admin"
    other.evaluate(plant, [name, live])
    assert ask(page, "/api/me")["status"] == 401
    assert attacker.call("GET", "/api/me").status == 401
    other.evaluate(plant, [name, "0" * len(live)])
    assert ask(page, "/api/me")["status"] == 401, "it has ended for good"


def probe(visit: Any, manager: Manager, host: str, token: str, headers: dict[str, str]) -> int:
    """The status of a request of the session that the browser has, as a program may send it."""
    visitor = Visitor(manager.port, host=host)
    visitor.cookies = {visit.session()["name"]: visit.session()["value"]}
    body = {"name": "probe", "scope": "inference"}
    return visitor.call("POST", "/api/api-keys", body, headers={"X-CSRF-Token": token, **headers}).status


def test_each_defence_refuses_by_itself(visit: Any, manager: Manager, plain_host: str) -> None:
    _, token = log_in(visit, f"http://{plain_host}:{manager.port}")
    statuses = {name: probe(visit, manager, plain_host, token, sent) for name, sent in REFUSED.items()}
    assert statuses == {"origin": 403, "csrf-token": 403, "fetch-site": 403, "json-only": 415}
    assert probe(visit, manager, plain_host, token, {}) == 201
    assert visit.session()["sameSite"] == "Lax"


@pytest.mark.parametrize("defence", [*REFUSED, "same-site"])
def test_with_one_defence_off_the_others_hold(
    visit: Any, hostile: Any, new_manager: Callable[..., Manager], plain_host: str, defence: str
) -> None:
    manager = new_manager(env={"LLAMAMAN_ADMIN_PASSWORD": PASSWORD}, weakened=defence)
    instance = manager.launch("tiny")["id"]
    page, token = log_in(visit, f"http://{plain_host}:{manager.port}")
    if defence in REFUSED:
        assert probe(visit, manager, plain_host, token, REFUSED[defence]) == 201, "it is off"
    before = state(manager)
    assert attack(visit, hostile, manager, plain_host, instance)["read"] == {}
    assert state(manager) == before
    assert ask(page, "/api/me")["body"]["name"] == "admin"
    manager.close()


def test_with_all_of_them_off_the_same_page_does_harm(
    visit: Any, hostile: Any, new_manager: Callable[..., Manager], plain_host: str
) -> None:
    manager = new_manager(env={"LLAMAMAN_ADMIN_PASSWORD": PASSWORD}, weakened="all")
    instance = manager.launch("tiny")["id"]
    log_in(visit, f"http://{plain_host}:{manager.port}")
    before = state(manager)
    attack(visit, hostile, manager, plain_host, instance)
    after = state(manager)
    assert "stolen" in {name for _, name in after["keys"]}
    assert ("mallory", "admin", False) in after["users"]
    assert after["settings"] != before["settings"]
    manager.close()
