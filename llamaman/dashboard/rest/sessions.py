"""``/api/sessions``: everybody's, for ADMIN. One's own are under ``/api/me/sessions``."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.dashboard.account_schemas import SESSION
from llamaman.dashboard.answer_schemas import DONE, list_of
from llamaman.dashboard.http import identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import session_object
from llamaman.records import RouteSet


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("sessions", __name__)

    @blueprint.get("/api/sessions")
    @access(Access.ADMIN)
    @operation("List all users' sessions.", answers={200: ("The sessions.", list_of(SESSION))})
    def list_sessions() -> Response:
        accounts, own = kernel.accounts, identity().session
        names = {user.id: user.name for user in accounts.users.list()}
        return jsonify(
            [
                session_object(session, names.get(session.user, session.user), current=session.id == own)
                for session in accounts.sessions.list()
            ]
        )

    @blueprint.delete("/api/sessions/<id>")
    @access(Access.ADMIN)
    @operation("End a session and its open streams.", answers={200: ("Done.", DONE)})
    def end_session(id: str) -> Response:
        kernel.accounts.sessions.end(id, by=identity(), reason="ended by an administrator")
        return jsonify({"ok": True})

    return RouteSet(blueprint)
