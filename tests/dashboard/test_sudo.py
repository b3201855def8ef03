"""Sensitive actions need the password again, from a session and within ten minutes; this is the list of them."""

from __future__ import annotations

from typing import Any

import pytest
from browser_site import LOCAL, PASSWORD, Browser, Site

from llamaman.access import Role, Scope
from llamaman.dashboard.operation import operation_of
from llamaman.limits import SUDO_S

#: (method, path, body) of every action that needs it; nothing of this list comes from the code.
SENSITIVE: list[tuple[str, str, Any]] = [
    ("POST", "/api/users", {"name": "eve", "password": PASSWORD, "role": "admin"}),
    ("PATCH", "/api/users/vic", {"role": "admin"}),
    ("DELETE", "/api/users/vic", None),
    ("POST", "/api/api-keys", {"name": "k"}),
    ("POST", "/api/api-keys", {"name": "k", "scope": None}),
    ("POST", "/api/api-keys", {"name": "k", "scope": "manage"}),
    ("POST", "/api/api-keys", {"name": "k", "scope": "admin"}),
    ("POST", "/api/settings", {"require_auth": False}),
    ("POST", "/api/settings", {"admin_ui_enforce_max_models": True, "require_auth": 0}),
    ("POST", "/api/settings", {"images.allowed": ["evil/x:*"]}),
]
HARMLESS: list[tuple[str, str, Any]] = [
    ("GET", "/api/users", None),
    ("GET", "/api/sessions", None),
    ("POST", "/api/api-keys", {"name": "k", "scope": "inference"}),
    ("POST", "/api/api-keys", {"name": "k", "scope": "view"}),
    ("POST", "/api/settings", {"require_auth": True}),
    ("POST", "/api/settings", {"admin_ui_enforce_max_models": True}),
]


@pytest.fixture
def ada(site: Site) -> Browser:
    """An administrator who logged in some time ago."""
    site.user("ada")
    site.user("vic", Role.VIEWER)
    return site.logged_in("ada")


def state(site: Site) -> tuple[Any, ...]:
    users = [(user.name, user.role) for user in site.accounts.users.list()]
    return users, len(site.kernel.keys.list()), site.kernel.settings.get("require_auth")


@pytest.mark.parametrize(("method", "path", "body"), SENSITIVE)
def test_a_session_must_confirm_its_password_first(
    site: Site, ada: Browser, method: str, path: str, body: Any
) -> None:
    before = state(site)
    status, answer = ada.json(method, path, body)
    assert (status, answer["sudo_required"]) == (403, True)
    assert "/api/me/sudo" in answer["error"]
    assert state(site) == before
    assert ada.json("POST", "/api/me/sudo", {"password": PASSWORD})[0] == 200
    assert ada.json(method, path, body)[0] in (200, 201, 400)


@pytest.mark.parametrize(("method", "path", "body"), HARMLESS)
def test_other_actions_need_no_password(ada: Browser, method: str, path: str, body: Any) -> None:
    assert ada.json(method, path, body)[0] in (200, 201)


def test_the_confirmation_ends_after_ten_minutes(site: Site, ada: Browser) -> None:
    key = {"name": "k", "scope": "admin"}
    ada.json("POST", "/api/me/sudo", {"password": PASSWORD})
    site.now += SUDO_S - 1
    assert ada.json("POST", "/api/api-keys", key)[0] == 201
    site.now += 2
    assert ada.json("POST", "/api/api-keys", key)[0] == 403


def test_a_wrong_password_confirms_nothing(ada: Browser) -> None:
    assert ada.json("POST", "/api/me/sudo", {"password": "a wrong password"})[0] == 403
    assert ada.json("DELETE", "/api/users/vic")[1]["sudo_required"] is True


def test_another_session_of_the_same_user_is_not_confirmed_along(site: Site, ada: Browser) -> None:
    ada.json("POST", "/api/me/sudo", {"password": PASSWORD})
    assert site.logged_in("ada").json("DELETE", "/api/users/vic")[0] == 403
    assert ada.json("DELETE", "/api/users/vic")[0] == 200


def test_what_is_sent_back_unchanged_needs_no_password(site: Site, ada: Browser) -> None:
    site.kernel.settings.update({"require_auth": False}, "test")
    assert ada.json("POST", "/api/settings", {"require_auth": False})[0] == 200


def test_whoever_may_not_do_it_is_not_asked_for_a_password(site: Site, ada: Browser) -> None:
    vic = site.logged_in("vic")
    for method, path, body in SENSITIVE:
        status, answer = vic.json(method, path, body)
        assert (status, "sudo_required" in answer) == (403, False), path


def test_keys_and_the_admin_socket_have_no_password_to_confirm(site: Site, ada: Browser) -> None:
    for caller in (site.browser(identity=site.key(Scope.ADMIN)), site.browser(identity=LOCAL)):
        assert caller.json("POST", "/api/api-keys", {"scope": "admin"})[0] == 201
        assert caller.json("POST", "/api/settings", {"require_auth": False})[0] == 200


def test_no_other_route_asks_for_it_whatever_its_body(site: Site) -> None:
    marked = set()
    for rule in site.app.url_map.iter_rules():
        operation = operation_of(site.app.view_functions[rule.endpoint])
        if operation is not None and operation.sudo:
            marked |= {(method, rule.rule) for method in (rule.methods or set()) - {"HEAD"}}
    always = {(method, path.replace("vic", "<name>")) for method, path, _ in SENSITIVE if "vic" in path}
    assert marked == always | {("POST", "/api/users")}
