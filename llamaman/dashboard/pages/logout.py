"""``/logout``: end this session, another one of the same user, or all of them."""

from __future__ import annotations

import contextlib

from flask import Blueprint, Response, request

from llamaman.access import Access, access
from llamaman.dashboard.bodies import Check, text
from llamaman.dashboard.http import caller
from llamaman.dashboard.operation import operation
from llamaman.dashboard.own_sessions import end_own_session, end_own_sessions
from llamaman.dashboard.pages.forms import same_authority
from llamaman.dashboard.pages.render import (
    STALE_FORM,
    TOKEN,
    form,
    form_page,
    go_to,
    holds_token,
    take_session,
)
from llamaman.dashboard.services import Services
from llamaman.errors import NotFound

#: ``session`` is another session's id; ``everywhere`` holds anything for "all of them".
_FORM: dict[str, Check] = {**TOKEN, "everywhere": text(8), "session": text(64)}


def add(blueprint: Blueprint, kernel: Services) -> None:
    """Add the page."""

    @blueprint.get("/logout")
    @access(Access.PUBLIC)
    @operation("Log out, or ask first.", answers={200: ("A page.", None), 302: ("To the login.", None)})
    def show_logout() -> Response:
        who = caller()
        if who.identity.kind != "session":
            return take_session(go_to("/login", 302), kernel)
        # A link on a foreign page, or an image there, must not log anybody out.
        if not same_authority(request.headers.get("Referer"), who.host):
            return form_page(kernel, "logout.html", name=who.identity.name, problem=None)
        return _end(kernel, "", 302)

    @blueprint.post("/logout")
    @access(Access.PUBLIC)
    @operation(
        "Log out by a form.", fields=_FORM, answers={303: ("To the login, or back to the account.", None)}
    )
    def log_out() -> Response:
        given = form(_FORM)
        who = caller().identity
        if who.kind != "session":
            return take_session(go_to("/login"), kernel)
        if not holds_token(given):
            return form_page(kernel, "logout.html", 403, name=who.name, problem=STALE_FORM)
        if given["everywhere"]:
            end_own_sessions(kernel, who)
            return take_session(go_to("/login"), kernel)
        return _end(kernel, given["session"], 303)


def _end(kernel: Services, session_id: str, status: int) -> Response:
    """End one session; the caller's own if no other is named."""
    who = caller().identity
    own = who.session or ""
    with contextlib.suppress(NotFound):  # it ended meanwhile, which is what was wanted
        end_own_session(kernel, who, session_id or own)
    if session_id and session_id != own:
        return go_to("/", status)
    return take_session(go_to("/login", status), kernel)
