"""Every route of the management API, without credentials and with each scope.

The list is the app's own route table, so a new route is covered the moment it exists. What a route may be is
written down here a second time, so that a route whose level changes by accident fails.
"""

from __future__ import annotations

import json
import re
import socket
import time

import pytest
from management_door import DEADLINE_S, OPEN_TO, Manager, eventually

from llamaman.access import Access, Role, Scope
from llamaman.core.accounts.cookies import cookie_name
from llamaman.dashboard.app import app_routes
from llamaman.gateway.caller import HEADER, Caller, new_secret, seal
from llamaman.records import Identity

LOCAL = Identity("local", "test", Scope.ADMIN)

#: (method, path) -> level, as the access matrix has it. Everything else must be MANAGE.
EXPECTED = {
    ("GET", "/api/version"): "public",
    ("GET", "/api/instances"): "view",
    ("GET", "/api/instances/{id}"): "view",
    ("GET", "/api/instances/container-stats"): "view",
    ("GET", "/api/next-port"): "view",
    ("GET", "/api/models"): "view",
    ("GET", "/api/presets"): "view",
    ("GET", "/api/presets/{model_path...}"): "view",
    ("GET", "/api/events"): "view",
    ("GET", "/api/why"): "view",
    ("GET", "/metrics"): "view",
    ("GET", "/api/audit"): "admin",
    ("GET", "/api/system-info"): "view",
    ("GET", "/api/runtimes"): "view",
    ("GET", "/api/images"): "view",
    ("GET", "/api/images/pull-status"): "view",
    ("DELETE", "/api/images"): "admin",
    ("GET", "/api/llamaman/version"): "view",
    ("GET", "/api/openapi.json"): "view",
    ("POST", "/api/settings"): "admin",
    ("GET", "/api/plugins"): "admin",
    ("GET", "/api/doctor"): "admin",
    ("GET", "/api/api-keys"): "admin",
    ("POST", "/api/api-keys"): "admin",
    ("DELETE", "/api/api-keys/{id}"): "admin",
    ("GET", "/api/users"): "admin",
    ("POST", "/api/users"): "admin",
    ("PATCH", "/api/users/{name}"): "admin",
    ("DELETE", "/api/users/{name}"): "admin",
    ("GET", "/api/setup-link"): "admin",
    ("GET", "/api/sessions"): "admin",
    ("DELETE", "/api/sessions/{id}"): "admin",
    ("GET", "/api/me"): "view",
    ("GET", "/api/me/sessions"): "view",
    ("DELETE", "/api/me/sessions"): "view",
    ("DELETE", "/api/me/sessions/{id}"): "view",
    ("POST", "/api/me/password"): "view",
    ("POST", "/api/me/sudo"): "view",
    ("GET", "/"): "view",
    ("GET", "/login"): "public",
    ("POST", "/login"): "public",
    ("GET", "/logout"): "public",
    ("POST", "/logout"): "public",
    ("GET", "/setup"): "public",
    ("POST", "/setup"): "public",
    ("GET", "/setup/{code}"): "public",
    ("POST", "/setup/{code}"): "public",
    ("GET", "/static/llamaman.css"): "public",
    ("GET", "/static/llamaman.svg"): "public",
}


def routes(manager: Manager) -> list[tuple[str, str, str]]:
    assert manager.server.wait_ready(20)
    assert manager.server.app is not None
    return [(row["method"], row["path"], row["level"]) for row in app_routes(manager.server.app)]


def filled(path: str) -> str:
    return re.sub(r"{[^}]+}", "nothing", path)


def test_every_route_has_the_level_of_the_matrix(shared_manager: Manager) -> None:
    found = {(method, path): level for method, path, level in routes(shared_manager)}
    assert len(found) >= 25
    for place, level in found.items():
        assert level == EXPECTED.get(place, "manage"), place
    assert set(EXPECTED) <= set(found)


@pytest.mark.parametrize("require_auth", [True, False])
def test_a_stranger_is_refused_everywhere_but_on_public_routes(manager: Manager, require_auth: bool) -> None:
    manager.kernel.settings.update({"require_auth": require_auth}, "test")
    assert manager.kernel.keys.list() == ()
    for method, path, level in routes(manager):
        status, body = manager.call(method, filled(path))
        if level == "public":
            # an answer or another page; or a form that is none, or comes from nowhere
            assert status in ((200, 302) if method == "GET" else (403, 415)), (method, path)
        else:
            assert (status, body) == (401, {"error": "API key required"}), (method, path)


def test_a_wrong_key_is_refused_everywhere(shared_manager: Manager) -> None:
    for method, path, _ in routes(shared_manager):
        status, body = shared_manager.call(method, filled(path), key="llm-guess")
        assert (status, body) == (401, {"error": "Invalid API key"}), (method, path)


@pytest.mark.parametrize("scope", list(Scope))
def test_a_scope_opens_its_routes_and_403_names_what_the_others_need(manager: Manager, scope: Scope) -> None:
    key = manager.key(scope)
    for method, path, level in routes(manager):
        status, body = manager.call(method, filled(path), key=key)
        if path.startswith("/api/me/") and Access(level) in OPEN_TO[scope]:
            assert (status, body["error"][:11]) == (403, "only a user"), (method, path)
        elif Access(level) in OPEN_TO[scope]:
            assert status not in (401, 403), (method, path)
            assert status < 500, (method, path, body)
        else:
            assert status == 403, (method, path)
            assert f"'{level}'" in body["error"]
    if Access.MANAGE not in OPEN_TO[scope]:
        assert manager.kernel.instances.calls == []


