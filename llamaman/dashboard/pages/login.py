"""``/login``: a user name and a password become a session."""

from __future__ import annotations

from flask import Blueprint, Response, request

from llamaman.access import Access, access
from llamaman.dashboard.bodies import Check, text
from llamaman.dashboard.http import agent, caller, identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.pages.forms import local_path
from llamaman.dashboard.pages.render import (
    STALE_FORM,
    TOKEN,
    form,
    form_page,
    give_session,
    go_to,
    holds_token,
    refused,
)
from llamaman.dashboard.services import Services
from llamaman.errors import TooManyRequests, Unauthorized
from llamaman.limits import PASSWORD_LONGEST, USER_NAME

_FORM: dict[str, Check] = {
    **TOKEN,
    "username": text(USER_NAME),
    "password": text(PASSWORD_LONGEST),
    "next": text(1024),
}


def add(blueprint: Blueprint, kernel: Services) -> None:
    """Add the page."""

    @blueprint.get("/login")
    @access(Access.PUBLIC)
    @operation("Show the form to log in.", answers={200: ("A page.", None), 302: ("No user yet.", None)})
    def show_login() -> Response:
        if not kernel.accounts.users.exists():
            return go_to("/setup", 302)
        return _page(kernel, 200, target=local_path(request.args.get("next")))

    @blueprint.post("/login")
    @access(Access.PUBLIC)
    @operation(
        "Log in by a form.",
        fields=_FORM,
        answers={303: ("To where the form says, with a session's cookie.", None)},
        refusals=(429,),
    )
    def log_in() -> Response:
        given = form(_FORM)
        target, name = local_path(given["next"]), given["username"]
        if not kernel.accounts.users.exists():
            return go_to("/setup")
        if not holds_token(given):
            return _page(kernel, 403, target=target, name=name, problem=STALE_FORM)
        who = caller()
        try:
            opened = kernel.accounts.login(
                name,
                given["password"],
                address=who.peer,
                agent=agent(),
                previous=who.identity.session,
            )
        except (Unauthorized, TooManyRequests) as error:
            return refused(
                _page(kernel, error.status, target=target, name=name, problem=error.message), error
            )
        return give_session(go_to(target), kernel, opened)


def _page(
    kernel: Services, status: int, *, target: str, name: str = "", problem: str | None = None
) -> Response:
    who = identity()
    return form_page(
        kernel,
        "login.html",
        status,
        target=target,
        name=name,
        problem=problem,
        signed_in_as=who.name if who.kind == "session" else None,
    )
