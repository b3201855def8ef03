"""The few pages that work without the dashboard: log in, log out, set up, and who you are. No script at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint, Response

from llamaman.dashboard.pages import home, login, logout, setup, static
from llamaman.dashboard.pages.render import HEADERS, plain_page
from llamaman.errors import LlamaManError
from llamaman.records import RouteSet

if TYPE_CHECKING:
    from llamaman.dashboard.services import Services


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("pages", __name__)
    login.add(blueprint, kernel)
    setup.add(blueprint, kernel)
    logout.add(blueprint, kernel)
    home.add(blueprint, kernel)
    static.add(blueprint)

    @blueprint.after_request
    def protect(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @blueprint.errorhandler(LlamaManError)
    def refuse(error: LlamaManError) -> Response:
        response = plain_page("problem.html", error.status, problem=error.message)
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(error.retry_after)
        return response

    return RouteSet(blueprint)
