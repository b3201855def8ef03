"""What this manager is and does: plugins, routes, events, versions, system load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, request

from llamaman.access import Access, access
from llamaman.core.auth import allows
from llamaman.core.events import VIEW_TOPICS
from llamaman.dashboard.answer_schemas import EVENT, PLUGIN, ROUTE, SYSTEM, TEXT, TIME, list_of, record
from llamaman.dashboard.bodies import Check, text
from llamaman.dashboard.http import identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import plugin_object
from llamaman.dashboard.system import SystemMeter
from llamaman.errors import InvalidField
from llamaman.limits import EVENTS_SHOWN
from llamaman.records import RouteSet
from llamaman.version import __version__

#: What `/api/version` answers: clients of Ollama's API compare it with the features they need.
OLLAMA_VERSION = "0.32.0"

INSTANCE_TOPIC = "instances"


def _event_id(name: str, value: Any) -> int:
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal() or len(value) > 18:
        raise InvalidField(name, f"{name} must be the id of an event, a whole number")
    return int(value)


_QUERY_OF_EVENTS = {
    "topic": text(64),
    "since": Check(_event_id, {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}),
    "instance": text(64),
}


def _asked(name: str, default: str | None) -> Any:
    value = request.args.get(name, default)
    return None if value is None else _QUERY_OF_EVENTS[name](name, value)


def routes(kernel: Services, all_routes: Callable[[], Sequence[dict[str, str]]]) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("about", __name__)
    meter = SystemMeter()

    @blueprint.get("/api/version")
    @access(Access.PUBLIC)
    @operation(
        "Answer clients of Ollama's API that look for features.",
        answers={200: ("The version of Ollama's API that is spoken.", record(version=TEXT))},
    )
    def api_version() -> Response:
        return jsonify({"version": OLLAMA_VERSION})

    @blueprint.get("/api/llamaman/version")
    @access(Access.VIEW)
    @operation(
        "Show LlamaMan's version.",
        answers={200: ("Version and node.", record(version=TEXT, node=TEXT, started_at=TIME))},
    )
    def llamaman_version() -> Response:
        facts = {"version": __version__, "node": kernel.config.node_name, "started_at": kernel.started_at}
        return jsonify(facts)

    @blueprint.get("/api/system-info")
    @access(Access.VIEW)
    @operation("Show the load of this machine.", answers={200: ("What can be read.", SYSTEM)})
    def system_info() -> Response:
        return jsonify(meter.read())

    @blueprint.get("/api/plugins")
    @access(Access.ADMIN)
    @operation("List the plugins.", answers={200: ("All installed ones.", list_of(PLUGIN))})
    def list_plugins() -> Response:
        return jsonify([plugin_object(record) for record in kernel.plugins])

    @blueprint.get("/api/routes")
    @access(Access.MANAGE)
    @operation("List every route.", answers={200: ("All surfaces' routes.", list_of(ROUTE))})
    def list_routes() -> Response:
        return jsonify(list(all_routes()))

    @blueprint.get("/api/events")
    @access(Access.VIEW)
    @operation(
        "List what happened, oldest first.",
        query=_QUERY_OF_EVENTS,
        answers={200: (f"The newest {EVENTS_SHOWN} of them.", list_of(EVENT))},
    )
    def list_events() -> Response:
        topic, since = _asked("topic", INSTANCE_TOPIC), _asked("since", "0")
        instance = _asked("instance", None)
        if topic not in VIEW_TOPICS and not allows(identity(), Access.ADMIN):
            raise InvalidField("topic", f"topic must be one of {', '.join(sorted(VIEW_TOPICS))}")
        events = [event.as_dict() for event in kernel.events.since(topic, since)]
        if instance is not None:
            events = [event for event in events if event["data"].get("instance_id") == instance]
        return jsonify(events[-EVENTS_SHOWN:])

    return RouteSet(blueprint)
