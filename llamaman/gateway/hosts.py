"""Which host names are ours, so that a page that took over a name (DNS rebinding) gets nowhere. Pure.

Read by the gate for every request without a valid key; a rebound page has no key. A name that an attacker can
make point here is a public one, so addresses, single labels and the suffixes of private networks pass.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from llamaman.errors import Misdirected

VARIABLE = "LLAMAMAN_ALLOWED_HOSTS"
_PRIVATE = (".localhost", ".local", ".lan", ".internal", ".home.arpa")


def name_of(host: str) -> str:
    """The name or address in a Host value: no port, no brackets, no final dot, lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".").lower()


def own_names(names: Iterable[str | None]) -> frozenset[str]:
    """Names of this service from wherever they are known (variables, host name), to be given to :func:`check_host`."""
    return frozenset(name_of(name) for name in names if name)


@lru_cache(maxsize=1024)
def is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host value (lower case) names this service."""
    name = name_of(host)
    if "." not in name or name.endswith(_PRIVATE) or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_host(host: str, names: frozenset[str]) -> None:
    """Let a request pass.

    :raises Misdirected: the name is not ours; the message holds what to set if it should be.
    """
    if not is_ours(host, names):
        name = name_of(host)
        raise Misdirected(
            f"'{name}' is not known as a name of this LlamaMan. If it is one, set {VARIABLE}={name} (several are "
            "separated by commas) and restart; requests with a valid API key are served under any name"
        )
