"""Addresses: how they are read, what counts as one client, which are this machine's own. Pure.

Read by the throttle, the door and the doctor.
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_ip(text: str) -> Address | None:
    """A bare IP address, None for anything else. IPv4 written as IPv6 becomes IPv4; zones (``%eth0``) are dropped."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def client_network(address: Address) -> str:
    """What counts as one client: an IPv4 address, or the /64 that every IPv6 customer owns whole."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def is_loopback_host(host: str) -> bool:
    """Whether a name or address in lower case, IPv6 in brackets or not, means this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
