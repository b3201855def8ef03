"""Browser origins: what they are, and which may call inference from a page of their own (CORS). Pure.

Read by the gate. Only inference and the lists of models are shared with other origins, never management, and
never with the browser's own credentials. With ``require_auth`` the API key is what counts, so any page may ask;
without it a page that any visitor happens to open could, so only this machine's pages and those named may.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from llamaman.core.addresses import is_loopback_host

MAX_AGE_S = 600
_GRAMMAR = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_APPS = frozenset({"app", "tauri", "vscode-webview"})
#: Longer ones are none, and are not remembered either: strangers choose them.
_LONGEST = 512
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})


@dataclass(frozen=True, slots=True)
class Origin:
    """A scheme, host (IPv6 in brackets) and port; None stands for the scheme's default port."""

    scheme: str
    host: str
    port: int | None

    def is_authority_of(self, host: str) -> bool:
        """Whether a Host value names this origin's host and port."""
        other = parse_origin(f"{self.scheme}://{host}")
        return other is not None and (other.host, other.port) == (self.host, self.port)


def parse_origin(text: str) -> Origin | None:
    """An ``Origin`` value as its parts; None for ``null`` and for what is none."""
    return _parsed(text) if len(text) <= _LONGEST else None


@lru_cache(maxsize=512)
def _parsed(text: str) -> Origin | None:
    match = _GRAMMAR.fullmatch(text.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    number = int(port) if port else None
    if number is not None and number > 65535:
        return None
    return Origin(scheme, host, None if number == _DEFAULT_PORTS.get(scheme) else number)


def origin_of_url(url: str) -> Origin | None:
    """The origin that a whole URL (a ``Referer``, LLAMAMAN_PUBLIC_URL) belongs to; None when it has none."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://[^/?#\\@\s]+)(?:[/?#]|$)", url)
    return parse_origin(match[1]) if match else None


def is_allowed(origin: str, host: str, listed: frozenset[Origin]) -> bool:
    """Whether a page of this origin may call inference without a key.

    :param host: the host that it asks; its own pages may.
    :param listed: LLAMAMAN_CORS_ORIGINS.
    """
    parsed = parse_origin(origin)
    if parsed is None:
        return False
    return (
        parsed.scheme in _APPS
        or parsed in listed
        or (
            parsed.scheme in _DEFAULT_PORTS
            and (is_loopback_host(parsed.host) or parsed.is_authority_of(host))
        )
    )


def listed_origins(values: Iterable[str]) -> frozenset[Origin]:
    """LLAMAMAN_CORS_ORIGINS, parsed."""
    return frozenset(origin for origin in map(parse_origin, values) if origin)


def answer_headers(origin: bytes) -> bytes:
    """The headers that let a page read an answer, as they go over the wire; b"" for what is no origin.

    Credentials are never allowed: no cookie of ours may act for another page.
    """
    if origin != b"null" and parse_origin(origin.decode("latin-1")) is None:
        return b""
    return b"access-control-allow-origin: %b\r\nvary: Origin\r\n" % origin


def requested_headers(value: bytes | None) -> list[bytes]:
    """The names in ``Access-Control-Request-Headers`` that are header names, each once, in lower case."""
    names = (name.strip().lower() for name in (value or b"").split(b","))
    return list(dict.fromkeys(name for name in names if _TOKEN.fullmatch(name)))


def brings_key(names: Iterable[bytes]) -> bool:
    """Whether the request that a preflight announces carries an API key, which will be judged then."""
    return any(name in _KEY_HEADERS for name in names)


def preflight_headers(
    methods: Iterable[str], names: Iterable[bytes], *, private_network: bool
) -> list[tuple[bytes, bytes]]:
    """What a preflight is answered besides :func:`answer_headers`.

    :param methods: what the path has. :param names: see :func:`requested_headers`.
    :param private_network: the browser asked for leave to reach a private address from a public page.
    """
    headers = [
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-max-age", b"%d" % MAX_AGE_S),
    ]
    allowed = b", ".join(names)
    if allowed:
        headers.append((b"access-control-allow-headers", allowed))
    if private_network:
        headers.append((b"access-control-allow-private-network", b"true"))
    return headers
