"""``/api/api-keys``: ADMIN only. The answer that creates a key is the one place where it is shown."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.core.key_record import DEFAULT_NAME, MAX_MODELS, MAX_NAME
from llamaman.dashboard.bodies import Check, nullable, text, texts
from llamaman.dashboard.http import fields, identity
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import key_object
from llamaman.records import RouteSet

_FIELDS: dict[str, Check] = {
    "name": text(MAX_NAME),
    "scope": nullable(text(16)),
    "models": nullable(texts(MAX_MODELS, MAX_NAME)),
    "expires": nullable(text(64)),
}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("keys", __name__)

    @blueprint.get("/api/api-keys")
    @access(Access.ADMIN)
    def list_keys() -> Response:
        keys = kernel.keys
        return jsonify([key_object(record, keys.last_used(record.id)) for record in keys.list()])

    @blueprint.post("/api/api-keys")
    @access(Access.ADMIN)
    def create_key() -> tuple[Response, int]:
        given = fields(_FIELDS)
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
    def revoke_key(id: str) -> Response:
        kernel.keys.revoke(id, by=identity())
        return jsonify({"ok": True})

    return RouteSet(blueprint)
