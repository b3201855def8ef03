"""Whether every port that LlamaMan needs is free, or is its own."""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Iterable
from pathlib import Path

from llamaman.core.config import Config
from llamaman.doctor.finding import Finding, fail, ok, skip, warn
from llamaman.gateway.listeners import Listeners, PortTaken

CHECK = "ports"
_LISTEN = "0A"  # the state TCP_LISTEN in /proc/net/tcp
_HEALTH_S = 2.0
_SHOWN = 5
_WHO = "'ss -ltnp' shows by which program"


def check_ports_to_be(config: Config) -> list[Finding]:
    """Before a start: each port is really listened on for a moment."""
    found = []
    for variable, port in _own_ports(config):
        reason = _taken(config.host, port)
        if reason is None:
            found.append(ok(CHECK, f"{variable} {port} on {config.host} is free"))
        elif _is_llamaman(port):
            what = f"{variable} {port} is held by a LlamaMan that does not answer to this account"
            found.append(
                fail(CHECK, what, f"run this as the account it runs under, or set another {variable}")
            )
        else:
            found.append(fail(CHECK, f"{variable}: {reason}", f"{_WHO}; or set another {variable}"))
    for name, ports, host in _ranges(config):
        found.append(_range(name, ports, [port for port in ports if _taken(host, port)]))
    return found


def check_ports_in_use(
    config: Config, engine_ports: frozenset[int], proc: Path = Path("/proc")
) -> list[Finding]:
    """While we serve. Read from the kernel's tables alone: to try a port would take it from a launch.

    :param engine_ports: the ports of running engines.
    """
    listening = listeners(proc)
    if listening is None:
        return [skip(CHECK, "this system shows no list of listening sockets (/proc/net/tcp)")]
    own = _own_sockets(proc)
    found = []
    for variable, port in _own_ports(config):
        holders = listening.get(port, frozenset())
        if holders & own:
            found.append(ok(CHECK, f"{variable} {port} is served by this manager"))
        else:
            what = f"{variable} {port} is not served by this manager" + (
                ", but by another program" if holders else ""
            )
            found.append(fail(CHECK, what, "restart the manager, and read its log if that does not help"))
    for name, ports, _ in _ranges(config):
        foreign = [
            port
            for port in ports
            if port in listening and not listening[port] & own and port not in engine_ports
        ]
        found.append(_range(name, ports, foreign))
    return found


def listeners(proc: Path = Path("/proc")) -> dict[int, frozenset[int]] | None:
    """Every TCP port that somebody listens on, with the inodes of the sockets; None where nobody can tell."""
    found: dict[int, frozenset[int]] = {}
    readable = False
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue  # no IPv6 here, or no /proc
        readable = True
        for line in lines:
            words = line.split()
            if len(words) > 9 and words[3] == _LISTEN:
                port = int(words[1].rpartition(":")[2], 16)
                found[port] = found.get(port, frozenset()) | {int(words[9])}
    return found if readable else None


def _own_sockets(proc: Path) -> frozenset[int]:
    inodes = set()
    for file in (proc / "self" / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(file)
            if target.startswith("socket:["):
                inodes.add(int(target[len("socket:[") : -1]))
    return frozenset(inodes)


def _own_ports(config: Config) -> tuple[tuple[str, int], ...]:
    return (("LLAMAMAN_PORT", config.port), ("LLAMAMAN_PROXY_PORT", config.proxy_port))


def _ranges(config: Config) -> Iterable[tuple[str, range, str]]:
    yield "PORT_RANGE", range(config.port_range_start, config.port_range_end + 1), config.host
    internal = range(config.internal_port_range_start, config.internal_port_range_end + 1)
    yield "INTERNAL_PORT_RANGE", internal, "127.0.0.1"


def _range(name: str, ports: range, taken: list[int]) -> Finding:
    span = f"{name} {ports.start}-{ports.stop - 1}"
    if not taken:
        return ok(CHECK, f"{span}: no other program holds a port of it")
    cure = f"{_WHO}; or move {name}_START and {name}_END"
    if len(taken) == len(ports):
        return fail(CHECK, f"{span}: other programs hold all of it, so no model can be launched", cure)
    shown = ", ".join(map(str, taken[:_SHOWN])) + (", ..." if len(taken) > _SHOWN else "")
    return warn(CHECK, f"{span}: other programs hold {len(taken)} of {len(ports)} ports ({shown})", cure)


def _taken(host: str, port: int) -> str | None:
    try:
        Listeners.reserve(host, port).close()
    except PortTaken as error:
        return error.reason
    return None


def _is_llamaman(port: int) -> bool:
    """Whether a manager answers there: nothing else asks strangers for a key at this path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_HEALTH_S)
    try:
        connection.request("GET", "/api/llamaman/version")
        return connection.getresponse().status == 401
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
