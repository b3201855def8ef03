"""``/api/doctor``: the manager examines itself, with what only it knows. ADMIN, for it names paths and people."""

from __future__ import annotations

import threading
from typing import Final

from flask import Blueprint, Response, jsonify, request

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import FLAG, TEXT, list_of, maybe, record, words
from llamaman.dashboard.bodies import Check, one_of
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.doctor import Live, Person, diagnose, failed
from llamaman.errors import Conflict
from llamaman.records import RouteSet

_FINDING: Final = record(
    "Finding", check=TEXT, status=words("ok", "warn", "fail", "skip"), what=TEXT, cure=maybe(TEXT)
)
_REPORT: Final = record(
    "DoctorReport", source=words("manager"), node=TEXT, failed=FLAG, findings=list_of(_FINDING)
)
_SECURITY: Final[Check] = one_of("true", "false")


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("doctor", __name__)
    examining = (
        threading.Lock()
    )  # it costs processes and flushes: one at a time, and nobody waits in a thread

    @blueprint.get("/api/doctor")
    @access(Access.ADMIN)
    @operation(
        "Check the installation; takes some seconds, since engines are started and files flushed.",
        query={"security": _SECURITY},
        answers={200: ("What was found, each with its cure.", _REPORT)},
        refusals=(409,),
    )
    def examine() -> Response:
        security = _SECURITY("security", request.args.get("security", "false")) == "true"
        if not examining.acquire(blocking=False):
            raise Conflict("the manager is being examined already; ask again in some seconds", retry_after=5)
        try:
            findings = diagnose(kernel.config, live_facts(kernel), security=security)
        finally:
            examining.release()
        report = {
            "source": "manager",
            "node": kernel.config.node_name,
            "failed": failed(findings),
            "findings": [finding.as_dict() for finding in findings],
        }
        return jsonify(report)

    return RouteSet(blueprint)


def live_facts(kernel: Services) -> Live:
    """What the checks need of a running manager."""
    people = [
        Person(user.name, user.role.value, user.disabled, user.created, user.last_login)
        for user in kernel.accounts.users.list()
    ]
    views = kernel.instances.views()
    ports = (view.address.port for view in views if view.address is not None)
    containers = (view.container_id for view in views)
    return Live(
        started_at=kernel.started_at,
        require_auth=bool(kernel.settings.get("require_auth")),
        unlisted_args=bool(kernel.settings.get("launch.allow_unlisted_args")),
        people=people,
        keys=kernel.keys.list(),
        engine_ports=frozenset(port for port in ports if port is not None),
        containers=frozenset(id for id in containers if id is not None),
        install=kernel.accounts.install_id,
    )
