"""What management does and refuses is in the audit log, and an administrator reads it there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser_site import PASSWORD, Site
from management_door import Manager

from llamaman.access import Role, Scope
from llamaman.core.launch_events import STARTED, TOPIC
from llamaman.dashboard.app import CORE, app_routes
from llamaman.dashboard.audit_names import NAMES
from llamaman.errors import LaunchError


def entries(place: Manager | Site, **wanted: str) -> list[dict[str, Any]]:
    """The newest entries first, without what a test's own questions leave behind."""
    audit = place.kernel.audit
    assert audit.flush()
    return audit.read(limit=500, **wanted)


def newest(place: Manager | Site, **wanted: str) -> dict[str, Any]:
    entry = entries(place, **wanted)[0]
    assert entry.pop("id") > 0
    assert entry.pop("at") > 1.7e9
    return entry


# --- what is recorded -------------------------------------------------------------------------------


def test_every_change_that_the_core_offers_has_a_readable_name(shared_manager: Manager) -> None:
    assert shared_manager.server.wait_ready(20)
    assert shared_manager.server.app is not None
    rows = [row for row in app_routes(shared_manager.server.app) if row["plugin"] == CORE]
    changes = {(row["method"], row["path"]) for row in rows if row["method"] != "GET"}
    assert changes == set(NAMES)
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name) for name in NAMES.values())


def test_a_launch_is_recorded_with_who_from_where_and_what(manager: Manager) -> None:
    key = manager.key(Scope.MANAGE)
    status, made = manager.call("POST", "/api/instances", {"model_path": str(manager.model)}, key=key)
    assert status == 201
    key_id = manager.kernel.keys.list()[0].id
    assert newest(manager) == {
        "actor": "key:manage",
        "address": "127.0.0.1",
        "action": "instances.launch",
        "object": made["id"],
        "changes": {},
        "outcome": "ok",
        "detail": f"key {key_id}",
    }
    manager.call("DELETE", f"/api/instances/{made['id']}", key=key)
    assert (newest(manager)["action"], newest(manager)["object"]) == ("instances.stop", made["id"])


def test_a_saved_preset_is_recorded_with_the_model_s_path(manager: Manager) -> None:
    path = str(manager.model).lstrip("/")
    manager.call("PUT", f"/api/presets/{path}", {"ctx_size": 512}, key=manager.key(Scope.MANAGE))
    assert (newest(manager)["action"], newest(manager)["object"]) == ("presets.save", path)


def test_reading_is_not_recorded(manager: Manager) -> None:
    key = manager.key(Scope.ADMIN)
    for path in ("/api/instances", "/api/api-keys", "/api/audit"):
        assert manager.call("GET", path, key=key)[0] == 200
    assert [entry["action"] for entry in entries(manager)] == []


def test_settings_are_recorded_with_their_old_and_new_values(manager: Manager) -> None:
    manager.call("POST", "/api/settings", {"require_auth": False}, key=manager.key(Scope.ADMIN))
    entry = newest(manager)
    assert (entry["action"], entry["changes"]) == (
        "settings.change",
        {"require_auth": {"old": True, "new": False}},
    )


def test_a_key_is_recorded_by_name_and_scope_and_never_by_itself(manager: Manager) -> None:
    admin = manager.key(Scope.ADMIN)
    status, made = manager.call("POST", "/api/api-keys", {"name": "ci", "scope": "inference"}, key=admin)
    assert status == 201
    entry = newest(manager)
    assert (entry["action"], entry["object"]) == ("keys.create", made["id"])
    assert entry["changes"] == {"name": "ci", "scope": "inference"}
    files = list((Path(manager.kernel.config.data_dir) / "audit").iterdir())
    assert files
    assert not any(made["key"] in path.read_text() or admin in path.read_text() for path in files)


