"""``/api/models``: what is on disk."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import MODEL, list_of
from llamaman.dashboard.http import fields
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import model_object
from llamaman.records import RouteSet

_MODELS = ("The models.", list_of(MODEL))


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/api/models")
    @access(Access.VIEW)
    @operation("List the models on disk, as of the last scan.", answers={200: _MODELS})
    def list_models() -> Response:
        return jsonify([model_object(model) for model in kernel.library.models()])

    @blueprint.post("/api/models/rescan")
    @access(Access.MANAGE)
    @operation("Look for models on disk.", fields={}, optional=True, answers={200: _MODELS})
    def rescan_models() -> Response:
        fields({}, optional=True)
        return jsonify([model_object(model) for model in kernel.library.rescan()])

    return RouteSet(blueprint)
