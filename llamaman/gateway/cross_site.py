"""Whether a request that a browser vouches for comes from our own pages (cross-site request forgery). Pure.

Read by the gate. A browser adds a session's cookie whoever asked for the request, another page on another port
of this host included; cookies know no ports. So a changing request must name our own origin and carry a token
that only our pages can read, and each of the two would be enough alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from llamaman.errors import Forbidden
from llamaman.gateway.client_address import ClientFacts
from llamaman.gateway.origins import Origin, origin_of_url, parse_origin

READING = frozenset({"GET", "HEAD"})
_FORM_PAGES = frozenset({"/login", "/logout", "/setup"})


def is_form_page(path: str) -> bool:
    """Whether a path takes plain forms; their token is a field, which Flask checks."""
    return path in _FORM_PAGES or (path.startswith("/setup/") and "/" not in path[7:] and len(path) > 7)


def is_setup(path: str) -> bool:
    """Whether a path belongs to the creation of the first user."""
    return path == "/setup" or path.startswith("/setup/")


def check_form(named: Mapping[bytes, bytes], facts: ClientFacts, public: Origin | None) -> None:
    """A form that changes something, from a session or a stranger.

    :raises Forbidden: it was not sent by a page of ours, as far as the browser tells.
    """
    _check_source(named, facts, public)
    _check_site(named, {"same-origin"})


def check_change(
    named: Mapping[bytes, bytes], facts: ClientFacts, public: Origin | None, expected_token: str
) -> None:
    """A session's request that may change something.

    :raises Forbidden: not from our own page, or without its token.
    """
    check_form(named, facts, public)
    if not hmac.compare_digest(named.get(b"x-csrf-token", b""), expected_token.encode()):
        raise Forbidden(
            "the header X-CSRF-Token is missing or not this session's; GET /api/me shows it as csrf_token"
        )


def check_read(
    named: Mapping[bytes, bytes], facts: ClientFacts, public: Origin | None, *, page: bool
) -> None:
    """A session's GET or HEAD.

    :param page: it is for a page that a browser may be led to by a link; not for the API and its streams.
    :raises Forbidden: another page asked for it.
    """
    origin = named.get(b"origin")
    if origin is not None:
        _check_origin(origin.decode("latin-1"), facts, public)
    if not (page and named.get(b"sec-fetch-mode", b"").lower() == b"navigate"):
        _check_site(named, {"same-origin", "none"})


def _check_source(named: Mapping[bytes, bytes], facts: ClientFacts, public: Origin | None) -> None:
    """Origin, or where there is none Referer, must be ours."""
    origin = named.get(b"origin")
    if origin is not None:
        _check_origin(origin.decode("latin-1"), facts, public)
        return
    referer = named.get(b"referer")
    if referer is None:
        raise Forbidden("a request with a session must say which page it comes from (Origin or Referer)")
    found = origin_of_url(referer.decode("latin-1"))
    if found is None or not _is_ours(found, facts, public):
        raise Forbidden(_foreign("this page"))


def _check_origin(text: str, facts: ClientFacts, public: Origin | None) -> None:
    origin = parse_origin(text)
    if origin is None:
        raise Forbidden("the browser does not name the page that this request comes from (Origin: null)")
    if not _is_ours(origin, facts, public):
        raise Forbidden(_foreign(f"origin {text}"))


def _is_ours(origin: Origin, facts: ClientFacts, public: Origin | None) -> bool:
    if public is not None and origin == public:
        return True
    if origin.scheme not in ("http", "https") or (facts.secure and origin.scheme != "https"):
        return False
    return origin.is_authority_of(facts.host)


def _foreign(who: str) -> str:
    return (
        f"{who} is not this LlamaMan's own, and no other page may use a session. If it is the address that you "
        "opened LlamaMan under, set LLAMAMAN_PUBLIC_URL to it"
    )


def _check_site(named: Mapping[bytes, bytes], allowed: set[str]) -> None:
    site = named.get(b"sec-fetch-site")
    if site is not None and site.decode("latin-1").lower() not in allowed:
        raise Forbidden(
            "another page asked the browser for this request, and no other page may use a session"
        )
