"""``/api/instances/container-stats``: what running models use of CPU and memory, as their runtime last measured."""

from __future__ import annotations

from typing import Any, Final

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import TEXT, JsonSchema, list_of, record
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.records import ResourceUse, RouteSet

_MIB = 1 << 20


def _amount(description: str) -> JsonSchema:
    return {"type": ["number", "null"], "minimum": 0, "description": description}


_STATS: Final = record(
    "ContainerStats",
    cpu_pct=_amount("Percent of one processor: 250 is two and a half, busy."),
    num_cpus=_amount("Processors it may use: its quota, else all of the machine."),
    mem_used_mb=_amount("MiB, without file cache that could be dropped."),
    mem_limit_mb=_amount("MiB it may use."),
    gpus={**list_of(TEXT), "description": "The GPUs it uses, as name and index."},
    cpu_quota=_amount("Processors it is limited to; null without a limit."),
)
_BY_ID: Final[JsonSchema] = {"type": "object", "additionalProperties": _STATS}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("container_stats", __name__)

    @blueprint.get("/api/instances/container-stats")
    @access(Access.VIEW)
    @operation(
        "Show what running instances use; null is what is not known (yet).",
        answers={200: ("Each running instance by its id.", _BY_ID)},
    )
    def container_stats() -> Response:
        return jsonify({id: _stats(use) for id, use in kernel.instances.usage().items()})

    return RouteSet(blueprint)


def _stats(use: ResourceUse) -> dict[str, Any]:
    return {
        "cpu_pct": None if use.cpu_percent is None else round(use.cpu_percent, 1),
        "num_cpus": _count(use.cpus),
        "mem_used_mb": _mib(use.memory_bytes),
        "mem_limit_mb": _mib(use.memory_limit),
        "gpus": [],
        "cpu_quota": _count(use.cpu_quota),
    }


def _count(cpus: float | None) -> float | int | None:
    """Whole processors as a whole number, as clients of older versions know it."""
    return int(cpus) if cpus is not None and cpus == int(cpus) else cpus


def _mib(size: int | None) -> float | None:
    return None if size is None else round(size / _MIB, 1)
