"""The cookies that answers set, for the request at hand: over TLS they carry other names. Read by pages and REST."""

from __future__ import annotations

from llamaman.core.accounts.cookies import clear_cookie, cookie_name, presession_name, set_cookie
from llamaman.core.accounts.session_record import Opened
from llamaman.dashboard.http import caller
from llamaman.dashboard.services import Services
from llamaman.limits import SESSION_LONGEST_S


def session_given(kernel: Services, opened: Opened) -> str:
    """Let the browser keep a new session. How long it counts is decided here, not by the cookie."""
    secure = caller().secure
    name = cookie_name(kernel.accounts.install_id, secure)
    return set_cookie(name, opened.secret, secure=secure, max_age_s=SESSION_LONGEST_S)


def session_cleared(kernel: Services) -> str:
    """Let the browser forget its session."""
    secure = caller().secure
    return clear_cookie(cookie_name(kernel.accounts.install_id, secure), secure=secure)


def presession_given(kernel: Services, value: str) -> str:
    """Tie the forms of a stranger to this browser until it is closed."""
    secure = caller().secure
    name = presession_name(kernel.accounts.install_id, secure)
    return set_cookie(name, value, secure=secure, max_age_s=None)


def presession_cleared(kernel: Services) -> str:
    """Let the browser forget that tie."""
    secure = caller().secure
    return clear_cookie(presession_name(kernel.accounts.install_id, secure), secure=secure)
