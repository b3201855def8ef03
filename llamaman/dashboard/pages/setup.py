"""``/setup``: the first user of a new installation, who becomes its administrator."""

from __future__ import annotations

from flask import Blueprint, Response

from llamaman.access import Access, access
from llamaman.core.accounts.hasher import normalised
from llamaman.dashboard.bodies import Check, text
from llamaman.dashboard.http import agent, caller
from llamaman.dashboard.operation import operation
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
from llamaman.errors import Conflict, Forbidden, InvalidField, InvalidRequest, TooManyRequests
from llamaman.limits import PASSWORD_LONGEST, PASSWORD_SHORTEST, USER_NAME

_FORM: dict[str, Check] = {
    **TOKEN,
    "username": text(USER_NAME),
    "password": text(PASSWORD_LONGEST),
    "confirm": text(PASSWORD_LONGEST),
    "code": text(128),
}

_SHOWN = {200: ("A page.", None), 302: ("To the login: there is a user.", None)}


def add(blueprint: Blueprint, kernel: Services) -> None:
    """Add the page."""

    @blueprint.get("/setup")
    @blueprint.get("/setup/<code>")
    @access(Access.PUBLIC)
    @operation("Show the form for the first user.", answers=_SHOWN)
    def show_setup(code: str = "") -> Response:
        return _shown(kernel, code)

    @blueprint.post("/setup")
    @blueprint.post("/setup/<code>")
    @access(Access.PUBLIC)
    @operation(
        "Create the first user by a form.",
        fields=_FORM,
        answers={303: ("To the start page, with a session's cookie.", None)},
        refusals=(429,),
    )
    def set_up(code: str = "") -> Response:
        return _set_up(kernel, code)


def _shown(kernel: Services, code: str) -> Response:
    if kernel.accounts.users.exists():
        return go_to("/login", 302)
    return _page(kernel, 200, code=code)


def _set_up(kernel: Services, code: str) -> Response:
    given = form(_FORM)
    name, password = given["username"].strip(), given["password"]
    code = given["code"].strip() or code
    if kernel.accounts.users.exists():
        return go_to("/login")
    if not holds_token(given):
        return _page(kernel, 403, name=name, code=code, problem=STALE_FORM)
    problem = _problem(name, password, given["confirm"])
    if problem:
        return _page(kernel, 400, name=name, code=code, problem=problem)
    who = caller()
    try:
        opened = kernel.accounts.set_up(
            name, password, code=code or None, owns_machine=who.owns_machine, address=who.peer, agent=agent()
        )
    except Conflict:  # somebody was faster
        return go_to("/login")
    except (InvalidField, InvalidRequest, Forbidden, TooManyRequests) as error:
        return refused(_page(kernel, error.status, name=name, code=code, problem=error.message), error)
    return give_session(go_to("/"), kernel, opened)


def _problem(name: str, password: str, confirm: str) -> str | None:
    """What a person can mend at once; the other rules belong to the accounts."""
    if not name:
        return "Username is required."
    if len(normalised(password)) < PASSWORD_SHORTEST:
        return f"Password must be at least {PASSWORD_SHORTEST} characters."
    if password != confirm:
        return "Passwords do not match."
    return None


def _page(
    kernel: Services, status: int, *, name: str = "", code: str = "", problem: str | None = None
) -> Response:
    return form_page(
        kernel,
        "setup.html",
        status,
        name=name,
        code=code,
        problem=problem,
        needs_code=not caller().owns_machine,
        shortest=PASSWORD_SHORTEST,
    )
