"""``/api/runtimes``: what can run models here, and what keeps it away from the rest of the machine."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.core.auth import allows
from llamaman.dashboard.http import identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.errors import LlamaManError
from llamaman.records import Engine, RouteSet
from llamaman.runtime import Runtime

_ENGINE = {
    "type": "object",
    "required": ["name", "kind", "build", "flags", "path"],
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["binary", "embedded", "image"]},
        "build": {"type": ["string", "null"]},
        "flags": {"type": ["integer", "null"], "description": "How many flags this build knows."},
        "path": {"type": ["string", "null"], "description": "Shown to callers who may manage."},
    },
}
_RUNTIMES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "engines", "missing_isolation", "problem", "notes"],
        "properties": {
            "name": {"type": "string"},
            "engines": {"type": "array", "items": _ENGINE},
            "missing_isolation": {"type": ["array", "null"], "items": {"type": "string"}},
            "problem": {"type": ["string", "null"]},
            "notes": {
                "type": ["array", "null"],
                "items": {"type": "string"},
                "description": "What an administrator should know, such as containers that only pretend to be "
                "LlamaMan's. Shown to callers who may manage.",
            },
        },
    },
}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("runtimes", __name__)

    @blueprint.get("/api/runtimes")
    @access(Access.VIEW)
    @operation("List the runtimes and their engines.", answers={200: ("The runtimes.", _RUNTIMES)})
    def list_runtimes() -> Response:
        detailed = allows(identity(), Access.MANAGE)
        return jsonify([_runtime(runtime, detailed) for runtime in kernel.runtimes.values()])

    return RouteSet(blueprint)


def _runtime(runtime: Runtime, detailed: bool) -> dict[str, Any]:
    engines: list[dict[str, Any]] = []
    problem = None
    try:
        engines = [_engine(engine, detailed) for engine in runtime.engines()]
    except LlamaManError as error:
        problem = error.message
    # A runtime of a plugin may not tell either.
    missing = getattr(runtime, "isolation", None)
    notes = getattr(runtime, "notes", None) if detailed else None
    return {
        "name": runtime.name,
        "engines": engines,
        "missing_isolation": list(missing()) if missing else None,
        "problem": problem,
        "notes": list(notes()) if notes else None,
    }


def _engine(engine: Engine, detailed: bool) -> dict[str, Any]:
    return {
        "name": engine.name,
        "kind": engine.kind,
        "build": engine.build,
        "flags": None if engine.flags is None else len(engine.flags),
        "path": engine.path if detailed else None,
    }
