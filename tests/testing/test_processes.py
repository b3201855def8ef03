"""Ports for what a test starts: free, and nobody else's, though nobody listens on them yet."""

from __future__ import annotations

import socket
import subprocess
import sys

from llamaman.testing.processes import free_ports

#: Takes ports, says which, and goes on living, as a test does that has not started its server yet.
TAKER = (
    "import sys; from llamaman.testing.processes import free_ports; "
    "print(*[port for _ in range(20) for port in free_ports(18)], flush=True); sys.stdin.read()"
)


def test_they_are_consecutive_and_handed_out_once() -> None:
    first, second = free_ports(7), free_ports(7)
    assert first == list(range(first[0], first[0] + 7))
    assert not set(first) & set(second)


def test_processes_that_run_side_by_side_get_different_ones_before_anybody_listens() -> None:
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    taken = [set(map(int, ((taker.stdout and taker.stdout.readline()) or "").split())) for taker in takers]
    for taker in takers:
        taker.communicate()
    assert [len(ports) for ports in taken] == [360] * 3
    assert len(set().union(*taken)) == 3 * 360, "one port was given to two processes"


def test_a_port_that_somebody_listens_on_is_not_handed_out() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port + 1)):
        assert port + 1 not in free_ports(3)