@pytest.mark.parametrize(
    ("scope", "method", "path", "status", "action"),
    [
        (Scope.VIEW, "POST", "/api/models/rescan", 403, "models.rescan"),
        (Scope.MANAGE, "GET", "/api/audit", 403, "GET /api/audit"),
        (Scope.MANAGE, "DELETE", "/api/instances/none", 404, "instances.stop"),
        (Scope.ADMIN, "POST", "/api/nothing/here", 404, "POST ?"),
        (Scope.ADMIN, "POST", "/api/settings", 400, "settings.change"),
    ],
)
def test_what_is_refused_is_recorded_with_the_reason(
    manager: Manager, scope: Scope, method: str, path: str, status: int, action: str
) -> None:
    body = {"no_such_setting": 1} if path == "/api/settings" else None
    answered, said = manager.call(method, path, body, key=manager.key(scope))
    assert answered == status
    entry = newest(manager)
    assert (entry["action"], entry["outcome"]) == (action, "refused")
    assert said["error"] in entry["detail"]


def test_what_fails_is_recorded_as_failed(manager: Manager) -> None:
    manager.kernel.instances.refusal = LaunchError("no engine")
    manager.call("POST", "/api/instances", {"model_path": str(manager.model)}, key=manager.key(Scope.MANAGE))
    entry = newest(manager)
    assert (entry["action"], entry["outcome"]) == ("instances.launch", "failed")
    assert "no engine" in entry["detail"]


def test_strangers_cannot_fill_the_log_with_what_is_allowed(site: Site) -> None:
    browser = site.browser()
    for _ in range(3):
        browser.open("/logout", "POST", data={"csrf_token": "x"})
    assert entries(site) == []


def test_a_login_is_recorded_once_with_the_user_and_the_address(site: Site) -> None:
    site.user("ann")
    site.browser().log_in("ann")
    logins = entries(site, action="login")
    assert [(entry["actor"], entry["address"], entry["outcome"]) for entry in logins] == [
        ("session:ann", "192.0.2.7", "ok")
    ]


def test_failed_logins_are_recorded_and_counted(site: Site) -> None:
    site.user("ann")
    browser = site.browser()
    for _ in range(3):
        browser.log_in("ann", "not the password")
    site.audit.close()  # which writes the counts
    found = site.audit.read(action="login")
    assert [(entry["action"], entry["outcome"]) for entry in found] == [("login.failed", "refused")] * 2
    assert (found[1]["object"], found[1]["address"]) == ("ann", "192.0.2.7")
    assert found[0]["changes"] == {"repeated": 2}
    assert "not the password" not in json.dumps(found)


def test_a_logout_is_recorded(site: Site) -> None:
    site.user("ann")
    browser = site.logged_in("ann")
    browser.submit("/logout", {}, shown_at="/logout")
    assert (newest(site)["action"], newest(site)["actor"]) == ("logout", "session:ann")


def test_users_are_recorded_with_what_changed_and_without_passwords(site: Site) -> None:
    site.user("ann")
    admin = site.browser(identity=site.key(Scope.ADMIN))
    new = {"name": "bob", "password": "another horse battery", "role": "viewer"}
    assert admin.json("POST", "/api/users", new)[0] == 201
    made = newest(site)
    assert (made["action"], made["object"]) == ("users.create", "bob")
    assert made["changes"]["role"] == "viewer"
    change = {"role": "manager", "password": "yet another battery"}
    assert admin.json("PATCH", "/api/users/bob", change)[0] == 200
    changed = newest(site)
    assert (changed["action"], changed["object"]) == ("users.change", "bob")
    assert changed["changes"] == {"role": {"old": "viewer", "new": "manager"}, "password": True}
    assert admin.json("DELETE", "/api/users/bob")[0] == 200
    assert newest(site)["action"] == "users.delete"
    raw = json.dumps(entries(site))
    assert not any(secret in raw for secret in ("another horse", "yet another", PASSWORD))


