"""Fetching what somebody else has named, without becoming their way into this network. Blocking; runs on a thread.

Read by whatever fetches from the Internet: media of requests, model files, update checks. A URL and every redirect
is judged anew: https only, a host all of whose addresses are public, none of them this machine's, and the
connection goes to an address that was judged, not to a name that is looked up again. Credentials never reach
a second origin. Size, time and silence are bounded.

Behind a configured HTTP proxy names are looked up by the proxy, so there a list of hosts takes the place of the
check of addresses.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urljoin, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH, should_bypass_proxies

from llamaman.core.addresses import Address, is_public, parse_ip
from llamaman.core.safe_url import Origin, Target, UrlRefused, check_target, parse_url
from llamaman.errors import LlamaManError
from llamaman.version import __version__

MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SECRETS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})
_CHUNK = 64 << 10

#: Host and port -> its addresses; raises OSError.
Resolve = Callable[[str, int], list[str]]


class FetchFailed(LlamaManError):
    """The other end could not be reached, or did not answer as it should."""

    status = 502
    code = "fetch_failed"


class FetchTooLarge(FetchFailed):
    """There is more than the caller wants."""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class Rules:
    """What a fetch may do.

    :ivar most_bytes: of the body; more is refused, by its declared length before a byte is read.
    :ivar deadline_s: from the first look-up to the last byte, redirects included; None for no end.
    :ivar stall_s: without a byte from the other end.
    :ivar trusted: origins that the administrator has named: plain HTTP, private addresses and any port are theirs.
    :ivar hosts: when not empty, no other host than these and the trusted ones is asked. Behind a proxy an empty one
        leaves the trusted ones alone.
    """

    most_bytes: int
    deadline_s: float | None
    stall_s: float
    trusted: frozenset[Origin] = frozenset()
    hosts: frozenset[str] = frozenset()
    redirects: int = MOST_REDIRECTS
    resolve: Resolve = field(default=resolve, repr=False)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole body. ``url`` is where it was found in the end; ``content_type`` is what its host says, or ""."""

    url: str
    content_type: str
    data: bytes


def safe_fetch(url: str, rules: Rules, headers: Mapping[str, str] | None = None) -> Fetched:
    """Fetch a URL into memory.

    :raises UrlRefused: it, or where it leads, may not be asked. :raises FetchFailed: it could not be had.
    """
    with Fetch(url, rules, headers) as fetch:
        if fetch.status != 200:
            raise FetchFailed(f"{fetch.origin} answered {fetch.status}")
        data = b"".join(fetch.chunks())
        return Fetched(fetch.url, fetch.headers.get("content-type", ""), data)


