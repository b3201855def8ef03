"""``/api/users``, ``/api/sessions`` and ``/api/setup-link``: what administrators do about people."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browser_site import LOCAL, PASSWORD, Browser, Site

from llamaman.access import Role, Scope

USER_FIELDS = {
    "name", "role", "disabled", "created_at", "password_changed_at", "last_login_at", "sessions",
}  # fmt: skip
NEW = {"name": "Bob", "password": PASSWORD, "role": "manager"}


@pytest.fixture
def admin(site: Site) -> Browser:
    """An administrator's browser whose password was confirmed just now."""
    site.user("ada")
    browser = site.logged_in("ada")
    site.accounts.confirm(browser.caller().identity, PASSWORD, address=None)
    return browser


def names(site: Site) -> list[str]:
    return [user.name for user in site.accounts.users.list()]


def test_a_user_is_made_listed_changed_and_deleted(site: Site, admin: Browser) -> None:
    status, user = admin.json("POST", "/api/users", NEW)
    assert status == 201
    assert set(user) == USER_FIELDS
    assert (user["name"], user["role"], user["disabled"], user["sessions"]) == ("Bob", "manager", False, 0)
    assert user["last_login_at"] is None
    assert user["created_at"].endswith("Z")
    assert admin.json("PATCH", "/api/users/bob", {"role": "viewer"})[1]["role"] == "viewer"
    site.logged_in("bob")
    found = {each["name"]: each for each in admin.json("GET", "/api/users")[1]}
    assert set(found) == {"ada", "Bob"}
    assert found["Bob"]["sessions"] == 1
    assert found["Bob"]["last_login_at"] is not None
    assert admin.json("DELETE", "/api/users/bob") == (200, {"ok": True})
    assert names(site) == ["ada"]
    assert admin.json("DELETE", "/api/users/bob")[0] == 404


def test_a_disabled_user_is_out_at_once_and_cannot_come_back(site: Site, admin: Browser) -> None:
    site.user("bob", Role.VIEWER)
    bob = site.logged_in("bob")
    status, user = admin.json("PATCH", "/api/users/bob", {"disabled": True})
    assert (status, user["disabled"], user["sessions"]) == (200, True, 0)
    assert bob.session is None
    assert site.browser().log_in("bob").status_code == 401


def test_a_new_role_or_password_ends_the_users_sessions(site: Site, admin: Browser) -> None:
    site.user("bob", Role.VIEWER)
    for change in ({"role": "manager"}, {"password": "another long one"}):
        bob = site.logged_in("bob")
        assert admin.json("PATCH", "/api/users/bob", change)[0] == 200
        assert bob.session is None
        assert site.browser().log_in("bob", change.get("password", PASSWORD)).status_code == 303


def test_the_last_administrator_stays(site: Site, admin: Browser) -> None:
    for change in ({"role": "viewer"}, {"disabled": True}):
        status, body = admin.json("PATCH", "/api/users/ada", change)
        assert (status, "last administrator" in body["error"]) == (409, True)
    assert admin.json("DELETE", "/api/users/ada")[0] == 409
    assert admin.session is not None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": 7}, "name"),
        ({"name": "x" * 200}, "name"),
        ({"password": "short"}, "password"),
        ({"password": None}, "password"),
        ({"role": "root"}, "role"),
        ({"role": None}, "role"),
        ({"admin": True}, "admin"),
    ],
)
def test_a_user_that_cannot_be_is_refused_by_the_fields_name(
    site: Site, admin: Browser, change: dict[str, Any], field: str
) -> None:
    status, body = admin.json("POST", "/api/users", NEW | change)
    assert (status, body["field"]) == (400, field)
    assert names(site) == ["ada"]


def test_a_name_is_given_once_however_it_is_written(site: Site, admin: Browser) -> None:
    assert admin.json("POST", "/api/users", NEW | {"name": "ADA"})[0] == 409
    assert names(site) == ["ada"]


def test_a_change_of_nothing_is_an_error(admin: Browser) -> None:
    status, body = admin.json("PATCH", "/api/users/ada", {})
    assert (status, "role, disabled, password" in body["error"]) == (400, True)
    assert admin.json("PATCH", "/api/users/nobody", {"role": "viewer"})[0] == 404


