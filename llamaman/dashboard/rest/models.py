"""``/api/models``: what is on disk."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.http import fields
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import model_object
from llamaman.records import RouteSet


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("models", __name__)

    @blueprint.get("/api/models")
    @access(Access.VIEW)
    def list_models() -> Response:
        return jsonify([model_object(model) for model in kernel.library.models()])

    @blueprint.post("/api/models/rescan")
    @access(Access.MANAGE)
    def rescan_models() -> Response:
        fields({}, optional=True)
        return jsonify([model_object(model) for model in kernel.library.rescan()])

    return RouteSet(blueprint)