class Fetch:
    """One fetch whose body is read piece by piece; a context manager.

    :ivar status: the final answer's, which is no redirect. :ivar headers: the final answer's, names in lower case.
    :ivar url: where it was found. :ivar origin: the same without its path, for messages.
    """

    def __init__(self, url: str, rules: Rules, headers: Mapping[str, str] | None = None) -> None:
        self._rules = rules
        self._until = None if rules.deadline_s is None else time.monotonic() + rules.deadline_s
        self._connection: http.client.HTTPConnection | None = None
        self._timer: threading.Timer | None = None
        try:
            target = self._follow(parse_url(url), dict(headers or {}))
        except BaseException:
            self.close()
            raise
        self.url = str(target)
        self.origin = str(target.origin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, at whatever point it is."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.close()

    def chunks(self) -> Iterator[bytes]:
        """The body.

        :raises FetchTooLarge: more than wanted. :raises FetchFailed: it broke off, or took too long.
        """
        declared = self._answer.length
        most = self._rules.most_bytes
        if declared is not None and declared > most:
            raise FetchTooLarge(f"{self.origin} declares {declared} bytes; the most is {most}")
        received = 0
        while True:
            with self._explained(self.origin):
                piece = self._answer.read1(_CHUNK)
            self._check_time(self.origin)
            if not piece:
                break
            received += len(piece)
            if received > most:
                raise FetchTooLarge(f"{self.origin} sends more than {most} bytes")
            yield piece
        if declared is not None and received != declared:
            raise FetchFailed(f"{self.origin} broke off after {received} of {declared} bytes")

    # --- inside --------------------------------------------------------------------------------------

    def _follow(self, target: Target, headers: dict[str, str]) -> Target:
        """Ask, and go where redirects lead; the target of the final answer, which is then in ``_answer``."""
        sent = {"User-Agent": f"LlamaMan/{__version__}", **headers, "Accept-Encoding": "identity"}
        for _ in range(self._rules.redirects + 1):
            self._ask(target, sent)
            location = self._answer.getheader("location")
            if self._answer.status not in _REDIRECTS or location is None:
                self.status = self._answer.status
                self.headers = {name.lower(): value for name, value in self._answer.getheaders()}
                if self.headers.get("content-encoding", "identity").lower() != "identity":
                    raise FetchFailed(f"{target.origin} sends a compressed body, which was not asked for")
                return target
            self.close()
            following = parse_url(urljoin(str(target), location))
            if following.origin != target.origin:
                sent = {name: value for name, value in sent.items() if name.lower() not in _SECRETS}
            target = following
        raise FetchFailed(
            f"there are more than {self._rules.redirects} redirects, the last to {target.origin}"
        )

    def _ask(self, target: Target, headers: Mapping[str, str]) -> None:
        origin = target.origin
        with self._explained(str(origin)):
            self._connection = connection = self._connect(target)
            assert connection.sock is not None
            self._watch(connection.sock)
            sent = {**headers, "Host": origin.authority, "Connection": "close"}
            if isinstance(connection, _Forwarding):
                connection.request("GET", str(target), headers={**sent, **connection.credentials})
            else:
                connection.request("GET", target.path, headers=sent)
            self._answer = connection.getresponse()
        self._check_time(str(origin))

    def _connect(self, target: Target) -> http.client.HTTPConnection:
        rules, origin = self._rules, target.origin
        check_target(target, rules.trusted)
        trusted = origin in rules.trusted
        if rules.hosts and not trusted and origin.host not in rules.hosts:
            raise UrlRefused(f"{origin.host} is not among the hosts that may be asked")
        proxy = _proxy_for(origin)
        if proxy is None:
            return self._direct(origin, check=not trusted)
        if not trusted and origin.host not in rules.hosts:
            raise UrlRefused(
                f"{origin.host} is not among the hosts that may be asked; behind an HTTP proxy they have to be listed"
            )
        return _through_proxy(proxy, target, self._patience())

    def _direct(self, origin: Origin, *, check: bool) -> http.client.HTTPConnection:
        """Connected to an address that was judged, with the name only for TLS and the request."""
        literal = parse_ip(origin.host)
        if check and literal is not None and not is_public(literal):
            raise UrlRefused(_not_public(origin))
        addresses = self._rules.resolve(origin.host, origin.port)
        if check and not all(_is_elsewhere(text, origin.port) for text in addresses):
            raise UrlRefused(_not_public(origin))
        sock = self._open(origin, addresses)
        connection = http.client.HTTPConnection(origin.host, origin.port, timeout=self._patience())
        if origin.scheme == "https":
            try:
                sock.settimeout(self._patience())  # which is for the whole handshake
                sock = _tls().wrap_socket(sock, server_hostname=origin.host)
            except BaseException:
                sock.close()
                raise
        connection.sock = sock
        return connection

    def _open(self, origin: Origin, addresses: list[str]) -> socket.socket:
        failure: OSError | None = None
        for address in addresses:
            try:
                return socket.create_connection((address, origin.port), timeout=self._patience())
            except OSError as error:
                failure = error
        raise failure or OSError("the name has no address")

    def _patience(self) -> float:
        """Seconds that one step may take."""
        if self._until is None:
            return self._rules.stall_s
        return max(0.001, min(self._rules.stall_s, self._until - time.monotonic()))

    def _watch(self, sock: socket.socket) -> None:
        """End the connection at the deadline, even if a byte comes now and then."""
        sock.settimeout(self._patience())
        if self._timer is not None:
            self._timer.cancel()
        if self._until is None:
            return
        self._timer = threading.Timer(max(0.0, self._until - time.monotonic()), _cut, [sock])
        self._timer.daemon = True
        self._timer.start()

    def _check_time(self, origin: str) -> None:
        if self._until is not None and time.monotonic() >= self._until:
            raise FetchFailed(f"{origin} took longer than {self._rules.deadline_s:g} s")

    @contextlib.contextmanager
    def _explained(self, origin: str) -> Iterator[None]:
        """Turn what sockets, TLS and HTTP raise into an error that says what happened, to whom."""
        try:
            yield
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._check_time(origin)
            if isinstance(error, TimeoutError):
                raise FetchFailed(f"{origin} was silent for {self._rules.stall_s:g} s") from error
            if isinstance(error, socket.gaierror):
                raise FetchFailed(f"the name of {origin} is not known here ({error.strerror})") from error
            raise FetchFailed(f"{origin} could not be asked: {error or type(error).__name__}") from error


def _not_public(origin: Origin) -> str:
    return f"{origin.host} is not fetched from: it is not, or not only, a host of the public Internet"


def _is_elsewhere(text: str, port: int) -> bool:
    """Whether an address is public and not one of this machine's own, whose services may trust it."""
    try:
        address = parse_ip(text) if "%" not in text else None
    except ValueError:
        address = None
    return address is not None and is_public(address) and not _is_own(address, port)


def _is_own(address: Address, port: int) -> bool:
    """Whether this machine would talk to itself: then the system picks that very address to speak from."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), port))  # of a datagram socket: looks for a route, sends nothing
            return str(probe.getsockname()[0]) == str(address)
        except OSError:
            return False  # no way there; connecting will say so


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The certificates of the system, and Mozilla's for systems that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


# --- proxies ------------------------------------------------------------------------------------------


def _proxy_for(origin: Origin) -> str | None:
    """The proxy that the environment names for an origin: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY."""
    if should_bypass_proxies(str(origin), no_proxy=None):
        return None
    proxies = urllib.request.getproxies_environment()
    return proxies.get(origin.scheme) or proxies.get("all")


def _through_proxy(proxy: str, target: Target, timeout: float) -> http.client.HTTPConnection:
    """Connected to a proxy, and for https through it to the origin."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise FetchFailed("the configured proxy is no http:// URL; set HTTPS_PROXY to one")
    credentials = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials["Proxy-Authorization"] = "Basic " + b64encode(pair.encode()).decode()
    origin = target.origin
    address = (parts.hostname, parts.port or 80)
    connection: http.client.HTTPConnection
    if origin.scheme == "https":
        connection = http.client.HTTPSConnection(*address, timeout=timeout, context=_tls())
        connection.set_tunnel(origin.host, origin.port, headers=credentials)
    else:
        connection = _Forwarding(*address, timeout=timeout)
        connection.credentials = credentials
    connection.connect()
    return connection


class _Forwarding(http.client.HTTPConnection):
    """A connection to a proxy that is asked for whole URLs."""

    credentials: Mapping[str, str] = {}
