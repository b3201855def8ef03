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


#: IPv4 that is no public host's: IANA's special-purpose registry, 6to4's relays, and the address under which
#: Azure's own services answer every virtual machine.
_SPECIAL_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
#: The only block of IPv6 that is given to hosts of the Internet, and what in it is not theirs: tunnels that carry
#: IPv4 (Teredo, 6to4), benchmarks, documentation. Mapped IPv4, NAT64, link-local and the like lie outside.
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6 = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))
)


def is_public(address: Address) -> bool:
    """Whether an address is one of a host on the Internet, so that asking it reaches nothing private.

    Not by ``is_global``, whose answer has changed between versions of Python.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_IPV4)
    return address in _PUBLIC_IPV6 and not any(address in network for network in _SPECIAL_IPV6)
