"""The management API's shapes, and that a refused request leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from management_door import Manager, running_manager

from llamaman.access import Scope
from llamaman.errors import Conflict, LaunchError
from llamaman.records import Exit, Identity, PluginRecord

SPEC_LAUNCH = {
    "port": 8000,
    "n_gpu_layers": -1,
    "ctx_size": 4096,
    "threads": None,
    "memory_limit": None,
    "parallel": None,
    "extra_args": "--flash-attn",
    "gpu_devices": "",
    "idle_timeout_min": 0,
    "max_concurrent": 0,
    "max_queue_depth": 200,
    "share_queue": False,
    "proxy_sampling_override_enabled": False,
    "proxy_sampling_temperature": 0.8,
    "proxy_sampling_top_k": 40,
    "proxy_sampling_top_p": 0.95,
    "proxy_sampling_presence_penalty": 0.0,
    "proxy_sampling_repeat_penalty": 0.0,
}
SPEC_SETTINGS = {
    "require_auth": True,
    "admin_ui_enforce_max_models": False,
    "allow_ollama_api_override_admin": False,
    "auto_retry_failed_downloads": False,
    "retry_count_per_failed_download": 3,
    "cleanup": {
        "downloads_enabled": True,
        "downloads_max_age_hours": 24,
        "downloads_last_run_at": 1710000000,
        "instances_enabled": False,
        "instances_max_age_hours": 48,
        "instances_last_run_at": 1710000000,
        "stale_records_enabled": False,
        "stale_records_interval_min": 5,
        "stale_records_last_run_at": None,
    },
}
INSTANCE_FIELDS = {
    "id", "model_name", "model_path", "port", "status", "container_id", "container_name", "log_file", "config",
    "started_at", "stats", "last_request_at", "queue", "state", "reason", "engine", "model", "exit",
}  # fmt: skip
JSON = {"Content-Type": "application/json"}


@dataclass
class Api:
    """A manager and a key that may do everything."""

    manager: Manager
    key: str

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return self.manager.call(method, path, body, self.key)

    def raw(self, method: str, path: str, body: bytes, kind: str = "application/json") -> tuple[int, Any]:
        return self.manager.raw(method, path, body, {"Content-Type": kind}, self.key)[:2]

    @property
    def preset_url(self) -> str:
        return f"/api/presets{self.manager.model}"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_manager(tmp_path) as manager:
        yield Api(manager, manager.key(Scope.ADMIN))


def launched(api: Api, **more: Any) -> Any:
    status, instance = api("POST", "/api/instances", {"model_path": str(api.manager.model), **more})
    assert status == 201, instance
    return instance


# --- instances -----------------------------------------------------------------------------------------


def test_the_documented_launch_body_succeeds_verbatim(api: Api) -> None:
    instance = launched(api, **SPEC_LAUNCH)
    assert set(instance) >= INSTANCE_FIELDS
    assert instance["port"] == 8000
    assert instance["model_name"] == "Tiny-Q8_0.gguf"
    assert instance["model"] == "tiny-q8_0"
    assert set(instance["stats"]) == {
        "model_load_time_s", "last_tokens_per_sec", "last_ttft_ms", "total_requests", "crash_count",
    }  # fmt: skip
    assert set(instance["queue"]) == {"active", "queued", "max_concurrent", "max_queue_depth"}
    request = api.manager.kernel.instances.launched[0]
    assert request.options["ctx_size"] == 4096
    assert request.port == 8000
    assert not request.managed


def test_a_model_may_be_launched_by_name_and_without_options(api: Api) -> None:
    status, instance = api("POST", "/api/instances", {"model": "Tiny-Q8_0"})
    assert status == 201
    assert instance["model_path"] == str(api.manager.model)


def test_unknown_figures_are_null_and_not_zero(api: Api) -> None:
    instance = launched(api)
    assert instance["last_request_at"] is None
    assert instance["stats"]["last_tokens_per_sec"] is None
    assert instance["exit"] is None
    assert instance["container_id"] is None
    assert instance["container_name"] is None


def test_an_end_shows_its_code_and_signal(api: Api) -> None:
    import dataclasses

    instances = api.manager.kernel.instances
    instance_id = launched(api)["id"]
    instances.all[instance_id] = dataclasses.replace(
        instances.all[instance_id], last_exit=Exit(None, 11, 5.0)
    )
    shown = api("GET", f"/api/instances/{instance_id}")[1]["exit"]
    assert (shown["code"], shown["signal"]) == (None, 11)


def test_the_life_of_an_instance_over_rest(api: Api) -> None:
    instance_id = launched(api)["id"]
    assert [item["id"] for item in api("GET", "/api/instances")[1]] == [instance_id]
    assert api("GET", f"/api/instances/{instance_id}")[1]["status"] == "healthy"
    assert api("DELETE", f"/api/instances/{instance_id}/remove")[0] == 409
    assert api("DELETE", f"/api/instances/{instance_id}") == (200, {"status": "stopped"})
    assert api("GET", f"/api/instances/{instance_id}")[1]["status"] == "stopped"
    status, restarted = api("POST", f"/api/instances/{instance_id}/restart")
    assert (status, restarted["id"], restarted["status"]) == (201, instance_id, "starting")
    api("DELETE", f"/api/instances/{instance_id}?force=true")
    assert api("DELETE", f"/api/instances/{instance_id}/remove") == (200, {"status": "removed"})
    assert api("GET", f"/api/instances/{instance_id}") == (404, {"error": "Not found"})
    words = [call[0] for call in api.manager.kernel.instances.calls]
    assert words == ["launch", "stop", "restart", "stop"]
    assert api.manager.kernel.instances.calls[-1][-1] == "force"
    assert {call[2] for call in api.manager.kernel.instances.calls} == {"key:admin"}


def test_a_taken_port_is_a_conflict(api: Api) -> None:
    launched(api, port=8001)
    status, body = api("POST", "/api/instances", {"model_path": str(api.manager.model), "port": 8001})
    assert (status, body) == (409, {"error": "Port 8001 is already in use"})


def test_the_next_port_and_that_there_is_none(api: Api) -> None:
    assert api("GET", "/api/next-port") == (200, {"port": 8000})
    for _ in range(3):
        launched(api)
    assert api("GET", "/api/next-port") == (409, {"error": "No ports available", "port": None})


def test_a_launch_that_needs_confirmation_says_so(api: Api) -> None:
    class Confirmation(Conflict):
        code = "confirm_required"

    api.manager.kernel.instances.refusal = Confirmation("You are about to launch a second model")
    status, body = api("POST", "/api/instances", {"model": "tiny-q8_0"})
    assert status == 409
    assert body == {"error": "You are about to launch a second model", "confirm_required": True}
    api.manager.kernel.instances.refusal = None
    launched(api, confirm_overcommit=True)
    assert api.manager.kernel.instances.launched[-1].confirm_overcommit


def test_details_of_a_failed_launch_are_for_those_who_manage(api: Api) -> None:
    api.manager.kernel.instances.refusal = LaunchError(
        "the model did not load", detail="/models/x: bad magic"
    )
    status, body = api("POST", "/api/instances", {"model": "tiny-q8_0"})
    assert (status, body["detail"]) == (500, "/models/x: bad magic")


def test_a_defect_is_a_500_with_an_id_and_nothing_of_the_cause(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    api.manager.kernel.instances.refusal = ValueError("the cause")
    status, body = api("POST", "/api/instances", {"model": "tiny-q8_0"})
    assert status == 500
    assert body == {"error": "internal error", "id": body["id"]}
    assert body["id"] in caplog.text
    assert "the cause" in caplog.text


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model_path", {"model_path": None}),
        ("model_path", {"model_path": ""}),
        ("model_path", {"model_path": 5}),
        ("model_path", {"model_path": "/etc/passwd"}),
        ("model_path", {"model_path": "/models/../etc/passwd\x00"}),
        ("model", {"model_path": None, "model": "unknown"}),
        ("port", {"port": "abc"}),
        ("port", {"port": 22}),
        ("port", {"port": True}),
        ("port", {"port": 8000.5}),
        ("threads", {"threads": "abc"}),
        ("ctx_size", {"ctx_size": 0}),
        ("ctx_size", {"ctx_size": "many"}),
        ("ctx_size", {"ctx_size": None}),
        ("extra_args", {"extra_args": "--flash-attn 'unbalanced"}),
        ("extra_args", {"extra_args": "--port 9999"}),
        ("extra_args", {"extra_args": "--api_key EVIL"}),
        ("extra_args", {"extra_args": ["--flash-attn"]}),
        ("memory_limit", {"memory_limit": "lots"}),
        ("share_queue", {"share_queue": "yes"}),
        ("proxy_sampling_temperature", {"proxy_sampling_temperature": 9}),
        ("confirm_overcommit", {"confirm_overcommit": 1}),
        ("nonsense", {"nonsense": 1}),
        ("preset", {"preset": 1}),
    ],
)
def test_a_wrong_launch_field_is_named_and_nothing_starts(
    api: Api, field: str, change: dict[str, Any]
) -> None:
    body = {"model_path": str(api.manager.model), **SPEC_LAUNCH, **change}
    status, answer = api("POST", "/api/instances", body)
    assert status == 400, answer
    assert field in answer["error"]
    assert answer["field"] == field
    assert api.manager.kernel.instances.launched == []
    assert api("GET", "/api/instances") == (200, [])


def test_restart_takes_options_and_refuses_wrong_ones(api: Api) -> None:
    instance_id = launched(api)["id"]
    url = f"/api/instances/{instance_id}/restart"
    assert api("POST", url, {"options": {"ctx_size": 2048}, "confirm_overcommit": True})[0] == 201
    for body, field in (
        ({"options": {"ctx_size": -1}}, "ctx_size"),
        ({"options": []}, "options"),
        ({"confirm_overcommit": "x"}, "confirm_overcommit"),
        ({"other": 1}, "other"),
    ):
        status, answer = api("POST", url, body)
        assert (status, answer["field"]) == (400, field)
    assert [call[0] for call in api.manager.kernel.instances.calls] == ["launch", "restart"]


def test_a_wrong_query_parameter_is_named(api: Api) -> None:
    instance_id = launched(api)["id"]
    status, body = api("DELETE", f"/api/instances/{instance_id}?force=maybe")
    assert status == 400
    assert "force" in body["error"]
    assert api("GET", f"/api/instances/{instance_id}")[1]["status"] == "healthy"


def test_the_log_is_its_last_100_lines_with_line_ends_kept_and_secrets_masked(api: Api) -> None:
    instance = launched(api)
    url = f"/api/instances/{instance['id']}/logs"
    assert api("GET", url) == (200, {"lines": []})
    lines = [f"line {number}\n" for number in range(250)]
    lines[-1] = "key llm-" + "A" * 43 + "\n"
    Path(instance["log_file"]).write_text("".join(lines))
    status, body = api("GET", url)
    assert status == 200
    assert body["lines"][:-1] == lines[150:-1]
    assert "A" * 43 not in body["lines"][-1]


# --- bodies, on every route that takes one -------------------------------------------------------------

WITH_BODY = [
    ("POST", "/api/instances"),
    ("POST", "/api/api-keys"),
    ("POST", "/api/settings"),
    ("PUT", "/api/presets{model}"),
    ("PATCH", "/api/presets{model}"),
    ("POST", "/api/models/rescan"),
    ("POST", "/api/instances/some-id/restart"),
]
BAD_BODIES = {
    "not JSON": b"{",
    "not an object": b"[1]",
    "null": b"null",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"ctx_size": Infinity}',
    "huge number": b'{"a": 1e999}',
    "huge integer": b'{"a": ' + b"1" * 5000 + b"}",
    "deep": b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff"}',
    "half a pair": b'{"a": "\\ud800"}',
    "unknown field": b'{"no_such_field": 1}',
}


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_bad_body_is_a_400_as_json_and_changes_nothing(api: Api, method: str, path: str) -> None:
    path = path.format(model=api.manager.model)
    before = json.dumps([api("GET", url) for url in ("/api/settings", "/api/presets", "/api/instances")])
    keys = len(api.manager.kernel.keys.list())
    for name, body in BAD_BODIES.items():
        status, answer = api.raw(method, path, body)
        assert status == 400, (name, answer)
        assert isinstance(answer["error"], str), name
    assert "no_such_field" in api.raw(method, path, BAD_BODIES["unknown field"])[1]["error"]
    assert (
        json.dumps([api("GET", url) for url in ("/api/settings", "/api/presets", "/api/instances")]) == before
    )
    assert len(api.manager.kernel.keys.list()) == keys


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_another_content_type_is_a_415(api: Api, method: str, path: str) -> None:
    path = path.format(model=api.manager.model)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        status, answer = api.raw(method, path, b'{"name": "x"}', kind)
        assert status == 415, kind
        assert "application/json" in answer["error"]
    headers = {**JSON, "Content-Encoding": "gzip"}
    assert api.manager.raw(method, path, b"\x1f\x8b", headers, api.key)[0] == 415


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_a_body_over_one_mebibyte_is_a_413(api: Api, method: str, path: str) -> None:
    path = path.format(model=api.manager.model)
    status, answer = api.raw(method, path, b'{"a": "' + b"x" * (1 << 20) + b'"}')
    assert status == 413
    assert "1048576" in answer["error"]


def test_a_chunked_body_over_one_mebibyte_is_a_413(api: Api) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", api.manager.port, timeout=20)
    headers = {**JSON, "Authorization": f"Bearer {api.key}"}
    try:
        connection.request("POST", "/api/settings", body=pieces(), headers=headers, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused while we were still sending, which is as good
    assert connection.getresponse().status == 413
    connection.close()


def test_a_stranger_is_refused_before_the_body_is_read(api: Api) -> None:
    connection, answer = api.manager.open("POST", "/api/instances", None, {"Content-Length": "500000"})
    assert answer.status == 401
    connection.close()


# --- models and presets --------------------------------------------------------------------------------


def test_models_have_the_fields_that_clients_know(api: Api) -> None:
    (model,) = api("GET", "/api/models")[1]
    assert {"name", "path", "type", "quant", "size_bytes", "size_display"} <= set(model)
    assert (model["name"], model["path"], model["type"]) == ("tiny-q8_0", str(api.manager.model), "gguf")
    assert model["size_bytes"] == api.manager.model.stat().st_size


def test_a_model_copied_there_a_moment_ago_can_be_launched(api: Api) -> None:
    other = api.manager.model.with_name("Other.gguf")
    other.write_bytes(api.manager.model.read_bytes())
    assert api("POST", "/api/instances", {"model_path": str(other)})[0] == 201


def test_a_model_that_cannot_run_is_refused_with_the_reason(api: Api) -> None:
    broken = api.manager.model.with_name("broken.gguf")
    broken.write_bytes(b"GGUF but not really")
    status, body = api("POST", "/api/instances", {"model_path": str(broken)})
    assert status == 400
    assert "broken" in body["error"]
    assert api.manager.kernel.instances.launched == []


def test_a_rescan_finds_new_files(api: Api) -> None:
    other = api.manager.model.with_name("Other.gguf")
    other.write_bytes(api.manager.model.read_bytes())
    assert sorted(model["name"] for model in api("POST", "/api/models/rescan")[1]) == ["other", "tiny-q8_0"]


def test_a_preset_is_saved_read_changed_and_deleted(api: Api) -> None:
    url = api.preset_url
    assert api("GET", url) == (404, {"error": "No preset for this model"})
    assert api("PATCH", url, {"favorite": True})[0] == 404
    assert api("PUT", url, {"ctx_size": 8192, "note": "mine"}) == (200, {"status": "saved"})
    assert api("PATCH", url, {"favorite": True}) == (200, {"status": "saved"})
    assert api("PUT", url, {"ctx_size": 2048, "parallel": 2}) == (200, {"status": "saved"})
    preset = api("GET", url)[1]
    assert preset["ctx_size"] == 2048
    assert preset["note"] == "mine"
    assert preset["favorite"] is True
    assert api("PATCH", url, {"aliases": ["GPT-4o", "hf.co/me/tiny:Q8_0"]}) == (200, {"status": "saved"})
    assert api("PUT", url, {"ctx_size": 2048, "parallel": 2}) == (200, {"status": "saved"})
    preset = api("GET", url)[1]
    assert preset["aliases"] == api("GET", "/api/models")[1][0]["aliases"] == ["GPT-4o", "hf.co/me/tiny:Q8_0"]
    assert api("GET", "/api/presets") == (200, {str(api.manager.model): preset})
    assert api("DELETE", url) == (200, {"status": "deleted"})
    assert api("DELETE", url) == (200, {"status": "deleted"})
    assert api("GET", "/api/presets") == (200, {})


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("ctx_size", {"ctx_size": "x"}),
        ("idle_timeout_min", {"idle_timeout_min": "x"}),
        ("favorite", {"favorite": "yes"}),
        ("note", {"note": 5}),
        ("note", {"note": "x" * 4097}),
        ("aliases", {"aliases": "gpt"}),
        ("aliases", {"aliases": ["x"] * 33}),
        ("aliases", {"aliases": ["Tiny-q8_0"]}),
        ("model_path", {"model_path": "/x"}),
    ],
)
def test_a_wrong_preset_is_refused_and_the_saved_one_stays(
    api: Api, field: str, body: dict[str, Any]
) -> None:
    api("PUT", api.preset_url, {"ctx_size": 8192})
    before = api("GET", api.preset_url)
    status, answer = api("PUT", api.preset_url, body)
    assert status == 400
    assert answer["field"] == field
    assert api("GET", api.preset_url) == before


def test_a_preset_for_a_file_that_is_no_model_is_refused(api: Api) -> None:
    status, answer = api("PUT", "/api/presets/etc/passwd", {"ctx_size": 1})
    assert status == 400
    assert "model_path" in answer["error"]
    assert api("GET", "/api/presets") == (200, {})


# --- keys ----------------------------------------------------------------------------------------------


def test_a_key_is_shown_once(api: Api) -> None:
    status, made = api(
        "POST", "/api/api-keys", {"name": "webui", "scope": "inference", "models": ["tiny-q8_0"]}
    )
    assert status == 201
    assert {"id", "name", "key"} <= set(made)
    assert made["key"].startswith("llm-")
    listed = next(item for item in api("GET", "/api/api-keys")[1] if item["id"] == made["id"])
    assert {"id", "name", "prefix", "created_at"} <= set(listed)
    assert listed["prefix"] == made["key"][:8] + "..."
    assert listed["models"] == ["tiny-q8_0"]
    assert made["key"] not in json.dumps(api("GET", "/api/api-keys"))
    assert "sha256" not in listed
    assert "digest" not in listed


def test_a_key_without_name_and_scope_is_untitled_and_manages(api: Api) -> None:
    made = api("POST", "/api/api-keys", {})[1]
    assert (made["name"], made["scope"], made["models"], made["expires_at"]) == (
        "Untitled",
        "manage",
        None,
        None,
    )


def test_a_revoked_key_is_refused_with_the_next_request(api: Api) -> None:
    made = api("POST", "/api/api-keys", {"scope": "view"})[1]
    assert api.manager.call("GET", "/api/instances", key=made["key"])[0] == 200
    assert api("DELETE", f"/api/api-keys/{made['id']}") == (200, {"ok": True})
    assert api.manager.call("GET", "/api/instances", key=made["key"]) == (401, {"error": "Invalid API key"})
    assert api("DELETE", f"/api/api-keys/{made['id']}")[0] == 404


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("name", {"name": 5}),
        ("name", {"name": "x" * 200}),
        ("scope", {"scope": "root"}),
        ("scope", {"scope": 1}),
        ("models", {"models": "tiny"}),
        ("models", {"models": [1]}),
        ("expires", {"expires": "soon"}),
        ("expires", {"expires": 5}),
    ],
)
def test_a_wrong_key_field_is_named_and_no_key_is_made(api: Api, field: str, body: dict[str, Any]) -> None:
    before = api("GET", "/api/api-keys")[1]
    status, answer = api("POST", "/api/api-keys", body)
    assert (status, answer["field"]) == (400, field)
    after = api("GET", "/api/api-keys")[1]
    assert [key["id"] for key in after] == [key["id"] for key in before]


def test_keys_made_over_rest_cannot_exceed_their_maker(api: Api) -> None:
    by = Identity("local", "test", Scope.ADMIN)
    _, limited = api.manager.kernel.keys.create("limited", Scope.ADMIN, ["tiny-q8_0"], by=by)
    status, body = api.manager.call("POST", "/api/api-keys", {"scope": "view"}, limited)
    assert status == 403
    assert "tiny-q8_0" in body["error"]


# --- settings, plugins, routes, events -----------------------------------------------------------------


def test_the_documented_settings_body_succeeds_verbatim(api: Api) -> None:
    status, body = api("POST", "/api/settings", SPEC_SETTINGS)
    assert status == 200, body
    assert body["ok"] is True
    assert body["settings"]["cleanup"]["downloads_enabled"] is True
    assert body["settings"] == api("GET", "/api/settings")[1]


def test_settings_merge_and_take_effect_at_once(api: Api) -> None:
    api("POST", "/api/settings", {"cleanup": {"downloads_max_age_hours": 5}})
    settings = api("GET", "/api/settings")[1]
    assert settings["cleanup"]["downloads_max_age_hours"] == 5
    assert settings["require_auth"] is True


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("_schema_version", {"_schema_version": 9}),
        ("cleanup.nonsense", {"cleanup": {"nonsense": 1}}),
        ("require_auth", {"require_auth": "no"}),
        ("cleanup", {"cleanup": 5}),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_changes(api: Api, name: str, body: dict[str, Any]) -> None:
    before = api("GET", "/api/settings")
    status, answer = api("POST", "/api/settings", {**body, "retry_count_per_failed_download": 7})
    assert status == 400
    assert name in answer["error"]
    assert api("GET", "/api/settings") == before


def test_plugins_are_listed_with_state_and_reason(api: Api) -> None:
    record = PluginRecord("gpu_x", "llamaman-gpu-x", "0.1.0", "broken", "No module named 'x'", ("gpu_probe",))
    api.manager.kernel.plugins = (record,)
    (shown,) = api("GET", "/api/plugins")[1]
    assert shown == {
        "name": "gpu_x",
        "distribution": "llamaman-gpu-x",
        "version": "0.1.0",
        "state": "broken",
        "reason": "No module named 'x'",
        "hooks": ["gpu_probe"],
    }


def test_the_route_table_has_method_path_surface_level_and_plugin(api: Api) -> None:
    table = api("GET", "/api/routes")[1]
    row = next(row for row in table if row["path"] == "/api/api-keys" and row["method"] == "POST")
    assert row == {
        "method": "POST",
        "path": "/api/api-keys",
        "surface": "manage",
        "level": "admin",
        "plugin": "llamaman",
    }


def test_a_route_that_the_loop_serves_too_is_listed_once(api: Api) -> None:
    from llamaman.dashboard.app import create_app
    from llamaman.gateway.caller import HEADER, Caller, new_secret, seal

    row = {"method": "GET", "path": "/api/version", "surface": "manage", "level": "public", "plugin": "loop"}
    secret = new_secret()
    app = create_app(api.manager.kernel, secret, loop_routes=lambda: [row])
    header = seal(Caller(Identity("local", "x", Scope.ADMIN), "admin"), secret).decode()
    table = app.test_client().get("/api/routes", headers={HEADER: header}).json
    assert [each for each in table if each["path"] == "/api/version"] == [row]


def test_events_of_instances_are_for_viewers_and_others_for_admins(api: Api) -> None:
    events = api.manager.kernel.events
    first = events.publish("instances", "ready", {"instance_id": "a"}, actor="key:x", reason="loaded")
    events.publish("instances", "ready", {"instance_id": "b"}, actor="key:x", reason="loaded")
    assert [event["data"]["instance_id"] for event in api("GET", "/api/events")[1]] == ["a", "b"]
    (only,) = api("GET", "/api/events?instance=b")[1]
    assert (only["kind"], only["actor"], only["reason"]) == ("ready", "key:x", "loaded")
    assert len(api("GET", f"/api/events?since={first.id}")[1]) == 1
    assert api("GET", "/api/events?since=x")[0] == 400
    assert [event["kind"] for event in api("GET", "/api/events?topic=keys")[1]] == ["created"]
    viewer = api.manager.key(Scope.VIEW)
    assert api.manager.call("GET", "/api/events?topic=keys", key=viewer)[0] == 400
    assert api.manager.call("GET", "/api/events", key=viewer)[0] == 200


def test_versions_and_system_information(api: Api) -> None:
    assert set(api("GET", "/api/version")[1]) == {"version"}
    assert api("GET", "/api/llamaman/version")[1]["node"] == "testnode"
    info = api("GET", "/api/system-info")[1]
    assert set(info) == {
        "cpu_percent", "cpu_cores", "ram_total_mb", "ram_used_mb", "ram_free_mb", "ram_percent",
    }  # fmt: skip
    assert info["cpu_cores"] >= 1
    assert info["ram_total_mb"] > 0


def test_health_says_only_that() -> None:
    from llamaman.dashboard.shapes import health

    assert health() == {"status": "ok"}
