"""The OpenAPI 3.1 document of the API, made from the routes themselves. Pure; read by ``rest/openapi.py``.

A route is described as far as it describes itself: by its ``@operation``, and without one by its method, path,
level and owner. Nothing is listed by hand, so the document cannot forget a route or keep one that is gone.

Extensions: ``x-llamaman-level`` (the access level), ``x-llamaman-plugin`` (who serves it),
``x-llamaman-surfaces`` (which listeners), ``x-llamaman-sudo`` (a session must have confirmed its password),
``x-llamaman-rest`` (a path's value that may hold slashes; send them as ``%2F`` or as they are).
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llamaman.access import Access
from llamaman.dashboard.answer_schemas import ERROR
from llamaman.dashboard.operation import Operation
from llamaman.gateway.endpoints import UPSTREAM

JsonObject = dict[str, Any]
Place = tuple[str, str]

OPENAPI: Final = "3.1.0"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
PAGE: Final = "text/html"

#: Refusals of every route that Flask serves; 503 is Flask's start and a store that fails.
SHARED: Final[Mapping[int, str]] = {
    400: "The request, or one field of it, makes no sense.",
    401: "No credential, or one that is not known.",
    403: "This caller may not do this.",
    404: "There is no such thing.",
    413: "The body is too large.",
    415: "The body is not JSON in UTF-8.",
    421: "The Host is none of LlamaMan's names.",
    429: "Too many at a time; Retry-After says when to try again.",
    503: "It cannot be done now; Retry-After says when to try again.",
}
#: Refusals of changes: the thing's state, and a store that has no room.
OF_CHANGES: Final[Mapping[int, str]] = {
    409: "The state of the thing does not allow this now.",
    507: "The store takes no writes at present.",
}
#: How routes beside ``/api/`` refuse.
PAGE_REFUSAL: Final[Mapping[str, Any]] = {
    "description": "A refusal, as a page for browsers.",
    "content": {PAGE: {}, JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
}
DEFECT: Final = "A launch that failed, or a defect of LlamaMan: an id in the answer, its cause in the log."

WITHOUT_BODY: Final = frozenset({204, 302, 303, 304})

_PARAMETER: Final = re.compile(r"\{([A-Za-z_]\w*)(\.\.\.)?\}")
_SAFE: Final = frozenset({"get", "head"})
_API: Final = "/api/"


@dataclass(frozen=True, slots=True)
class Described:
    """A route that Flask serves: its unique name, and what its view says about itself."""

    name: str
    operation: Operation | None


def document(
    rows: Iterable[Mapping[str, str]],
    operations: Mapping[Place, Described],
    *,
    version: str,
    cookie: str = "llamaman",
) -> JsonObject:
    """The whole document as JSON.

    :param rows: the route table as ``/api/routes`` shows it; only what management's listener serves is described.
    :param operations: (method, path) of the rows -> what is known of those that Flask serves.
    :param version: of LlamaMan.
    :param cookie: name of the session's cookie.
    """
    components: JsonObject = {"Error": dict(ERROR)}
    paths: JsonObject = {}
    tags: set[str] = set()
    surfaces = _surfaces(rows)
    for row, where in surfaces:
        place = row["method"], row["path"]
        found = operations.get(place)
        operation = _flask(row, found) if found else _loop(row)
        operation["x-llamaman-surfaces"] = where
        tags.update(operation["tags"])
        path = _PARAMETER.sub(lambda match: f"{{{match[1]}}}", row["path"])
        paths.setdefault(path, {})[row["method"].lower()] = _lifted(operation, components)
    return {
        "openapi": OPENAPI,
        "jsonSchemaDialect": DIALECT,
        "info": {
            "title": "LlamaMan",
            "version": version,
            "summary": "Launches, watches and routes to llama.cpp servers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted(tags)],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": _responses(),
            "securitySchemes": _security_schemes(cookie),
        },
    }


def _surfaces(rows: Iterable[Mapping[str, str]]) -> list[tuple[Mapping[str, str], list[str]]]:
    """Each route of management's listener once, with every surface that has it."""
    found: dict[Place, tuple[Mapping[str, str], list[str]]] = {}
    for row in rows:
        place = row["method"], row["path"]
        found.setdefault(place, (row, []))[1].append(row["surface"])
    return [(row, where) for row, where in found.values() if "manage" in where]


def _flask(row: Mapping[str, str], described: Described) -> JsonObject:
    """A route that Flask serves."""
    known = described.operation
    method, is_page = row["method"].lower(), not row["path"].startswith(_API)
    result = _common(row, known.summary if known else f"{row['method']} {row['path']}")
    result["operationId"] = described.name
    parameters = _path_parameters(row["path"], known.path if known else {})
    for name, check in (known.query if known else {}).items():
        parameters.append({"name": name, "in": "query", "required": False, "schema": dict(check.schema)})
    if parameters:
        result["parameters"] = parameters
    if known is not None and known.fields is not None:
        result["requestBody"] = _body(known, FORM if is_page else JSON)
    elif known is None and method not in _SAFE | {"delete"}:
        result["requestBody"] = {"required": False, "content": {JSON: {"schema": {"type": "object"}}}}
    if known is not None and known.sudo:
        result["x-llamaman-sudo"] = True
    kind = (mimetypes.guess_type(row["path"])[0] or PAGE) if is_page else JSON
    if known is not None and known.media:
        result["responses"] = _answers(known, method, known.media, is_page=False)
    else:
        result["responses"] = _answers(known, method, kind, is_page=is_page)
    return result


