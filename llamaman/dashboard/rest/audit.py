"""``/api/audit``: who did what, newest first. ADMIN reads; nobody changes it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from llamaman.access import Access, access
from llamaman.dashboard.answer_schemas import ANY_OBJECT, TEXT, TIME, WHOLE, list_of, maybe, record, words
from llamaman.dashboard.bodies import Check, one_of, text
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.errors import InvalidField, LlamaManError
from llamaman.limits import AUDIT_SHOWN
from llamaman.records import RouteSet

_DEFAULT = 100
_HIGHEST_ID = 10**18 - 1


def _whole(lowest: int, highest: int) -> Check:
    """A whole number in a query."""

    def check(name: str, value: Any) -> int:
        is_number = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 18
        if not is_number or not lowest <= int(value) <= highest:
            raise InvalidField(name, f"{name} must be a whole number between {lowest} and {highest}")
        return int(value)

    return Check(check, {"type": "integer", "minimum": lowest, "maximum": highest})


_QUERY: dict[str, Check] = {
    "limit": _whole(1, AUDIT_SHOWN),
    "before": _whole(0, _HIGHEST_ID),
    "actor": text(256),
    "action": text(256),
    "outcome": one_of("ok", "refused", "failed"),
}

ENTRY = record(
    "AuditEntry",
    id=WHOLE,
    at=TIME,
    actor=TEXT,
    address=maybe(TEXT),
    action=TEXT,
    object=TEXT,
    changes=ANY_OBJECT,
    outcome=words("ok", "refused", "failed"),
    detail=TEXT,
)


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("audit", __name__)

    @blueprint.get("/api/audit")
    @access(Access.ADMIN)
    @operation(
        "List who did what, newest first. The action 'users' finds 'users.create' too.",
        query=_QUERY,
        answers={
            200: (
                f"At most {AUDIT_SHOWN}; 'next' is the 'before' of the next page, null on the last.",
                record(entries=list_of(ENTRY), next=maybe(WHOLE)),
            )
        },
    )
    def list_entries() -> Response:
        asked = {
            name: check(name, request.args[name]) for name, check in _QUERY.items() if name in request.args
        }
        limit = asked.pop("limit", _DEFAULT)
        try:
            found = kernel.audit.read(limit=limit + 1, **asked)
        except OSError as error:
            raise LlamaManError(f"the audit log cannot be read: {error.strerror}") from error
        more = len(found) > limit
        return jsonify({"entries": found[:limit], "next": found[limit - 1]["id"] if more else None})

    return RouteSet(blueprint)
