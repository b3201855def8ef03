"""What this manager is and does: plugins, routes, events, versions, system load."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flask import Blueprint, Response, jsonify, request

from llamaman.access import Access, access
from llamaman.core.auth import allows
from llamaman.dashboard.http import identity
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import plugin_object
from llamaman.dashboard.system import SystemMeter
from llamaman.errors import InvalidField
from llamaman.records import RouteSet
from llamaman.version import __version__

#: What `/api/version` answers: clients of Ollama's API compare it with the features they need.
OLLAMA_VERSION = "0.32.0"

#: Topics that VIEW may read; every other topic is ADMIN's.
VIEW_TOPICS = frozenset({"instances", "models", "presets"})
INSTANCE_TOPIC = "instances"
MAX_EVENTS = 500


def routes(kernel: Services, all_routes: Callable[[], Sequence[dict[str, str]]]) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("about", __name__)
    meter = SystemMeter()

    @blueprint.get("/api/version")
    @access(Access.PUBLIC)
    def api_version() -> Response:
        return jsonify({"version": OLLAMA_VERSION})

    @blueprint.get("/api/llamaman/version")
    @access(Access.VIEW)
    def llamaman_version() -> Response:
        facts = {"version": __version__, "node": kernel.config.node_name, "started_at": kernel.started_at}
        return jsonify(facts)

    @blueprint.get("/api/system-info")
    @access(Access.VIEW)
    def system_info() -> Response:
        return jsonify(meter.read())

    @blueprint.get("/api/plugins")
    @access(Access.ADMIN)
    def list_plugins() -> Response:
        return jsonify([plugin_object(record) for record in kernel.plugins])

    @blueprint.get("/api/routes")
    @access(Access.MANAGE)
    def list_routes() -> Response:
        return jsonify(list(all_routes()))

    @blueprint.get("/api/events")
    @access(Access.VIEW)
    def list_events() -> Response:
        topic = request.args.get("topic", INSTANCE_TOPIC)
        if topic not in VIEW_TOPICS and not allows(identity(), Access.ADMIN):
            raise InvalidField("topic", f"topic must be one of {', '.join(sorted(VIEW_TOPICS))}")
        events = [event.as_dict() for event in kernel.events.since(topic, _since())]
        instance = request.args.get("instance")
        if instance is not None:
            events = [event for event in events if event["data"].get("instance_id") == instance]
        return jsonify(events[-MAX_EVENTS:])

    return RouteSet(blueprint)


def _since() -> int:
    text = request.args.get("since", "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidField("since", "since must be the id of an event, a whole number")
    return int(text)
