"""``/api/api-keys``: ADMIN only. The answer that creates a key is the one place where it is shown."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, Scope, access
from llamaman.core.key_record import DEFAULT_NAME
from llamaman.dashboard.answer_schemas import DONE, KEY, NEW_KEY, list_of
from llamaman.dashboard.bodies import Check, nullable, one_of, text, texts
from llamaman.dashboard.http import fields, identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import key_object
from llamaman.dashboard.sudo import require_for_key
from llamaman.limits import KEY_MODELS, NAME
from llamaman.records import RouteSet

_FIELDS: dict[str, Check] = {
    "name": text(NAME),
    "scope": nullable(one_of(*(scope.value for scope in Scope))),
    "models": nullable(texts(KEY_MODELS, NAME)),
    "expires": nullable(Check(text(64).run, {**text(64).schema, "format": "date-time"})),
}
_ID = {"id": {"type": "string", "pattern": "^[0-9a-f]{16}$"}}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("keys", __name__)

    @blueprint.get("/api/api-keys")
    @access(Access.ADMIN)
    @operation("List the API keys.", answers={200: ("All keys, without the keys.", list_of(KEY))})
    def list_keys() -> Response:
        keys = kernel.keys
        return jsonify([key_object(record, keys.last_used(record.id)) for record in keys.list()])

    @blueprint.post("/api/api-keys")
    @access(Access.ADMIN)
    @operation(
        "Make an API key.",
        fields=_FIELDS,
        answers={201: ("The key; it is shown this once.", NEW_KEY)},
    )
    def create_key() -> tuple[Response, int]:
        given = fields(_FIELDS)
        require_for_key(kernel, identity(), given.get("scope"))
        record, key = kernel.keys.create(
            given.get("name", DEFAULT_NAME),
            given.get("scope"),
            given.get("models"),
            given.get("expires"),
            by=identity(),
        )
        return jsonify({**key_object(record), "key": key}), 201

    @blueprint.delete("/api/api-keys/<id>")
    @access(Access.ADMIN)
    @operation("Revoke an API key.", path=_ID, answers={200: ("It is refused from now on.", DONE)})
    def revoke_key(id: str) -> Response:
        kernel.keys.revoke(id, by=identity())
        return jsonify({"ok": True})

    return RouteSet(blueprint)
