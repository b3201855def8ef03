"""Where a request really comes from: the client's address, scheme and host behind reverse proxies. Pure.

Read by the gate. ``X-Forwarded-*`` is what anybody may send, so it counts only when the connection comes from an
address in LLAMAMAN_TRUSTED_PROXIES, and only the part that trusted proxies wrote: lists are read from the right.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from llamaman.core.addresses import Address, parse_ip
from llamaman.gateway.heads import BadHead, host_text
from llamaman.gateway.origins import Origin

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Items of a list that are looked at. No request has come through as many proxies.
_LONGEST_CHAIN = 32
_PROXY_HEADERS = frozenset({b"forwarded", b"via", b"x-real-ip"})


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """What is known of the other end.

    :ivar address: the client's address without a port; None on a unix socket.
    :ivar secure: the client's own connection is encrypted.
    :ivar host: the host, with a port if one was named, that the client asked; lower case.
    :ivar via_proxy: some proxy, trusted or not, says that it stands between.
    """

    address: str | None
    secure: bool
    host: str
    via_proxy: bool


def client_facts(
    peer: str | None,
    host: str,
    named: Mapping[bytes, bytes],
    *,
    trusted: tuple[Network, ...] = (),
    public: Origin | None = None,
) -> ClientFacts:
    """Judge one request head.

    :param peer: the address of the connection's other end.
    :param host: the Host header.
    :param named: the head's deciding headers, repeated ones joined with commas.
    :param trusted: LLAMAMAN_TRUSTED_PROXIES.
    :param public: LLAMAMAN_PUBLIC_URL; a request to its authority is as secure as its scheme says.
    """
    via_proxy = any(name in _PROXY_HEADERS or name.startswith(b"x-forwarded-") for name in named)
    address, secure = peer, False
    if via_proxy and peer is not None and _is_trusted(peer, trusted):
        address, hops = _walk(peer, named.get(b"x-forwarded-for"), trusted)
        secure = _at(named.get(b"x-forwarded-proto"), hops).lower() == "https"
        host = _valid_host(_at(named.get(b"x-forwarded-host"), hops)) or host
    if public is not None and public.scheme == "https" and public.is_authority_of(host):
        secure = True
    return ClientFacts(address, secure, host, via_proxy)


@lru_cache(maxsize=1024)
def parse_address(text: str) -> Address | None:
    """An address, IPv6 in brackets or not, with a port or not; None when it is something else.

    IPv4 addresses that are written as IPv6 become IPv4; zones (``%eth0``) are dropped.
    """
    text = text.strip()
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    return parse_ip(text)


def is_loopback(peer: str | None) -> bool:
    """Whether an address is this machine's own."""
    address = parse_address(peer) if peer else None
    return address is not None and address.is_loopback


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


@lru_cache(maxsize=1024)
def _is_trusted(text: str, trusted: tuple[Network, ...]) -> bool:
    address = parse_address(text)
    return address is not None and any(address in network for network in trusted)


def _items(value: bytes | None) -> list[str]:
    """The last items of a comma-separated header, first to last; empty ones are none."""
    found = (value or b"").decode("latin-1").rsplit(",", _LONGEST_CHAIN)
    return [item.strip() for item in found[-_LONGEST_CHAIN:] if item.strip()]


def _walk(peer: str, value: bytes | None, trusted: tuple[Network, ...]) -> tuple[str, int]:
    """The client's address, and how many trusted proxies stand between it and our peer.

    Each proxy adds whom it got the request from, so the walk begins at the right and ends with the first
    that is not trusted. What no address is ends it too: it says nothing of who is behind that proxy.
    """
    found, hops = peer, 0
    for item in reversed(_items(value)):
        address = parse_address(item)
        if address is None:
            return found, hops
        found = str(address)
        if not _is_trusted(found, trusted):
            return found, hops
        hops += 1
    return found, max(hops - 1, 0)


def _at(value: bytes | None, hops: int) -> str:
    """What the proxy nearest to the client said: lists grow on the right, one item per proxy that adds any."""
    items = _items(value)
    return items[max(len(items) - 1 - hops, 0)] if items else ""


def _valid_host(text: str) -> str | None:
    try:
        return host_text(text.encode("latin-1"))
    except BadHead:
        return None