def test_what_the_environment_did_at_boot_is_recorded(site: Site) -> None:
    site.accounts.ensure_first("root", PASSWORD)
    site.kernel.keys.ensure_bootstrap("llm-" + "b" * 40)
    found = {entry["action"]: entry for entry in entries(site)}
    assert set(found) == {"users.created", "keys.created"}
    assert found["users.created"]["object"] == "root"
    assert found["keys.created"]["object"] == "bootstrap"
    assert PASSWORD not in json.dumps(found)


def test_every_start_of_an_engine_is_recorded_with_its_command_line(manager: Manager) -> None:
    data = {
        "instance_id": "i1",
        "model": "tiny",
        "generation": 2,
        "argv": ["llama-server", "--model", "/m/t.gguf"],
    }
    manager.kernel.events.publish(TOPIC, STARTED, data, actor="gateway", reason="an engine was started")
    entry = newest(manager)
    assert (entry["action"], entry["object"], entry["actor"]) == ("engine.start", "i1", "gateway")
    assert entry["changes"]["argv"] == data["argv"]


def test_an_answer_is_given_even_if_it_cannot_be_recorded(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(manager.kernel.audit, "record", broken)
    assert manager.call("POST", "/api/models/rescan", key=manager.key(Scope.MANAGE))[0] == 200


# --- reading it -------------------------------------------------------------------------------------


def test_pages_go_back_from_the_newest(manager: Manager) -> None:
    for number in range(5):
        manager.kernel.audit.record(f"n{number}", actor="local:uid:0", address=None)
    assert manager.kernel.audit.flush()
    key = manager.key(Scope.ADMIN)
    status, first = manager.call("GET", "/api/audit?limit=3", key=key)
    assert status == 200
    assert [entry["action"] for entry in first["entries"]] == ["n4", "n3", "n2"]
    _, second = manager.call("GET", f"/api/audit?limit=3&before={first['next']}", key=key)
    assert [entry["action"] for entry in second["entries"]] == ["n1", "n0"]
    assert second["next"] is None


def test_entries_are_chosen_by_the_query(manager: Manager) -> None:
    key = manager.key(Scope.ADMIN)
    manager.call("POST", "/api/models/rescan", key=key)
    manager.call("POST", "/api/settings", {"x": 1}, key=key)

    def actions(query: str) -> list[str]:
        assert manager.kernel.audit.flush()
        return [e["action"] for e in manager.call("GET", f"/api/audit?{query}", key=key)[1]["entries"]]

    assert actions("outcome=refused") == ["settings.change"]
    assert actions("action=models") == ["models.rescan"]
    assert actions("actor=key:nobody") == []


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "before=-1", "outcome=maybe"])
def test_a_wrong_query_is_refused_by_name(shared_manager: Manager, query: str) -> None:
    status, body = shared_manager.call("GET", f"/api/audit?{query}", key=shared_manager.key(Scope.ADMIN))
    assert (status, body["field"]) == (400, query.partition("=")[0])


def test_requests_in_flight_are_cancelled_in_the_caller_s_name(manager: Manager) -> None:
    key = manager.key(Scope.MANAGE)
    assert manager.call("GET", "/api/requests", key=key) == (200, [])
    status, body = manager.call("DELETE", "/api/requests/gone", key=key)
    assert (status, "may be over already" in body["error"]) == (404, True)
    manager.kernel.requests.all["r1"] = None  # type: ignore[assignment] # only looked up
    assert manager.call("DELETE", "/api/requests/r1", key=key) == (200, {"ok": True})
    assert manager.kernel.requests.cancelled == [("r1", "key:manage")]
    assert (newest(manager)["action"], newest(manager)["object"]) == ("requests.cancel", "r1")


def test_a_viewer_reads_neither_the_log_nor_what_is_in_flight(site: Site) -> None:
    site.user("ann")
    site.user("vic", Role.VIEWER)
    viewer = site.logged_in("vic")
    for path in ("/api/audit", "/api/requests"):
        assert viewer.json("GET", path)[0] == 403
    refused = [entry for entry in entries(site) if entry["outcome"] == "refused"]
    assert {entry["actor"] for entry in refused} == {"session:vic"}