def _loop(row: Mapping[str, str]) -> JsonObject:
    """A route that the event loop serves: inference in some client's API, a stream, or a fixed answer."""
    method, level = row["method"].lower(), row["level"]
    result = _common(row, f"{row['method']} {row['path']}")
    parameters = _path_parameters(row["path"], {})
    if parameters:
        result["parameters"] = parameters
    kind = JSON
    of_an_engine = row["path"].startswith(UPSTREAM)
    if level == Access.INFERENCE or of_an_engine:
        speaker = "llama-server's own API" if of_an_engine else f"the API that '{row['plugin']}' speaks"
        result["description"] = f"As {speaker} describes it."
        if method not in _SAFE:
            result["requestBody"] = {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}
    elif level != Access.PUBLIC:
        result["description"] = "An endless answer: it ends when the client leaves."
        kind = "text/event-stream"
    content: JsonObject = {kind: {}}
    if level == Access.INFERENCE:
        content["text/event-stream"] = {}
    elif of_an_engine:
        content["text/plain"] = {}  # its figures
    result["responses"] = {
        "200": {"description": "The answer.", "content": content},
        "default": {"description": "A refusal, as that API has them.", "content": {JSON: {}}},
    }
    return result


def _common(row: Mapping[str, str], summary: str) -> JsonObject:
    level = row["level"]
    result: JsonObject = {
        "summary": summary,
        "tags": [_tag(row["path"])],
        "x-llamaman-level": level,
        "x-llamaman-plugin": row["plugin"],
    }
    if level == Access.PUBLIC:
        result["security"] = []
    elif level == Access.INFERENCE:  # a session is for management; other people's pages may not infer with it
        result["security"] = [{"bearer": []}, {"key": []}]
    else:
        session: JsonObject = {"session": []}
        if row["method"].lower() not in _SAFE:
            session["csrf"] = []
        result["security"] = [{"bearer": []}, {"key": []}, session]
    return result


def _tag(path: str) -> str:
    parts = [part for part in path.split("/") if part]
    if len(parts) > 1 and parts[0] == "api":
        return parts[1]
    return parts[0] if parts else "pages"


def _path_parameters(path: str, known: Mapping[str, Mapping[str, Any]]) -> list[JsonObject]:
    parameters = []
    for name, rest in _PARAMETER.findall(path):
        schema = dict(known.get(name, {"type": "string", "minLength": 1}))
        parameter: JsonObject = {"name": name, "in": "path", "required": True, "schema": schema}
        if rest:
            parameter["x-llamaman-rest"] = True
        parameters.append(parameter)
    return parameters


def _body(operation: Operation, kind: str) -> JsonObject:
    fields = operation.fields or {}
    schema: JsonObject = {
        "type": "object",
        "properties": {name: dict(check.schema) for name, check in fields.items()},
        "additionalProperties": False,
    }
    if operation.required:
        schema["required"] = list(operation.required)
    return {"required": not operation.optional, "content": {kind: {"schema": schema}}}


def _answers(operation: Operation | None, method: str, kind: str, *, is_page: bool) -> JsonObject:
    """Successes as declared, and the refusals that every route has."""
    result: JsonObject = {}
    for status, (what, schema) in (operation.answers if operation else {200: ("Done.", None)}).items():
        answer: JsonObject = {"description": what}
        if status not in WITHOUT_BODY:
            answer["content"] = {kind: {} if schema is None else {"schema": schema}}
        result[str(status)] = answer
    refusals = {*SHARED, *(operation.refusals if operation else ())}
    if method not in _SAFE:
        refusals.update(OF_CHANGES)
    for status in sorted(refusals):
        result.setdefault(str(status), PAGE_REFUSAL if is_page else _refusal(status))
    result["5XX"] = {"$ref": "#/components/responses/Defect"}
    return result


def _refusal(status: int) -> JsonObject:
    if status in SHARED or status in OF_CHANGES:
        return {"$ref": f"#/components/responses/Refusal{status}"}
    return _error("A refusal.")


def _responses() -> JsonObject:
    known = {**SHARED, **OF_CHANGES}
    named = {f"Refusal{status}": _error(known[status]) for status in sorted(known)}
    return named | {"Defect": _error(DEFECT)}


def _error(what: str) -> JsonObject:
    return {"description": what, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}


def _security_schemes(cookie: str) -> JsonObject:
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
        "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "An API key."},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": cookie,
            "description": "What /login sets. Behind HTTPS its name begins with '__Host-'.",
        },
        "csrf": {
            "type": "apiKey",
            "in": "header",
            "name": "X-CSRF-Token",
            "description": "Beside a session, on everything but GET: csrf_token of GET /api/me.",
        },
    }


def _lifted(value: Any, components: JsonObject) -> Any:
    """A copy in which every schema with a title is a reference to the component of that name.

    Where two different ones have one title, as those of two plugins may, the later one stays in its place.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_lifted(item, components) for item in value]
    if not isinstance(value, Mapping):
        return value
    copy = {key: _lifted(item, components) for key, item in value.items()}
    title = value.get("title")
    if isinstance(title, str) and "type" in value and components.setdefault(title, copy) == copy:
        return {"$ref": f"#/components/schemas/{title}"}
    return copy
