"""Many logins at the same moment, each from an address of its own. One process, bare epoll.

Read by :mod:`benchmarks.doors` through :func:`start`, which hands a :class:`Storm` to ``python -m benchmarks.storm``.
Guarantees that all are sent in one go, each as soon as its connection is there, before any answer is read, and that
whatever is not a whole answer is counted by what happened.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.load import LoadError, percentile

_READ = 65536


@dataclass(frozen=True, slots=True)
class Storm:
    """What to send. Login *i* uses ``forms[i % len]`` and comes from 127.1.0.0 + *i*."""

    port: int
    count: int
    cookie: str
    """A pre-session's cookie; one does for all of them, as it would for one who attacks."""
    forms: list[dict[str, str]]
    at: float
    """When to connect, in seconds of the monotonic clock, which all processes of a machine share."""
    limit: float = 60.0
    """Seconds after which what is not answered counts as a failure."""


@dataclass(frozen=True, slots=True)
class Weather:
    """What came back: answers by status, failures by cause, milliseconds to an answer."""

    statuses: dict[str, int]
    errors: dict[str, int]
    seconds: float
    """From the sending to the last answer."""
    latency_p50: float | None
    latency_max: float | None


def start(storm: Storm) -> subprocess.Popen[str]:
    """Start the process; it connects and sends at ``storm.at``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.storm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(dataclasses.asdict(storm)))
    process.stdin.close()
    return process


def result(process: subprocess.Popen[str]) -> Weather:
    """Wait for its end.

    :raises LoadError: it failed; what it wrote is on stderr.
    """
    assert process.stdout is not None
    text = process.stdout.read()
    if process.wait():
        raise LoadError(f"the storm of logins exited {process.returncode}")
    return Weather(**json.loads(text))


def _address(number: int) -> str:
    return f"127.1.{number // 250}.{number % 250 + 1}"


def _socket(number: int) -> socket.socket:
    sock = socket.socket()
    sock.bind((_address(number), 0))
    return sock


def _request(storm: Storm, number: int) -> bytes:
    data = urlencode(storm.forms[number % len(storm.forms)]).encode()
    head = (
        "POST /login HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{storm.port}\r\n"
        f"Origin: http://127.0.0.1:{storm.port}\r\n"
        f"Cookie: {storm.cookie}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + data


def run(storm: Storm, first: int = 0) -> Weather:
    """Wait, connect, send, read every answer to its end; addresses are counted from ``first`` on."""
    errors: dict[str, int] = {}
    statuses: dict[str, int] = {}
    latencies: list[float] = []
    waiting: dict[int, tuple[socket.socket, bytearray]] = {}

    def failed(what: str, times: int = 1) -> None:
        errors[what] = errors.get(what, 0) + times

    poll = select.epoll()
    ready = [(_socket(first + number), _request(storm, number)) for number in range(storm.count)]
    time.sleep(max(0.0, storm.at - time.monotonic()))
    begun = last = time.perf_counter()
    for sock, request in ready:
        try:
            sock.connect(("127.0.0.1", storm.port))  # to the listener's queue, which takes them all
            sock.sendall(request)  # far below the buffer of a new connection
        except OSError as problem:
            failed(f"sending failed: {problem.strerror}")
            sock.close()
            continue
        sock.setblocking(False)
        waiting[sock.fileno()] = (sock, bytearray())
        poll.register(sock.fileno(), select.EPOLLIN)
    while waiting and time.perf_counter() - begun < storm.limit:
        for fd, _ in poll.poll(0.2):
            sock, seen = waiting[fd]
            try:
                piece = sock.recv(_READ)
            except OSError as problem:
                failed(f"reading failed: {problem.strerror}")
                waiting.pop(fd)[0].close()
                continue
            if piece:
                seen += piece
                continue
            last = time.perf_counter()
            waiting.pop(fd)[0].close()
            if seen.startswith(b"HTTP/1.1 "):
                status = seen[9:12].decode()
                statuses[status] = statuses.get(status, 0) + 1
                latencies.append((last - begun) * 1000)
            else:
                failed("closed without an answer")
    if waiting:
        failed("no answer in time", len(waiting))
    return Weather(
        statuses, errors, last - begun, percentile(latencies, 0.5), max(latencies) if latencies else None
    )


def main() -> int:
    """Read a storm from stdin, write its result to stdout."""
    given: dict[str, Any] = json.loads(sys.stdin.read())
    os.nice(10)  # a thousand browsers have machines of their own, and take nothing from ours
    sys.stdout.write(json.dumps(dataclasses.asdict(run(Storm(**given)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
