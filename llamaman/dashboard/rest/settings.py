"""``/api/settings``: MANAGE reads, ADMIN writes. Types, ranges and names are the settings' own rules."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import DONE, SETTING, list_of, record
from llamaman.dashboard.http import identity, json_body
from llamaman.dashboard.input_schemas import setting_fields, settings_schema
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import plain
from llamaman.dashboard.sudo import require_for_settings
from llamaman.records import RouteSet


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("settings", __name__)
    rows = kernel.settings.describe()
    whole = {"title": "Settings", **settings_schema(rows, complete=True)}

    @blueprint.get("/api/settings")
    @access(Access.MANAGE)
    @operation("Show the settings.", answers={200: ("All settings, secrets masked.", whole)})
    def get_settings() -> Response:
        return jsonify(plain(kernel.settings.all()))

    @blueprint.post("/api/settings")
    @access(Access.ADMIN)
    @operation(
        "Change settings, all of those given or none.",
        fields=setting_fields(rows),
        answers={200: ("All settings.", record(ok=DONE["properties"]["ok"], settings=whole))},
    )
    def save_settings() -> Response:
        patch = json_body()
        require_for_settings(kernel, identity(), patch)
        kernel.settings.update(patch, identity().actor)
        return jsonify({"ok": True, "settings": plain(kernel.settings.all())})

    @blueprint.get("/api/settings/describe")
    @access(Access.MANAGE)
    @operation(
        "Describe each setting: its type, range, choices, owner, and where its value comes from.",
        answers={200: ("One row per setting, secrets masked.", list_of(SETTING))},
    )
    def describe_settings() -> Response:
        return jsonify(plain(kernel.settings.describe()))

    return RouteSet(blueprint)
