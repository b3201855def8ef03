"""Request heads: what the front door accepts from a client, decided before any route is looked up.

Read by: anyone who wonders why a request got 400. The HTTP parser in front of this module (llhttp, through
httptools) refuses broken syntax, but lets through heads that two programs may read differently: two Hosts, an
encoded slash, a target that names another host. Everything behind the front door relies on the one `Head`
made here: routing, access and forwarding use its single decoded path. Pure: bytes in, Head or BadHead out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from llamaman.limits import HEADER_NAME_BYTES, HEADERS, TARGET_BYTES

Header = tuple[bytes, bytes]


class BadHead(Exception):
    """The head breaks a rule of this module; `reason` is one sentence for the client (status 400)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Head(NamedTuple):
    """A request head that passed every rule.

    A named tuple because it is built once per request: immutable, slotted, and three times cheaper than a
    frozen dataclass. `path` is percent-decoded once; `raw_path` and `query` are the client's bytes. `headers`
    have lower-case names; names with an underscore were dropped, because CGI-like layers read `_` as `-`.
    `content_length` is None when the client sent none. `named` holds the headers that decide something (who asks,
    from where, how the body is framed); values of those that may repeat are joined with commas, in order.
    """

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: list[Header]
    http_version: str
    host: str
    content_length: int | None
    chunked: bool
    expect_continue: bool
    keep_alive: bool
    named: Mapping[bytes, bytes]


_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NOT_IN_TARGET = bytes(range(0x21)) + b"\x7f#"
_NOT_IN_PATH = bytes(range(0x20)) + b"\x7f\\"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9_.])?)(?::[0-9]{1,5})?"
)

