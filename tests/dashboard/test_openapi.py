"""The description of the API is made from the routes, says the truth about answers, and forgets no option."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from flask import Blueprint, jsonify
from management_door import Manager, running_manager

from llamaman.access import Access, Scope, access
from llamaman.core.launch_options import OPTIONS
from llamaman.dashboard.app import app_routes, described
from llamaman.dashboard.bodies import integer
from llamaman.dashboard.openapi import Described, document
from llamaman.dashboard.operation import Operation, operation
from llamaman.records import RouteSet

Document = dict[str, Any]


@pytest.fixture(scope="module")
def doc(shared_manager: Manager) -> Document:
    status, answer = shared_manager.call("GET", "/api/openapi.json", key=shared_manager.key(Scope.VIEW))
    assert status == 200
    return dict(answer)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def body_schema(doc: Document, method: str, path: str) -> Document:
    content = doc["paths"][path][method]["requestBody"]["content"]
    return dict(content["application/json"]["schema"])


def conforms(doc: Document, schema: Document, answer: Any) -> None:
    jsonschema_rs.validator_for({**schema, "components": doc["components"]}).validate(answer)


# --- which routes ----------------------------------------------------------------------------------------


def test_every_route_that_flask_serves_is_described_with_its_level_and_owner(
    shared_manager: Manager, doc: Document
) -> None:
    assert shared_manager.server.app is not None
    rows = app_routes(shared_manager.server.app)
    assert len(rows) >= 25
    for row in rows:
        path = row["path"].replace("...}", "}")
        found = doc["paths"][path][row["method"].lower()]
        assert (found["x-llamaman-level"], found["x-llamaman-plugin"]) == (row["level"], row["plugin"])


def test_every_view_of_the_core_describes_itself(shared_manager: Manager) -> None:
    assert shared_manager.server.app is not None
    silent = [place for place, found in described(shared_manager.server.app).items() if not found.operation]
    assert silent == []


def test_the_document_is_whole(doc: Document) -> None:
    assert doc["openapi"] == "3.1.0"
    assert doc["servers"] == [{"url": "/"}]
    for reference in references(doc):
        place: Any = doc
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
    operations = [each for path in doc["paths"].values() for each in path.values()]
    names = [each["operationId"] for each in operations if "operationId" in each]
    assert len(names) == len(set(names))
    schemes = doc["components"]["securitySchemes"]
    assert set(schemes) == {"bearer", "key", "session", "csrf"}
    assert re.fullmatch("llamaman_[0-9a-f]{8}", schemes["session"]["name"])


def test_every_value_in_a_path_is_a_parameter(doc: Document) -> None:
    for path, operations in doc["paths"].items():
        wanted = {part[1:-1] for part in path.split("/") if part.startswith("{")}
        for each in operations.values():
            named = {item["name"] for item in each.get("parameters", ()) if item["in"] == "path"}
            assert named == wanted, path


def test_a_stranger_needs_no_credential_where_it_is_public_and_a_session_its_token_where_it_changes() -> None:
    rows = [
        {"method": method, "path": path, "level": level, "surface": "manage", "plugin": "llamaman"}
        for method, path, level in (
            ("GET", "/api/version", "public"),
            ("GET", "/api/models", "view"),
            ("POST", "/api/models/rescan", "manage"),
        )
    ]
    places = {(row["method"], row["path"]): Described(row["path"], None) for row in rows}
    paths = document(rows, places, version="1")["paths"]
    assert paths["/api/version"]["get"]["security"] == []
    assert paths["/api/models"]["get"]["security"][-1] == {"session": []}
    assert paths["/api/models/rescan"]["post"]["security"][-1] == {"session": [], "csrf": []}


def test_routes_of_the_loop_are_described_once_with_their_surfaces() -> None:
    rows = [
        {"method": method, "path": path, "level": level, "surface": surface, "plugin": plugin}
        for method, path, level, surface, plugin in (
            ("POST", "/v1/chat/completions", "inference", "manage", "api_openai"),
            ("POST", "/v1/chat/completions", "inference", "proxy", "api_openai"),
            ("GET", "/api/instances/{id}/logs/stream", "manage", "manage", "llamaman"),
            ("GET", "/health", "public", "manage", "llamaman"),
            ("GET", "/props", "inference", "instance", "llamaman"),
        )
    ]
    paths = document(rows, {}, version="1")["paths"]
    assert sorted(paths) == ["/api/instances/{id}/logs/stream", "/health", "/v1/chat/completions"]
    chat = paths["/v1/chat/completions"]["post"]
    assert chat["x-llamaman-surfaces"] == ["manage", "proxy"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"type": "object"}
    stream = paths["/api/instances/{id}/logs/stream"]["get"]
    assert list(stream["responses"]["200"]["content"]) == ["text/event-stream"]


def test_a_plugins_route_is_described_whether_it_says_something_or_not(tmp_path: Any) -> None:
    blueprint = Blueprint("weather", __name__)

    @blueprint.post("/api/weather/<place>")
    def silent(place: str) -> Any:
        return jsonify(place)

    @blueprint.put("/api/weather/<place>")
    @access(Access.ADMIN)
    @operation("Make it rain.", fields={"litres": integer(0, 9)}, required=("litres",), refusals=(418,))
    def told(place: str) -> Any:
        return jsonify(place)

    with running_manager(tmp_path, plugin_routes={"weather": [RouteSet(blueprint)]}) as manager:
        doc = manager.call("GET", "/api/openapi.json", key=manager.key(Scope.VIEW))[1]
    found = doc["paths"]["/api/weather/{place}"]
    assert {each["x-llamaman-plugin"] for each in found.values()} == {"weather"}
    assert found["post"]["x-llamaman-level"] == "manage"
    assert found["put"]["summary"] == "Make it rain."
    assert body_schema(doc, "put", "/api/weather/{place}") == {
        "type": "object",
        "properties": {"litres": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["litres"],
        "additionalProperties": False,
    }
    assert "418" in found["put"]["responses"]


def test_two_schemas_of_one_title_stay_apart() -> None:
    rows = [
        {"method": "GET", "path": f"/api/{name}", "level": "view", "surface": "manage", "plugin": name}
        for name in ("a", "b")
    ]
    schemas = {"a": {"title": "Thing", "type": "string"}, "b": {"title": "Thing", "type": "integer"}}
    places = {
        ("GET", f"/api/{name}"): Described(name, Operation(name, answers={200: ("It.", schema)}))
        for name, schema in schemas.items()
    }
    doc = document(rows, places, version="1")
    content = [doc["paths"][f"/api/{name}"]["get"]["responses"]["200"]["content"] for name in "ab"]
    assert content[0]["application/json"]["schema"] == {"$ref": "#/components/schemas/Thing"}
    assert content[1]["application/json"]["schema"] == schemas["b"]


# --- bodies ----------------------------------------------------------------------------------------------


def test_a_launch_body_has_every_launch_option_with_its_rule(doc: Document) -> None:
    for method, path in (("post", "/api/instances"), ("put", "/api/presets/{model_path}")):
        schema = body_schema(doc, method, path)
        assert schema["additionalProperties"] is False
        for option in OPTIONS:
            found = schema["properties"][option.name]
            assert found["description"] == option.help
            told = json.dumps(found)
            for rule in (option.minimum, option.maximum):
                assert rule is None or f"{rule}" in told, option.name
            assert all(f'"{choice}"' in told for choice in option.choices)
    restart = body_schema(doc, "post", "/api/instances/{id}/restart")["properties"]["options"]
    options = doc["components"]["schemas"][restart["$ref"].rpartition("/")[2]]
    assert set(options["properties"]) == {option.name for option in OPTIONS}


def test_the_schema_and_the_check_of_a_launch_option_agree_on_its_default_and_its_bounds(
    shared_manager: Manager, doc: Document
) -> None:
    from llamaman.core import launch

    schema = body_schema(doc, "put", "/api/presets/{model_path}")
    for option in OPTIONS:
        values = [option.default, option.minimum, option.maximum, *option.choices]
        bounds = [value for value in values if value is not None or option.nullable]
        for value in bounds if option.kind != "text" else [""]:
            checked = {option.name: value}
            conforms(doc, schema, checked)
            launch.validate(checked, partial=True)
        too_much = None if option.maximum is None or option.kind == "text" else option.maximum + 1
        if too_much is not None:
            with pytest.raises(jsonschema_rs.ValidationError):
                conforms(doc, schema, {option.name: too_much})


def test_what_settings_answer_can_be_sent_back_as_described(shared_manager: Manager, doc: Document) -> None:
    key = shared_manager.key(Scope.ADMIN)
    settings = shared_manager.call("GET", "/api/settings", key=key)[1]
    conforms(doc, body_schema(doc, "post", "/api/settings"), settings)
    conforms(doc, body_schema(doc, "post", "/api/settings"), {"cleanup.instances_enabled": True})
    assert shared_manager.call("POST", "/api/settings", settings, key)[0] == 200


# --- answers ---------------------------------------------------------------------------------------------


#: What a route must be asked.
QUERIES = {"/api/why": "?target=tiny-q8_0"}


def test_real_answers_are_what_the_document_declares(manager: Manager) -> None:
    key = manager.key(Scope.ADMIN)
    doc = manager.call("GET", "/api/openapi.json", key=key)[1]
    model = str(manager.model)
    values: dict[str, str] = {"model_path": model.lstrip("/"), "name": "Ann"}
    asked: list[tuple[str, str, Any]] = [
        ("post", "/api/instances", {"model_path": model, "parallel": 2, "cache_type_k": None}),
        ("post", "/api/api-keys", {"name": "x", "expires": "2999-01-01T00:00:00Z", "models": ["a"]}),
        ("post", "/api/settings", {"cleanup": {"instances_enabled": True}}),
        ("put", "/api/presets/{model_path}", {"ctx_size": 1024, "note": "n", "aliases": ["a"]}),
        ("patch", "/api/presets/{model_path}", {"favorite": False}),
        ("post", "/api/models/rescan", None),
        ("post", "/api/users", {"name": "Ann", "password": "twelve horses run", "role": "viewer"}),
        ("patch", "/api/users/{name}", {"role": "manager"}),
    ]
    simple = [path for path, each in doc["paths"].items() if "get" in each and set(path) & set("{}") == set()]
    elsewhere = {
        "/api/me/sessions",  # a key has no sessions; test_me_rest.py looks at this one
        "/api/images",  # nothing here has images; test_images_rest.py looks at these
        "/api/images/pull-status",
    }
    asked += [("get", path, None) for path in simple if path.startswith("/api/") and path not in elsewhere]
    asked += [
        ("get", path, None)
        for path in (
            "/api/instances/{id}",
            "/api/instances/{id}/logs",
            "/api/presets/{model_path}",
        )
    ]
    asked += [
        ("delete", "/api/instances/{id}", None),
        ("get", "/api/instances/{id}", None),
        ("post", "/api/instances/{id}/restart", {"options": {"threads": 1}}),
        ("delete", "/api/instances/{id}", None),
        ("delete", "/api/instances/{id}/remove", None),
        ("delete", "/api/presets/{model_path}", None),
        ("delete", "/api/users/{name}", None),
    ]
    assert len(asked) > 25
    for method, path, body in asked:
        url = path
        for name, value in values.items():
            url = url.replace(f"{{{name}}}", value)
        status, answer = manager.call(method.upper(), url + QUERIES.get(path, ""), body, key)
        assert status // 100 == 2, (method, path, answer)
        if (method, path) == ("post", "/api/instances"):
            values["id"] = answer["id"]
        conforms(doc, declared(doc, method, path, status), answer)


def declared(doc: Document, method: str, path: str, status: int) -> Document:
    response = doc["paths"][path][method]["responses"][str(status)]
    if "$ref" in response:
        response = doc["components"]["responses"][response["$ref"].rpartition("/")[2]]
    schema = response["content"]["application/json"].get("schema")
    assert schema, f"{method} {path} does not say what its {status} holds"
    return dict(schema)


def test_refusals_are_what_the_document_declares(shared_manager: Manager, doc: Document) -> None:
    key = shared_manager.key(Scope.ADMIN)
    for method, path, body, wanted in (
        ("post", "/api/instances", {"ctx_size": -1}, 400),
        ("post", "/api/settings", {"no": 1}, 400),
        ("get", "/api/instances/{id}", None, 404),
        ("delete", "/api/api-keys/{id}", None, 404),
    ):
        status, answer = shared_manager.call(method.upper(), path.replace("{id}", "none"), body, key)
        assert status == wanted
        conforms(doc, declared(doc, method, path, status), answer)
    status, answer = shared_manager.call("GET", "/api/instances")
    assert status == 401
    conforms(doc, declared(doc, "get", "/api/instances", 401), answer)


# --- settings, described and refused ------------------------------------------------------------------------


def test_each_setting_is_described(shared_manager: Manager) -> None:
    status, rows = shared_manager.call("GET", "/api/settings/describe", key=shared_manager.key(Scope.MANAGE))
    assert status == 200
    row = next(row for row in rows if row["name"] == "recording_retention_days")
    assert (row["type"], row["default"], row["minimum"], row["maximum"]) == ("int", 30, 0, 36_500)
    assert (row["value"], row["source"], row["owner"], row["scope"]) == (30, "default", "llamaman", "shared")
    assert shared_manager.call("GET", "/api/settings/describe", key=shared_manager.key(Scope.VIEW))[0] == 403


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        (
            {"require_auth": False, "cleanup": {"downloads_max_age_hours": 0}},
            "cleanup.downloads_max_age_hours",
        ),
        ({"require_auth": False, "cleanup": {"sideways": 1}}, "cleanup.sideways"),
        ({"require_auth": False, "launch.allow_unlisted_args": 1}, "launch.allow_unlisted_args"),
        ({"require_auth": False, "launch": True}, "launch"),
        ({"require_auth": False, "recording_mode": "always"}, "recording_mode"),
        ({"require_auth": False, "no_such_setting": 1}, "no_such_setting"),
        ({"require_auth": False, "": 1}, ""),
    ],
)
def test_a_wrong_setting_is_named_and_none_of_the_body_is_kept(
    shared_manager: Manager, patch: dict[str, Any], field: str
) -> None:
    key = shared_manager.key(Scope.ADMIN)
    before = shared_manager.call("GET", "/api/settings", key=key)[1]
    status, answer = shared_manager.call("POST", "/api/settings", patch, key)
    assert status == 400
    assert answer["field"] == field
    assert field in answer["error"]
    assert shared_manager.call("GET", "/api/settings", key=key)[1] == before
