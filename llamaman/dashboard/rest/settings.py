"""``/api/settings``: MANAGE reads, ADMIN writes. Types, ranges and names are the settings' own rules."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.http import identity, json_body
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import plain
from llamaman.records import RouteSet


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("settings", __name__)

    @blueprint.get("/api/settings")
    @access(Access.MANAGE)
    def get_settings() -> Response:
        return jsonify(plain(kernel.settings.all()))

    @blueprint.post("/api/settings")
    @access(Access.ADMIN)
    def save_settings() -> Response:
        kernel.settings.update(json_body(), identity().actor)
        return jsonify({"ok": True, "settings": plain(kernel.settings.all())})

    return RouteSet(blueprint)
