"""``/api/me``: who asks, and what people do about their own account, whatever their role."""

from __future__ import annotations

import pytest
from browser_site import INSTALL, LOCAL, PASSWORD, Browser, Site

from llamaman.access import Role, Scope
from llamaman.core.accounts.cookies import cookie_name
from llamaman.limits import FAILURES_PER_ACCOUNT, SUDO_S

COOKIE = cookie_name(INSTALL, False)
NEW_PASSWORD = "staple this one too"


@pytest.fixture
def vic(site: Site) -> Browser:
    """A viewer's browser."""
    site.user("ada")
    site.user("Vic", Role.VIEWER)
    return site.logged_in("vic")


def test_a_user_sees_their_role_their_session_and_the_token_for_changes(site: Site, vic: Browser) -> None:
    status, me = vic.json("GET", "/api/me")
    assert status == 200
    assert me == {
        "kind": "session",
        "name": "Vic",
        "role": "viewer",
        "scope": "view",
        "session": vic.session,
        "csrf_token": site.accounts.sessions.csrf_token(vic.session or ""),
        "sudo_until": None,
    }


def test_a_key_and_the_admin_socket_see_that_they_are_no_users(site: Site) -> None:
    expected = {"role": None, "session": None, "csrf_token": None, "sudo_until": None}
    assert site.browser(identity=site.key(Scope.VIEW)).json("GET", "/api/me")[1] == {
        "kind": "key", "name": "view", "scope": "view", **expected,
    }  # fmt: skip
    assert site.browser(identity=LOCAL).json("GET", "/api/me")[1] == {
        "kind": "local", "name": "uid:0", "scope": "admin", **expected,
    }  # fmt: skip


def test_everything_else_is_for_users_alone(site: Site) -> None:
    key = site.browser(identity=site.key(Scope.ADMIN))
    for method, path, body in (
        ("GET", "/api/me/sessions", None),
        ("DELETE", "/api/me/sessions", None),
        ("DELETE", "/api/me/sessions/x", None),
        ("POST", "/api/me/password", {"current": PASSWORD, "new": NEW_PASSWORD}),
        ("POST", "/api/me/sudo", {"password": PASSWORD}),
    ):
        status, answer = key.json(method, path, body)
        assert (status, "no account" in answer["error"]) == (403, True), path


def test_ones_own_sessions_are_shown_the_latest_first_and_nobody_elses(site: Site, vic: Browser) -> None:
    site.logged_in("ada")
    site.now += 60
    later = site.logged_in("vic")
    sessions = later.json("GET", "/api/me/sessions")[1]
    assert [(each["id"], each["user"], each["current"]) for each in sessions] == [
        (later.session, "Vic", True),
        (vic.session, "Vic", False),
    ]


def test_one_of_ones_own_sessions_can_be_ended_and_no_other(site: Site, vic: Browser) -> None:
    ada, lost = site.logged_in("ada"), site.logged_in("vic")
    assert vic.json("DELETE", f"/api/me/sessions/{lost.session}") == (200, {"ok": True})
    assert lost.session is None
    assert vic.json("DELETE", f"/api/me/sessions/{ada.session}")[0] == 404
    assert ada.session is not None
    answer = vic.open(f"/api/me/sessions/{vic.session}", "DELETE")
    assert answer.status_code == 200
    assert COOKIE not in vic.jar


def test_log_out_everywhere_ends_every_session_of_the_user(site: Site, vic: Browser) -> None:
    ada, other = site.logged_in("ada"), site.logged_in("vic")
    assert vic.json("DELETE", "/api/me/sessions") == (200, {"ok": True, "ended": 2})
    assert (vic.jar, other.session) == ({}, None)
    assert ada.session is not None


def test_a_new_password_ends_every_session_and_gives_this_browser_a_new_one(site: Site, vic: Browser) -> None:
    other, before, secret = site.logged_in("vic"), vic.session, vic.jar[COOKIE]
    status, answer = vic.json("POST", "/api/me/password", {"current": PASSWORD, "new": NEW_PASSWORD})
    assert status == 200
    assert answer["session"] == vic.session != before
    assert vic.json("GET", "/api/me")[1]["csrf_token"] == answer["csrf_token"]
    assert other.session is None
    vic.keep(secret)
    assert vic.session is None
    assert site.browser().log_in("vic").status_code == 401
    assert site.browser().log_in("vic", NEW_PASSWORD).status_code == 303


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"current": "a wrong password", "new": NEW_PASSWORD}, 403, None),
        ({"current": PASSWORD, "new": "short"}, 400, "new"),
        ({"current": PASSWORD, "new": PASSWORD}, 400, "new"),
        ({"current": PASSWORD}, 400, "new"),
        ({"new": NEW_PASSWORD}, 400, "current"),
    ],
)
def test_a_password_that_is_not_changed_leaves_everything_as_it_was(
    site: Site, vic: Browser, body: dict[str, str], status: int, field: str | None
) -> None:
    found, answer = vic.json("POST", "/api/me/password", body)
    assert (found, answer.get("field")) == (status, field)
    assert vic.session is not None
    assert site.browser().log_in("vic").status_code == 303


def test_a_confirmed_password_counts_for_ten_minutes_of_this_session(site: Site, vic: Browser) -> None:
    other = site.logged_in("vic")
    status, answer = vic.json("POST", "/api/me/sudo", {"password": PASSWORD})
    assert status == 200
    assert vic.json("GET", "/api/me")[1]["sudo_until"] == answer["sudo_until"]
    assert answer["sudo_until"].endswith("Z")
    assert other.json("GET", "/api/me")[1]["sudo_until"] is None
    site.now += SUDO_S + 1
    assert vic.json("GET", "/api/me")[1]["sudo_until"] is None


def test_a_stolen_browser_cannot_guess_the_password_without_end(site: Site, vic: Browser) -> None:
    for _ in range(FAILURES_PER_ACCOUNT):
        assert vic.json("POST", "/api/me/sudo", {"password": "a wrong password"})[0] == 403
    answer = vic.open("/api/me/sudo", "POST", json={"password": PASSWORD})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert vic.json("GET", "/api/me")[1]["sudo_until"] is None
