"""``/``: who you are, and where you are logged in."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Blueprint, Response

from llamaman.access import Access, access
from llamaman.core.accounts.session_record import Session
from llamaman.core.key_record import iso
from llamaman.dashboard.http import identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.own_sessions import own_sessions
from llamaman.dashboard.pages.agents import agent_name
from llamaman.dashboard.pages.render import form_page, plain_page
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import JsonObject, role_of


def add(blueprint: Blueprint, kernel: Services) -> None:
    """Add the page."""

    @blueprint.get("/")
    @access(Access.VIEW)
    @operation("Show who you are and your sessions.", answers={200: ("A page.", None)})
    def show_home() -> Response:
        who = identity()
        node = kernel.config.node_name
        if who.kind != "session":
            return plain_page("key.html", kind=who.kind, scope=who.scope, name=who.name, node=node)
        rows = [_row(session, current=session.id == who.session) for session in own_sessions(kernel, who)]
        return form_page(kernel, "home.html", role=role_of(who), sessions=rows, name=who.name, node=node)


def _row(session: Session, *, current: bool) -> JsonObject:
    return {
        "id": session.id,
        "agent": agent_name(session.agent),
        "full_agent": session.agent,
        "address": session.address,
        "current": current,
        "times": [
            (label, iso(moment), _minute(moment))
            for label, moment in (
                ("Logged in", session.created),
                ("Last used", session.last_seen),
                ("Ends", session.expires),
            )
        ],
    }


def _minute(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