# Headers that may stand in a head once; of these some decide its framing and some who the client is.
_ONCE = frozenset(
    {
        b"access-control-request-method",
        b"access-control-request-private-network",
        b"authorization",
        b"content-length",
        b"content-type",
        b"cookie",
        b"expect",
        b"host",
        b"origin",
        b"referer",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"transfer-encoding",
        b"x-api-key",
        b"x-csrf-token",
    }
)
# Lists, which may be given in several lines: what proxies add to, one after the other, and codings.
_JOINED = frozenset(
    {
        b"access-control-request-headers",
        b"connection",
        b"content-encoding",
        b"forwarded",
        b"via",
        b"x-real-ip",
    }
)
_PLAIN, _SINGLE, _LIST = 0, 1, 2
_METHODS = {name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS")}


def _method(method: bytes) -> str:
    if method in (b"CONNECT", b"TRACE"):
        raise BadHead("the methods CONNECT and TRACE are not supported")
    if not method or method.translate(None, _TOKEN):
        raise BadHead("the request method is not a valid token")
    return method.decode("ascii")


# The caches below turn checks into one look-up, because clients repeat their few names, hosts and paths with
# every request. They hold no values of secret headers, are bounded, and never keep what was refused.


@lru_cache(maxsize=1024)
def _name(wire_name: bytes) -> tuple[bytes, int]:
    """A header name in lower case (b"" when it is to be dropped), and whether and how often it may decide."""
    if not wire_name or wire_name.translate(None, _TOKEN):
        raise BadHead("a header name contains a character that is not allowed there")
    if len(wire_name) > HEADER_NAME_BYTES:
        raise BadHead(f"a header name is longer than {HEADER_NAME_BYTES} bytes")
    name = wire_name.lower()
    if b"_" in name:
        return b"", _PLAIN
    if name in _ONCE or name.startswith(b"x-cluster-"):
        return name, _SINGLE
    return name, _LIST if name in _JOINED or name.startswith(b"x-forwarded-") else _PLAIN


@lru_cache(maxsize=512)
def host_text(value: bytes) -> str:
    """A Host value as text in lower case. Raises BadHead when its grammar is broken."""
    if _HOST.fullmatch(value) is None:
        raise BadHead("the Host header must be one host name or address with an optional port")
    port = value.rpartition(b"]")[2].partition(b":")[2]
    if port and int(port) > 65535:
        raise BadHead("the port in the Host header must be at most 65535")
    return value.decode("ascii").lower()


@lru_cache(maxsize=256)
def _target(target: bytes) -> tuple[str, bytes, bytes]:
    """The path decoded exactly once, the raw path and the query of a request target."""
    if len(target.translate(None, _NOT_IN_TARGET)) != len(target):
        raise BadHead("the request target must not contain spaces, control characters or #")
    raw_path, _, query = target.partition(b"?")
    if not raw_path.startswith(b"/"):
        raise BadHead("the request target must be a path that starts with /, not a full URL")
    path = raw_path
    if b"%" in raw_path:
        if _BAD_ESCAPE.search(raw_path):
            raise BadHead("a % in the path must be followed by two hexadecimal digits")
        if b"%2f" in raw_path.lower():
            raise BadHead("the path must not contain an encoded slash (%2F)")
        path = unquote_to_bytes(raw_path)
    if len(path.translate(None, _NOT_IN_PATH)) != len(path):
        raise BadHead("the path must not contain control characters or a backslash")
    if b"//" in path:
        raise BadHead("the path must not contain an empty segment (//)")
    if b"/." in path and any(segment in (b".", b"..") for segment in path.split(b"/")):
        raise BadHead("the path must not contain . or .. segments")
    try:
        return path.decode("utf-8"), raw_path, query
    except UnicodeDecodeError:
        raise BadHead("the path must be valid UTF-8") from None


def _key_of(authorization: bytes) -> bytes:
    scheme, space, rest = authorization.partition(b" ")
    return rest.strip() if space and scheme.lower() == b"bearer" else authorization


def check_head(
    method: bytes,
    target: bytes,
    http_version: str,
    headers: list[Header],
    *,
    max_headers: int = HEADERS,
    max_target_bytes: int = TARGET_BYTES,
) -> Head:
    """Validate one request head; `headers` in the order and case of the wire. Raises BadHead.

    Header values are left to the parser, which refuses control characters in them.
    """
    if http_version not in ("1.1", "1.0"):
        raise BadHead("only HTTP/1.1 and HTTP/1.0 are spoken here")
    method_name = _METHODS.get(method) or _method(method)
    if len(target) > max_target_bytes:
        raise BadHead(f"the request target is longer than {max_target_bytes} bytes")
    path, raw_path, query = _target(target)
    if len(headers) > max_headers:
        raise BadHead(f"the request has more than {max_headers} headers")

    kept: list[Header] = []
    seen: dict[bytes, bytes] = {}
    for wire_name, value in headers:
        name, kind = _name(wire_name)
        if kind:
            if name in seen:
                if kind == _SINGLE:
                    raise BadHead(f"the header {name.decode()} was sent more than once")
                seen[name] += b"," + value
            else:
                seen[name] = value
        elif not name:
            continue
        kept.append((name, value))

    host = seen.get(b"host")
    if host is None:
        raise BadHead("the request has no Host header")
    api_key, authorization = seen.get(b"x-api-key"), seen.get(b"authorization")
    if api_key is not None and authorization is not None and _key_of(authorization) != api_key:
        raise BadHead("Authorization and X-Api-Key carry different keys: send one of them")

    content_length: int | None = None
    length_value = seen.get(b"content-length")
    if length_value is not None:
        if not length_value.isdigit() or len(length_value) > 18:
            raise BadHead("Content-Length must be a plain decimal number of bytes")
        content_length = int(length_value)
    encoding = seen.get(b"transfer-encoding")
    if encoding is not None:
        if encoding.strip().lower() != b"chunked":
            raise BadHead("the only Transfer-Encoding understood here is chunked")
        if http_version == "1.0" or content_length is not None:
            raise BadHead("Transfer-Encoding cannot be combined with Content-Length or HTTP/1.0")

    keep_alive = http_version == "1.1"
    connection = seen.get(b"connection")
    if connection is not None:
        options = [option.strip() for option in connection.lower().split(b",")]
        if b"close" in options:
            keep_alive = False
        elif b"keep-alive" in options:
            keep_alive = True
    expect = seen.get(b"expect")

    return Head(
        method_name,
        path,
        raw_path,
        query,
        kept,
        http_version,
        host_text(host),
        content_length,
        encoding is not None,
        expect is not None and http_version == "1.1" and expect.lower() == b"100-continue",
        keep_alive,
        seen,
    )


_VERSIONS = {b" HTTP/1.1": "1.1", b" HTTP/1.0": "1.0"}
_FIRST_BYTE = re.compile(rb"[A-Za-z]")
_BARE_LF = re.compile(rb"(?<!\r)\n")


def version_of(head: bytes) -> str:
    """The HTTP version in the request line, "" when it is none of ours (llhttp takes RTSP and 0.9, too)."""
    line_end = head.find(b"\r\n")
    return _VERSIONS.get(head[max(0, line_end - 9) : line_end], "")


def check_partial_head(part: bytes) -> None:
    """Refuse what no further byte can turn into a head, and so at once. Raises BadHead."""
    if _FIRST_BYTE.match(part) is None:
        raise BadHead("this port speaks plain HTTP: use an http:// address, or a TLS proxy in front of it")
    if _BARE_LF.search(part):
        raise BadHead("lines of a request head must end in CR LF")
    if b"\r\n" in part and not version_of(part):
        raise BadHead("the request line must end in HTTP/1.1 or HTTP/1.0")
