"""Whose process holds the other end of a loopback connection, as the operating system's tables say.

Read by the gate, for ``/setup`` alone: who already runs programs under our account, or root's, needs no code to
become the first user. Blocks for as long as it takes to read the table of connections.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable
from pathlib import Path

from llamaman.core.addresses import parse_ip

#: proc_net_tcp(5): addresses are words in the byte order of the machine, states are the kernel's numbers.
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
#: Other states show uid 0 for sockets that no process holds any more.
_ESTABLISHED = "01"

End = tuple[str, int]


def owner_of(peer: End, local: End, tables: Iterable[Path] = TABLES) -> int | None:
    """The uid that holds ``peer``'s end of the connection to ``local``; None when nobody can tell.

    :param peer: address and port of the other end. :param local: of our end.
    """
    wanted = (_plain(peer[0]), peer[1]), (_plain(local[0]), local[1])
    for table in tables:
        try:
            lines = table.read_text("ascii").splitlines()[1:]
        except OSError:  # no such table: another operating system, or no IPv6
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _ESTABLISHED and (_end(fields[1]), _end(fields[2])) == wanted:
                return int(fields[7])
    return None


def _plain(address: str) -> str:
    return str(parse_ip(address))


def _end(field: str) -> End:
    address, _, port = field.partition(":")
    raw = bytes.fromhex(address)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return _plain(str(ipaddress.ip_address(raw))), int(port, 16)
