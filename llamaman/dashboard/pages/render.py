"""Templates, headers, forms and their tokens. Read by every page.

Untrusted text reaches a page through autoescape alone. The templates have an environment of their own, without
Flask's globals, so that no plugin changes what they may do.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Final

from flask import Response, request
from jinja2 import Environment, PackageLoader, StrictUndefined

from llamaman.core.accounts.session_record import Opened
from llamaman.dashboard.bodies import Check, pick, text
from llamaman.dashboard.cookies import presession_cleared, presession_given, session_cleared, session_given
from llamaman.dashboard.http import caller, give_cookies
from llamaman.dashboard.pages.forms import read_form
from llamaman.dashboard.services import Services
from llamaman.errors import LlamaManError, PayloadTooLarge
from llamaman.limits import FORM_BODY

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    # Under no-referrer a browser posts even our own forms with "Origin: null", which the door refuses.
    "Referrer-Policy": "same-origin",
}
STALE_FORM: Final = "This form was out of date or came from another page. Please send it again."
#: The field that every form carries.
TOKEN: Final[Mapping[str, Check]] = {"csrf_token": text(128)}

_templates = Environment(
    loader=PackageLoader("llamaman.dashboard.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def form_page(kernel: Services, template: str, status: int = 200, **context: Any) -> Response:
    """A page with forms, and the token that they carry; callers without one get a pre-session for it."""
    token = caller().csrf
    if token is not None:
        return plain_page(template, status, csrf_token=token, **context)
    value = secrets.token_urlsafe(32)
    token = kernel.accounts.sessions.presession_csrf(value)
    response = plain_page(template, status, csrf_token=token, **context)
    return give_cookies(response, presession_given(kernel, value))


def plain_page(template: str, status: int = 200, **context: Any) -> Response:
    """A page without forms."""
    return Response(_templates.get_template(template).render(context), status, mimetype="text/html")


def refused(response: Response, error: LlamaManError) -> Response:
    """A page that shows an error, with the headers that go with it."""
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def go_to(path: str, status: int = 303) -> Response:
    """A redirect to a path of ours; 303 makes the browser GET it."""
    response = Response("", status, mimetype="text/plain")
    response.headers["Location"] = path
    return response


def form(fields: Mapping[str, Check]) -> dict[str, str]:
    """The current request's form, each field checked and the absent ones empty.

    :raises LlamaManError: see :func:`llamaman.dashboard.pages.forms.read_form`.
    """
    if (request.content_length or 0) > FORM_BODY:
        raise PayloadTooLarge(f"the form is larger than {FORM_BODY} bytes")
    given = read_form(
        request.get_data(cache=False),
        request.headers.get("Content-Type"),
        content_encoding=request.headers.get("Content-Encoding"),
    )
    return dict.fromkeys(fields, "") | pick(given, fields)


def holds_token(given: Mapping[str, str]) -> bool:
    """Whether a form carries the token of the session or pre-session that sent it."""
    expected = caller().csrf
    return expected is not None and hmac.compare_digest(given["csrf_token"].encode(), expected.encode())


def give_session(response: Response, kernel: Services, opened: Opened) -> Response:
    """Let the browser keep a new session, and forget the pre-session that led to it."""
    return give_cookies(response, session_given(kernel, opened), presession_cleared(kernel))


def take_session(response: Response, kernel: Services) -> Response:
    """Let the browser forget its session."""
    return give_cookies(response, session_cleared(kernel))
