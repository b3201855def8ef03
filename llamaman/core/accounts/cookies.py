"""Cookie headers: which names are ours, what is set, what came in. Read by the gate and by the form pages. Pure.

Cookies know hosts but not ports, so every web page on this host (an engine's own page, say) shares the jar
with us: a name carries the installation, and a header may hold several cookies of one name.
"""

from __future__ import annotations

import hashlib
import re

_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_VALUE = re.compile(r"[A-Za-z0-9_.~-]*")


def cookie_name(install_id: str, secure: bool) -> str:
    """The session cookie's name; two installations on one host do not overwrite each other's.

    :param secure: the browser came over TLS; then ``__Host-`` keeps other hosts and plain HTTP from setting it.
    """
    name = "llamaman_" + hashlib.sha256(install_id.encode()).hexdigest()[:8]
    return f"__Host-{name}" if secure else name


def presession_name(install_id: str, secure: bool) -> str:
    """The name of the cookie that ties a form to the browser it was shown in, before anybody is logged in."""
    return cookie_name(install_id, secure) + "_pre"


def set_cookie(name: str, value: str, *, secure: bool, max_age_s: int | None) -> str:
    """A ``Set-Cookie`` value: no Domain, so it goes back to this very host only.

    :param max_age_s: seconds, or None for "until the browser closes".
    :raises ValueError: a name or value that could break out of the header.
    """
    if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError("a cookie's name and value are letters, digits, '-' and '_'")
    parts = [f"{name}={value}", "Path=/", "HttpOnly", "SameSite=Lax"]
    if max_age_s is not None:
        parts.append(f"Max-Age={max_age_s}")
    if secure:
        parts.append("Secure")
    return "; ".join(parts)


def clear_cookie(name: str, *, secure: bool) -> str:
    """A ``Set-Cookie`` value that removes the cookie."""
    return set_cookie(name, "", secure=secure, max_age_s=0)


def values(header: bytes, name: str) -> list[str]:
    """Every value of that name in a ``Cookie`` header, in the order sent; empty ones are left out.

    A browser sends a cookie that a neighbour planted for a longer path before ours, so the first one proves nothing.
    """
    found = []
    for pair in header.decode("latin-1").split(";"):
        key, separator, value = pair.partition("=")
        if separator and key.strip(" \t") == name and value.strip(" \t"):
            found.append(value.strip(" \t"))
    return found
