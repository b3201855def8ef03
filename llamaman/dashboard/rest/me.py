"""``/api/me``: who asks, and what users may do about their own account. All but the first is for sessions."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from llamaman.access import Access, access
from llamaman.core.key_record import iso
from llamaman.dashboard.account_schemas import CONFIRMED, ENDED, ME, NEW_SESSION, SESSION
from llamaman.dashboard.answer_schemas import DONE, list_of
from llamaman.dashboard.bodies import Check, text
from llamaman.dashboard.cookies import session_cleared, session_given
from llamaman.dashboard.http import agent, caller, fields, give_cookies, identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.own_sessions import end_own_session, end_own_sessions, own_sessions
from llamaman.dashboard.services import Services
from llamaman.dashboard.shapes import me_object, session_object
from llamaman.errors import Forbidden
from llamaman.limits import PASSWORD_LONGEST
from llamaman.records import Identity, RouteSet

_PASSWORD = text(PASSWORD_LONGEST)
_NEW_PASSWORD: dict[str, Check] = {"current": _PASSWORD, "new": _PASSWORD}
_SUDO: dict[str, Check] = {"password": _PASSWORD}


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("me", __name__)

    @blueprint.get("/api/me")
    @access(Access.VIEW)
    @operation("Tell who asks.", answers={200: ("The caller.", ME)})
    def show_me() -> Response:
        who = identity()
        if who.kind != "session" or who.session is None:
            return jsonify(me_object(who, csrf_token=None, sudo_until=None))
        until = kernel.accounts.sessions.confirmed_until(who.session)
        return jsonify(me_object(who, csrf_token=caller().csrf, sudo_until=until))

    @blueprint.get("/api/me/sessions")
    @access(Access.VIEW)
    @operation("List one's own sessions.", answers={200: ("The sessions.", list_of(SESSION))})
    def list_own_sessions() -> Response:
        who = _user()
        return jsonify(
            [
                session_object(session, who.name, current=session.id == who.session)
                for session in own_sessions(kernel, who)
            ]
        )

    @blueprint.delete("/api/me/sessions")
    @access(Access.VIEW)
    @operation("Log out everywhere, here too.", answers={200: ("How many sessions ended.", ENDED)})
    def log_out_everywhere() -> Response:
        ended = end_own_sessions(kernel, _user())
        return give_cookies(jsonify({"ok": True, "ended": ended}), session_cleared(kernel))

    @blueprint.delete("/api/me/sessions/<id>")
    @access(Access.VIEW)
    @operation("End one of one's own sessions.", answers={200: ("Done.", DONE)})
    def log_out(id: str) -> Response:
        who = _user()
        end_own_session(kernel, who, id)
        response = jsonify({"ok": True})
        return give_cookies(response, session_cleared(kernel)) if id == who.session else response

    @blueprint.post("/api/me/password")
    @access(Access.VIEW)
    @operation(
        "Change one's own password; every other session of the user ends, and this one gets a new id.",
        fields=_NEW_PASSWORD,
        required=tuple(_NEW_PASSWORD),
        answers={200: ("The new session; its cookie comes along.", NEW_SESSION)},
        refusals=(429,),
    )
    def change_password() -> Response:
        who = _user()
        given = fields(_NEW_PASSWORD, required=tuple(_NEW_PASSWORD))
        opened = kernel.accounts.change_password(
            who, given["current"], given["new"], address=caller().peer, agent=agent()
        )
        token = kernel.accounts.sessions.csrf_token(opened.session.id)
        response = jsonify({"ok": True, "session": opened.session.id, "csrf_token": token})
        return give_cookies(response, session_given(kernel, opened))

    @blueprint.post("/api/me/sudo")
    @access(Access.VIEW)
    @operation(
        "Confirm one's password, which opens sensitive actions for ten minutes.",
        fields=_SUDO,
        required=tuple(_SUDO),
        answers={200: ("Until when.", CONFIRMED)},
        refusals=(429,),
    )
    def confirm() -> Response:
        who = _user()
        given = fields(_SUDO, required=tuple(_SUDO))
        until = kernel.accounts.confirm(who, given["password"], address=caller().peer)
        return jsonify({"sudo_until": iso(until)})

    return RouteSet(blueprint)


def _user() -> Identity:
    """The caller, if there is a user behind it.

    :raises Forbidden: a key, or the admin socket: neither has a password or a session.
    """
    who = identity()
    if who.kind != "session":
        raise Forbidden("only a user who is logged in may do this; an API key has no account")
    return who
