"""URLs that somebody else has chosen: read strictly, and judged without asking anybody. Pure.

Read by :mod:`llamaman.core.safe_fetch` for a URL and for every redirect. What two programs could read in two ways
(user names, backslashes, numbers for addresses, characters outside ASCII) is refused, not repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from llamaman.core.addresses import parse_ip
from llamaman.errors import InvalidRequest

LONGEST = 8192

_GRAMMAR = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: The last label of what resolvers take for an IPv4 address: decimal, octal or hexadecimal.
_NUMERIC = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)
_DOTTED_QUAD = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})")


class UrlRefused(InvalidRequest):
    """A URL that is not asked, whatever its host would say; the message says why."""

    code = "url_refused"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request goes: ``http`` or ``https``, host in lower case (IPv6 without brackets) and port."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """What a ``Host`` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that can be asked. ``path`` is the request target: path and query, never empty."""

    origin: Origin
    path: str

    def __str__(self) -> str:
        return f"{self.origin}{self.path}"


def parse_url(url: str) -> Target:
    """Read a URL.

    :raises UrlRefused: it is not http(s), or could be read in more than one way.
    """
    if len(url) > LONGEST:
        raise UrlRefused(f"a URL may have {LONGEST} characters")
    match = _GRAMMAR.fullmatch(url)
    if match is None:
        raise UrlRefused("only https URLs are fetched")
    if any(not " " < character != "\x7f" for character in url) or "\\" in url:
        raise UrlRefused("a URL may hold neither spaces nor control characters nor backslashes; encode them")
    scheme = match[1].lower()
    if "@" in match[2]:
        raise UrlRefused("a URL may not hold a user name or password")
    authority = _AUTHORITY.fullmatch(match[2])
    if authority is None:
        raise UrlRefused("the URL's host is no host name or address; names of other scripts are written xn--")
    port = int(authority[2]) if authority[2] else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise UrlRefused(f"{port} is no port")
    path = quote(match[3], safe="/?:@!$&'()*+,;=%-._~[]|{}^`\"<>")
    if not path.startswith("/"):
        path = "/" + path
    return Target(Origin(scheme, _host(authority[1]), port), path)


def check_target(target: Target, trusted: frozenset[Origin]) -> None:
    """Let pass what may be asked as far as its address does not matter.

    :param trusted: origins that the administrator has named; theirs may be plain HTTP and any port.
    :raises UrlRefused: it is not https, or goes to a port that no web server has.
    """
    origin = target.origin
    if origin in trusted:
        return
    if origin.scheme != "https":
        raise UrlRefused(f"{origin} is not fetched: only https is")
    if origin.port != 443 and origin.port < 1024:
        raise UrlRefused(f"{origin} is not fetched: of the ports below 1024 only 443 is")


def _host(text: str) -> str:
    if text.startswith("["):
        address = parse_ip(text[1:-1])
        if address is None:
            raise UrlRefused(f"{text} is no IPv6 address")
        return text[1:-1].lower()
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if not all(labels):
        raise UrlRefused("the URL's host has an empty label")
    if _NUMERIC.fullmatch(labels[-1]) and not (_DOTTED_QUAD.fullmatch(host) and parse_ip(host)):
        raise UrlRefused(f"the host {host[:64]} is a number; addresses are written as four decimal numbers")
    return host