@pytest.mark.parametrize("lost", ["key", "expiry", "session"])
def test_who_lost_the_right_while_sending_the_body_changes_nothing(manager: Manager, lost: str) -> None:
    kernel = manager.kernel
    kernel.accounts.create_user("ann", "correct horse battery", Role.ADMIN, by=LOCAL)
    opened = kernel.accounts.sessions.open(kernel.accounts.users.stored("ann"), address=None, agent="")
    session = opened.session.id
    expires = time.time() + 2 if lost == "expiry" else None
    record, key = kernel.keys.create("k", Scope.ADMIN, expires=expires, by=LOCAL)
    body = json.dumps({"scope": "inference"}).encode() if lost == "session" else b'{"require_auth": false}'
    path = "/api/api-keys" if lost == "session" else "/api/settings"
    host = f"127.0.0.1:{manager.port}"
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Connection: close"]
    lines += [f"Content-Length: {len(body)}", "Expect: 100-continue"]
    if lost == "session":
        cookie = cookie_name(kernel.accounts.install_id, False)
        token = kernel.accounts.sessions.csrf_token(session)
        lines += [f"Cookie: {cookie}={opened.secret}", f"Origin: http://{host}", f"X-CSRF-Token: {token}"]
    else:
        lines += [f"Authorization: Bearer {key}"]
    before = kernel.keys.list()
    with socket.create_connection(("127.0.0.1", manager.port), timeout=DEADLINE_S) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b" 100 " in client.recv(4096), "the door knows who it is, and waits for the body"
        if lost == "session":
            kernel.accounts.sessions.end(session, by=LOCAL, reason="a test")
        elif lost == "key":
            kernel.keys.revoke(record.id, by=LOCAL)
        else:
            eventually(lambda: not kernel.keys.is_live(record.identity()))
        client.sendall(body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert kernel.settings.get("require_auth") is True
    assert set(kernel.keys.list()) <= set(before)


def test_an_unknown_path_tells_strangers_nothing_and_callers_404_as_json(shared_manager: Manager) -> None:
    assert shared_manager.call("GET", "/api/nowhere") == (401, {"error": "API key required"})
    status, body = shared_manager.call("GET", "/api/nowhere", key=shared_manager.key(Scope.VIEW))
    assert status == 404
    assert set(body) == {"error"}
    assert "/api/nowhere" in body["error"]


def test_a_wrong_method_is_405_as_json_and_says_which_are_right(shared_manager: Manager) -> None:
    key = shared_manager.key(Scope.ADMIN)
    status, body, answer = shared_manager.raw(
        "PUT", "/api/instances", b"{}", {"Content-Type": "application/json"}, key
    )
    assert status == 405
    assert "GET" in body["error"]
    assert answer.headers["Allow"] == "GET, HEAD, POST"
    assert shared_manager.raw("OPTIONS", "/api/instances", key=key)[0] == 405


def test_a_sealed_caller_from_outside_is_stripped(shared_manager: Manager) -> None:
    forged = seal(Caller(Identity("local", "x", Scope.ADMIN), "admin"), new_secret()).decode()
    own = seal(Caller(Identity("local", "x", Scope.ADMIN), "admin"), shared_manager.server.secret).decode()
    view = shared_manager.key(Scope.VIEW)
    for value in (forged, own):
        for name in (HEADER, HEADER.replace("-", "_")):
            assert shared_manager.raw("GET", "/api/api-keys", headers={name: value})[0] == 401
            assert shared_manager.raw("GET", "/api/api-keys", headers={name: value}, key=view)[0] == 403


def test_the_hop_socket_is_private_and_answers_403_without_the_secret(shared_manager: Manager) -> None:
    path = shared_manager.server.socket_path
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /api/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"server:" not in answer.lower()


def test_the_admin_socket_administers_without_a_key(shared_manager: Manager) -> None:
    from llamaman.client import Client

    client = Client(socket=shared_manager.admin)
    assert isinstance(client.call("GET", "/api/api-keys"), list)
    assert shared_manager.admin.stat().st_mode & 0o777 == 0o600


def test_the_admin_socket_serves_only_its_own_account_and_root() -> None:
    import os

    from llamaman.errors import Forbidden
    from llamaman.gateway.admin_socket import admin_identity

    assert admin_identity(os.geteuid()).scope is Scope.ADMIN
    assert admin_identity(0).actor == "local:uid:0"
    for uid in (os.geteuid() + 12345, None):
        with pytest.raises(Forbidden):
            admin_identity(uid)


def test_no_answer_may_be_cached_or_sniffed(shared_manager: Manager) -> None:
    for path, key in (("/api/version", None), ("/api/instances", shared_manager.key(Scope.VIEW))):
        answer = shared_manager.raw("GET", path, key=key)[2]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_cookies_and_foreign_headers_do_not_cross_the_hop(tmp_path_factory: pytest.TempPathFactory) -> None:
    from flask import Blueprint, jsonify, request
    from management_door import running_manager

    from llamaman.records import RouteSet

    echo = Blueprint("echo", __name__)
    echo.add_url_rule("/-/echo", "echo", lambda: jsonify(dict(request.headers)))
    sent = {
        "Cookie": "session=x",
        "X-Forwarded-For": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "X-Cluster-Secret": "s",
        "Accept": "application/json",
        "Accept-Language": "de",
    }
    with running_manager(tmp_path_factory.mktemp("e"), {"echo": [RouteSet(echo)]}) as manager:
        status, seen, _ = manager.raw("GET", "/-/echo", headers=sent, key=manager.key(Scope.MANAGE))
    assert status == 200
    assert {name.lower() for name in seen} == {"host", "accept", "accept-language", HEADER.lower()}
    assert seen["Host"] == "llamaman"
