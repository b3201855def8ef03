"""``/api/requests``: what is being answered now, and ending it. Figures alone: no prompt, no answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import (
    COUNT,
    DONE,
    FLAG,
    NUMBER,
    TEXT,
    TIME,
    list_of,
    maybe,
    record,
    words,
)
from llamaman.dashboard.http import identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.gateway.in_flight import Progress
from llamaman.records import RouteSet

REQUEST = record(
    "Request",
    id=TEXT,
    surface=TEXT,
    dialect=TEXT,
    path=TEXT,
    model=maybe(TEXT),
    instance_id=maybe(TEXT),
    actor=TEXT,
    key_id=maybe(TEXT),
    session=maybe(TEXT),
    address=maybe(TEXT),
    stream=FLAG,
    phase=words(*get_args(Progress)),
    started_at=TIME,
    seconds=NUMBER,
    prompt_tokens=maybe(COUNT),
    completion_tokens=maybe(COUNT),
)


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("requests", __name__)

    @blueprint.get("/api/requests")
    @access(Access.MANAGE)
    @operation(
        "List the inference requests that are being answered or wait.",
        answers={200: ("All of them, oldest first.", list_of(REQUEST))},
    )
    def list_requests() -> Response:
        return jsonify([asdict(view) for view in kernel.requests.views()])

    @blueprint.delete("/api/requests/<id>")
    @access(Access.MANAGE)
    @operation("End a request; its client is told by whom.", answers={200: ("Done.", DONE)})
    def cancel_request(id: str) -> Response:
        kernel.requests.cancel(id, identity().actor)
        return jsonify({"ok": True})

    return RouteSet(blueprint)
