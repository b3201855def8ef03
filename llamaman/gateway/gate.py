"""The one place where a request's head is judged: who asks, from where, and whether a browser was misused for it.

Read by the front door and the pipeline, before any body is read. Everything here is answered from memory on the
event loop, except :meth:`Gate.confirm_owner`, which looks at the operating system's tables in a thread.

A valid API key is enough: a page that takes over a host name, or a cookie, has none. Without one the host name
must be ours; only then, and only on the management listener, cookies are looked at.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import quote

from llamaman.core.accounts.cookies import cookie_name, presession_name, values
from llamaman.core.api_keys import is_placeholder
from llamaman.errors import Forbidden, LlamaManError
from llamaman.gateway.admin_socket import admin_identity
from llamaman.gateway.caller import Caller
from llamaman.gateway.client_address import ClientFacts, Network, client_facts, is_loopback
from llamaman.gateway.cross_site import READING, check_change, check_form, check_read, is_form_page, is_setup
from llamaman.gateway.hosts import check_host, is_ours, name_of, own_names
from llamaman.gateway.origins import (
    answer_headers,
    brings_key,
    is_allowed,
    listed_origins,
    origin_of_url,
    preflight_headers,
    requested_headers,
)
from llamaman.gateway.peer_owner import owner_of
from llamaman.gateway.request import Request
from llamaman.records import NOBODY, Identity

_API = ("/api/", "/v1/")


class Keyring(Protocol):
    """The API keys."""

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Identity:
        """The caller behind a key, NOBODY without one. Raises Unauthorized."""


class SessionBook(Protocol):
    """The sessions, from memory."""

    def authenticate(self, values: Sequence[str]) -> Identity | None:
        """The one live session among the values of our cookie. Raises Unauthorized when there are two."""

    def csrf_token(self, session_id: str) -> str:
        """What a changing request of it must carry. Raises Unauthorized when it has ended."""

    def presession_csrf(self, value: str) -> str:
        """What a form must hold that was shown with this pre-session cookie."""


class UserBook(Protocol):
    """The users, from memory."""

    def exists(self) -> bool:
        """Whether there is any."""


class People(Protocol):
    """Users and their sessions."""

    @property
    def users(self) -> UserBook:
        """The users."""

    @property
    def sessions(self) -> SessionBook:
        """Their sessions."""


@dataclass(frozen=True, slots=True)
class GateParts:
    """What the gate works with.

    :ivar accounts: None where there are no users (tests of the door alone).
    :ivar install_id: names our cookies.
    :ivar host_names: what this machine calls itself.
    """

    keys: Keyring
    require_auth: Callable[[], bool]
    accounts: People | None = None
    install_id: str = ""
    trusted_proxies: tuple[Network, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    public_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()


class Gate:
    """Judges heads; holds no state of its own."""

    def __init__(self, parts: GateParts) -> None:
        self._parts = parts
        self._keys = parts.keys
        self._public = origin_of_url(parts.public_url) if parts.public_url else None
        public_host = self._public.host if self._public else None
        self._names = own_names([*parts.allowed_hosts, *parts.host_names, public_host])
        self._listed = listed_origins(parts.cors_origins) | ({self._public} if self._public else set())
        self._cookie = {secure: cookie_name(parts.install_id, secure) for secure in (False, True)}
        self._precookie = {secure: presession_name(parts.install_id, secure) for secure in (False, True)}

    # --- who asks ------------------------------------------------------------------------------------

    def identify(self, request: Request, *, shared: bool) -> Identity:
        """The caller of a request.

        :param shared: an inference or model-list route, which pages of other origins may ask (CORS).
        :raises Unauthorized: an invalid key, or two sessions. :raises Misdirected: a host name that is not ours.
        :raises Forbidden: another page uses a session, or asks for inference that no key protects.
        """
        surface = request.surface.name
        if surface == "admin":
            return admin_identity(request.peer_uid)
        head = request.head
        named = head.named
        if self._parts.trusted_proxies:
            request.address = self.facts(request).address
        try:
            identity = self._keys.authenticate(named.items())
        except LlamaManError:
            if not shared or self._parts.require_auth() or not is_placeholder(named.items()):
                if shared and b"origin" in named and self._may_ask(request, named[b"origin"]):
                    request.extra_headers += answer_headers(named[b"origin"])  # so that the page can say why
                raise
            identity = NOBODY
        if identity.kind != "none":
            request.vouch()
            if shared and b"origin" in named:
                request.extra_headers += answer_headers(named[b"origin"])
            return identity
        check_host(self._host(request), self._names)
        if surface == "manage":
            session = self._session(request)
            if session is not None:
                return session
        if shared and b"origin" in named:
            self._share(request, named[b"origin"])
        return NOBODY

    def check_name(self, request: Request) -> None:
        """For answers that anybody may have: the host name must be ours all the same.

        :raises Misdirected: it is not. :raises Unauthorized: it is not, and the key is invalid.
        """
        if request.surface.name == "admin" or is_ours(self._host(request), self._names):
            return
        if self._keys.authenticate(request.head.named.items()).kind == "none":
            check_host(self._host(request), self._names)

    def preflight(self, request: Request, methods: Iterable[str]) -> list[tuple[bytes, bytes]]:
        """The headers of the 204 to a preflight of a shared route; sets the request's own headers, too.

        A preflight never carries the key of the request that it announces, so what announces one passes.

        :param methods: the shared methods of the path.
        :raises Misdirected: a host name that is not ours. :raises Forbidden: an origin that may not ask.
        """
        named = request.head.named
        names = requested_headers(named.get(b"access-control-request-headers"))
        if brings_key(names):
            request.extra_headers += answer_headers(named[b"origin"])
        else:
            check_host(self._host(request), self._names)
            self._share(request, named[b"origin"])
        asks = named.get(b"access-control-request-private-network", b"").lower() == b"true"
        # Public pages reach private addresses only if they are allowed for themselves, not for the key they bring.
        private = asks and self._may_ask(request, named[b"origin"])
        return preflight_headers(methods, names, private_network=private)

    # --- what else is known of the caller ------------------------------------------------------------

    def facts(self, request: Request) -> ClientFacts:
        """Address, scheme and host of the client."""
        head, peer = request.head, request.peer
        return client_facts(
            peer[0] if peer else None,
            head.host,
            head.named,
            trusted=self._parts.trusted_proxies,
            public=self._public,
        )

    def caller(self, request: Request, identity: Identity) -> Caller:
        """The caller as Flask is told.

        :raises Unauthorized: the session has ended meanwhile.
        """
        surface = request.surface.name
        facts = self.facts(request)
        if surface == "admin":
            return Caller(identity, surface, facts.address)
        csrf = self._form_token(request, identity, facts) if surface == "manage" else None
        return Caller(identity, surface, facts.address, facts.secure, csrf, host=facts.host)

    async def confirm_owner(self, request: Request, caller: Caller) -> Caller:
        """The same caller, marked as the machine's owner where ``/setup`` needs to know and it is one.

        A proxy between us, or a name that is not this machine's own, and the other end of the connection says
        nothing about who really asks.
        """
        accounts, peer, local = self._parts.accounts, request.peer, request.local
        if (
            accounts is None
            or peer is None
            or local is None
            or local[1] is None
            or caller.surface != "manage"
            or not is_setup(request.head.path)
            or self.facts(request).via_proxy
            or not is_loopback(peer[0])
            or not _is_loopback_name(name_of(request.head.host))
            or accounts.users.exists()
        ):
            return caller
        uid = await asyncio.to_thread(owner_of, peer, (local[0], local[1]))
        return replace(caller, owns_machine=uid in (0, os.geteuid()))

    def login_page(self, request: Request) -> str | None:
        """Where a stranger's browser is sent who asked for a page; None for API calls and other programs."""
        head = request.head
        accounts = self._parts.accounts
        if accounts is None or request.surface.name != "manage" or head.method not in READING:
            return None
        if head.path.startswith(_API) or not _takes_html(head.headers):
            return None
        if not accounts.users.exists():
            return "/setup"
        wanted = quote(head.path) + ("?" + head.query.decode("latin-1") if head.query else "")
        return "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='/')}"

    # --- inside --------------------------------------------------------------------------------------

    def _host(self, request: Request) -> str:
        return self.facts(request).host if self._parts.trusted_proxies else request.head.host

    def _session(self, request: Request) -> Identity | None:
        """The session behind the cookie, if the request may use it."""
        head, accounts = request.head, self._parts.accounts
        cookie = head.named.get(b"cookie") if accounts else None
        is_form = head.method not in READING and is_form_page(head.path)
        if cookie is None and not is_form:
            return None
        facts = self.facts(request)
        session: Identity | None = None
        if cookie is not None and accounts is not None:
            found = values(cookie, self._cookie[facts.secure])
            session = accounts.sessions.authenticate(found) if found else None
        if is_form:
            check_form(head.named, facts, self._public)
        elif session is not None and session.session is not None and accounts is not None:
            if head.method in READING:
                check_read(head.named, facts, self._public, page=not head.path.startswith(_API))
            else:
                token = accounts.sessions.csrf_token(session.session)
                check_change(head.named, facts, self._public, token)
        return session

    def _form_token(self, request: Request, identity: Identity, facts: ClientFacts) -> str | None:
        accounts = self._parts.accounts
        if accounts is None:
            return None
        if identity.session is not None:
            return accounts.sessions.csrf_token(identity.session)
        cookie = request.head.named.get(b"cookie")
        if identity.kind != "none" or cookie is None:
            return None
        found = values(cookie, self._precookie[facts.secure])
        # A neighbour's script can plant one for a longer path, which is sent first; it cannot replace ours.
        return accounts.sessions.presession_csrf(found[-1]) if found else None

    def _may_ask(self, request: Request, origin: bytes) -> bool:
        """Whether a page of this origin may ask for inference with what protects inference now."""
        if self._parts.require_auth():
            return True
        return is_allowed(origin.decode("latin-1"), self._host(request), self._listed)

    def _share(self, request: Request, origin: bytes) -> None:
        if not self._may_ask(request, origin):
            shown = origin.decode("latin-1")[:200]
            raise Forbidden(
                f"pages of the origin {shown} may not use this without an API key; add it to "
                "LLAMAMAN_CORS_ORIGINS, send a key, or turn require_auth on"
            )
        request.extra_headers += answer_headers(origin)


def _is_loopback_name(name: str) -> bool:
    return name == "localhost" or is_loopback(name)


def _takes_html(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"accept" and b"text/html" in value.lower() for name, value in headers)
