"""``/api/openapi.json``: the description of the whole API, for people's tools and for generated clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import ANY_OBJECT
from llamaman.dashboard.operation import operation
from llamaman.records import RouteSet


def routes(document: Callable[[], dict[str, Any]]) -> RouteSet:
    """The blueprint.

    :param document: makes the document; see :func:`llamaman.dashboard.openapi.document`.
    """
    blueprint = Blueprint("openapi", __name__)

    @blueprint.get("/api/openapi.json")
    @access(Access.VIEW)
    @operation("Describe the API as OpenAPI 3.1.", answers={200: ("The document.", ANY_OBJECT)})
    def api_document() -> Response:
        return jsonify(document())

    return RouteSet(blueprint)
