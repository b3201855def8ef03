"""``/api/presets``: saved launch options, one set per model file.

The URL names the model by its path without the leading slash. A preset holds launch options, ``favorite``, ``note``
and ``aliases``; PUT replaces the options and keeps the other three unless it names them, PATCH changes only those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import PRESET, PRESETS, status
from llamaman.dashboard.bodies import Check, boolean, text, texts
from llamaman.dashboard.http import fields, identity, json_body
from llamaman.dashboard.input_schemas import OPTION_FIELDS
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import plain
from llamaman.errors import InvalidField, NotFound
from llamaman.limits import ALIASES, NAME
from llamaman.records import RouteSet

NOTE_LENGTH = 4096
_KEPT: dict[str, Check] = {
    "favorite": boolean,
    "note": text(NOTE_LENGTH),
    "aliases": texts(ALIASES, NAME),
}
_ONE = "/api/presets/<path:model_path>"
_PATH = {
    "model_path": {
        "type": "string",
        "minLength": 1,
        "description": "Path of the model's file without the first slash.",
    }
}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("presets", __name__)

    @blueprint.get("/api/presets")
    @access(Access.VIEW)
    @operation("List the presets.", answers={200: ("By model path.", PRESETS)})
    def list_presets() -> Response:
        return jsonify({str(path): plain(preset) for path, preset in kernel.library.presets().items()})

    @blueprint.get(_ONE)
    @access(Access.VIEW)
    @operation("Show a model's preset.", path=_PATH, answers={200: ("The preset.", PRESET)})
    def get_preset(model_path: str) -> Response:
        return jsonify(plain(_existing(kernel, model_path)))

    @blueprint.put(_ONE)
    @access(Access.MANAGE)
    @operation(
        "Save a model's launch options.",
        path=_PATH,
        fields={**OPTION_FIELDS, **_KEPT},
        answers={200: ("It is saved.", status("saved"))},
    )
    def put_preset(model_path: str) -> Response:
        body = json_body()
        path = _known(kernel, model_path)
        before = kernel.library.preset(path) or {}
        kept = {name: before[name] for name in _KEPT if name in before}
        kernel.library.put_preset(path, kept | body, identity().actor)
        return jsonify({"status": "saved"})

    @blueprint.patch(_ONE)
    @access(Access.MANAGE)
    @operation(
        "Change a preset's note or aliases, or whether it is a favourite.",
        path=_PATH,
        fields=_KEPT,
        answers={200: ("It is saved.", status("saved"))},
    )
    def patch_preset(model_path: str) -> Response:
        changes = fields(_KEPT)
        before = _existing(kernel, model_path)
        kernel.library.put_preset(_path(model_path), {**before, **changes}, identity().actor, options=False)
        return jsonify({"status": "saved"})

    @blueprint.delete(_ONE)
    @access(Access.MANAGE)
    @operation(
        "Delete a model's preset.", path=_PATH, answers={200: ("There is none now.", status("deleted"))}
    )
    def delete_preset(model_path: str) -> Response:
        kernel.library.delete_preset(_path(model_path), identity().actor)
        return jsonify({"status": "deleted"})

    return RouteSet(blueprint)


def _path(model_path: str) -> Path:
    return Path("/", model_path)


def _known(kernel: Services, model_path: str) -> Path:
    """Only a scanned file gets a preset, so that a typo is an error and not a preset nobody uses."""
    try:
        return kernel.library.by_path(_path(model_path)).path
    except NotFound as error:
        raise InvalidField("model_path", f"model_path: {error.message}") from None


def _existing(kernel: Services, model_path: str) -> dict[str, Any]:
    preset = kernel.library.preset(_path(model_path))
    if preset is None:
        raise NotFound("No preset for this model")
    return dict(preset)