def test_managers_and_viewers_see_no_users_and_no_others_sessions(site: Site) -> None:
    site.user("ada")
    site.user("mia", Role.MANAGER)
    site.user("vic", Role.VIEWER)
    for browser in (
        site.logged_in("mia"),
        site.logged_in("vic"),
        site.browser(identity=site.key(Scope.MANAGE)),
    ):
        for method, path, body in (
            ("GET", "/api/users", None),
            ("POST", "/api/users", NEW),
            ("PATCH", "/api/users/vic", {"role": "admin"}),
            ("DELETE", "/api/users/vic", None),
            ("GET", "/api/sessions", None),
            ("DELETE", "/api/sessions/0123456789abcdef", None),
            ("GET", "/api/setup-link", None),
        ):
            assert browser.json(method, path, body)[0] == 403, (method, path)
    assert names(site) == ["ada", "mia", "vic"]


def test_an_admin_key_manages_users_without_a_password(site: Site) -> None:
    site.user("ada")
    caller = site.browser(identity=site.key(Scope.ADMIN))
    assert caller.json("POST", "/api/users", NEW)[0] == 201
    assert site.browser(identity=LOCAL).json("DELETE", "/api/users/bob")[0] == 200


@pytest.mark.parametrize("limited", [{"expires": "2099-01-01T00:00:00Z"}, {"models": ["tiny"]}])
def test_a_key_that_ends_or_is_narrow_makes_nobody_who_outlives_it(
    site: Site, limited: dict[str, Any]
) -> None:
    site.user("ada")
    site.user("vic", Role.VIEWER)
    record, _ = site.kernel.keys.create("k", Scope.ADMIN, **limited, by=LOCAL)
    caller = site.browser(identity=record.identity())
    site.accounts.change_user("vic", disabled=True, by=LOCAL)
    for method, path, body in (
        ("POST", "/api/users", NEW),
        ("PATCH", "/api/users/vic", {"password": "another long one"}),
        ("PATCH", "/api/users/vic", {"role": "admin"}),
        ("PATCH", "/api/users/vic", {"disabled": False}),
    ):
        status, answer = caller.json(method, path, body)
        assert (status, "your key" in answer["error"]) == (403, True), (method, body)
    assert names(site) == ["ada", "vic"]
    assert site.accounts.users.get("vic").disabled
    assert site.accounts.users.get("vic").role is Role.VIEWER


def test_a_key_that_ends_may_still_keep_users_out(site: Site) -> None:
    site.user("ada")
    site.user("vic", Role.VIEWER)
    record, _ = site.kernel.keys.create("k", Scope.ADMIN, expires="2099-01-01T00:00:00Z", by=LOCAL)
    caller = site.browser(identity=record.identity())
    assert caller.json("PATCH", "/api/users/vic", {"disabled": True})[0] == 200
    assert caller.json("DELETE", "/api/users/vic")[0] == 200


def test_a_key_that_ends_or_is_narrow_learns_no_set_up_link(site: Site) -> None:
    for limited in ({"expires": "2099-01-01T00:00:00Z"}, {"models": ["tiny"]}):
        record, _ = site.kernel.keys.create("k", Scope.ADMIN, **limited, by=LOCAL)
        status, answer = site.browser(identity=record.identity()).json("GET", "/api/setup-link")
        assert (status, site.code in str(answer)) == (403, False), limited
    assert site.browser(identity=site.key(Scope.ADMIN)).json("GET", "/api/setup-link")[0] == 200


def test_sessions_are_listed_without_their_secrets_and_ended_by_id(site: Site, admin: Browser) -> None:
    site.user("Bob", Role.VIEWER)
    bob = site.logged_in("bob")
    sessions = admin.json("GET", "/api/sessions")[1]
    assert {each["user"]: each["current"] for each in sessions} == {"ada": True, "Bob": False}
    [of_bob] = [each for each in sessions if each["user"] == "Bob"]
    assert set(of_bob) == {
        "id", "user", "created_at", "last_seen_at", "expires_at", "address", "agent", "current",
    }  # fmt: skip
    assert (of_bob["id"], of_bob["address"], of_bob["agent"]) == (bob.session, "192.0.2.7", "Browser/1")
    for secret in (*bob.jar.values(), *admin.jar.values()):
        assert secret not in json.dumps(sessions)
    assert admin.json("DELETE", f"/api/sessions/{of_bob['id']}") == (200, {"ok": True})
    assert bob.session is None
    assert admin.json("DELETE", f"/api/sessions/{of_bob['id']}")[0] == 404


def test_the_set_up_link_is_there_until_somebody_used_it(site: Site) -> None:
    local = site.browser(identity=LOCAL)
    assert local.json("GET", "/api/setup-link") == (200, {"link": f"http://localhost:5000/setup/{site.code}"})
    site.user("ada")
    assert local.json("GET", "/api/setup-link") == (200, {"link": None})
