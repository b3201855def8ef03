"""What every management view needs of a request and an answer. Read by the blueprints, the gate and
plugins' views.

Errors are always ``{"error": "..."}``; the status is the error's own. Log lines and paths (``detail``) are
shown to callers who may MANAGE and to nobody else.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any

from flask import Response, g, jsonify, request

from llamaman.access import Access
from llamaman.core.auth import allows
from llamaman.dashboard.bodies import Check, pick, read_object
from llamaman.errors import LlamaManError
from llamaman.gateway.caller import Caller
from llamaman.records import NOBODY, Identity

log = logging.getLogger(__name__)


def caller() -> Caller:
    """The caller of the current request, and how the request came; behind the gate only."""
    found: Caller = g.caller
    return found


def identity() -> Identity:
    """The caller of the current request."""
    caller: Caller | None = g.get("caller")
    return caller.identity if caller else NOBODY


def json_body(optional: bool = False) -> dict[str, Any]:
    """The current request's body as an object, see :func:`llamaman.dashboard.bodies.read_object`."""
    return read_object(
        request.get_data(cache=False),
        request.headers.get("Content-Type"),
        content_encoding=request.headers.get("Content-Encoding"),
        optional=optional,
    )


def fields(
    checks: Mapping[str, Check], *, required: tuple[str, ...] = (), optional: bool = False
) -> dict[str, Any]:
    """The current request's body, each field checked, unknown ones refused."""
    return pick(json_body(optional), checks, required)


def agent() -> str:
    """The client as it names itself, for display alone."""
    return request.headers.get("User-Agent", "")


def give_cookies(response: Response, *cookies: str) -> Response:
    """Add ``Set-Cookie`` lines."""
    for cookie in cookies:
        response.headers.add("Set-Cookie", cookie)
    return response


def error_response(error: LlamaManError) -> Response:
    """One of our errors as an answer."""
    message = error.message
    if error.field and error.field not in message:
        message = f"{error.field}: {message}"
    body: dict[str, Any] = {"error": message}
    if error.field is not None:  # an empty name is one that a body can have
        body["field"] = error.field
    if error.code == "confirm_required":
        body["confirm_required"] = True
    if error.code == "sudo_required":
        body["sudo_required"] = True
    if error.detail and allows(identity(), Access.MANAGE):
        body["detail"] = error.detail
    response = jsonify(body)
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def unexpected_response(error: BaseException) -> Response:
    """A defect of ours as an answer: an id in the answer, the traceback under that id in the log."""
    error_id = secrets.token_hex(6)
    log.error("error %s in %s %s", error_id, request.method, request.path, exc_info=error)
    response = jsonify({"error": "internal error", "id": error_id})
    response.status_code = 500
    return response
