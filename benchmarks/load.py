"""The load generator: one process, bare epoll, exact counts.

Read by :mod:`benchmarks.columns` through :func:`run`, which starts ``python -m benchmarks.load`` with a
:class:`Job` as JSON on stdin and reads a :class:`Result` as JSON from stdout: a generator inside the
reporting process would share its interpreter lock. Guarantees that every answer is parsed by an HTTP parser
(httptools, so a proxy may re-chunk as it likes), that a Server-Sent Event is counted once even when it
straddles reads, and that whatever is not a complete 200 is counted under ``errors`` by what happened.

It is not the bottleneck. Beside wrk (1 thread, 16 connections, five interleaved pairs of runs on two cores)
its rate was 1.05 of wrk's against the stand-in alone (0.91-1.18; 65,000-68,000 req/s) and 1.11 through
nginx (0.82-1.54; 26,000-47,000 req/s, where it took 0.42-0.48 of a core). ``cpu`` in every result is its
own share of one core, so that a saturated generator shows.
"""

from __future__ import annotations

import dataclasses
import gc
import heapq
import json
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httptools

Mode = Literal["calls", "paced"]
EVENT = "data: "


@dataclass(frozen=True, slots=True)
class Job:
    """What to send and how. Times are seconds."""

    mode: Mode
    """``calls``: each connection asks again as soon as it was answered, streamed or not; ``paced``: each
    connection asks once, the starts spread over ``stagger``, and the job ends with the last answer or after
    ``seconds``."""
    port: int
    path: str
    bodies: list[str]
    """JSON texts; connection *i* sends number ``i % len``."""
    connections: int
    seconds: float
    warmup: float = 0.0
    stagger: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    pattern: str = EVENT
    """What each event of a stream has once."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came back. Latencies are milliseconds; a list that saw nothing has null percentiles."""

    answers: int
    events: int
    seconds: float
    latency_p50: float | None
    latency_p99: float | None
    ttft_p50: float | None
    """From the first attempt to connect, or from sending on a kept connection, to the first event."""
    ttft_p99: float | None
    cpu: float
    """The generator's own share of one core."""
    connects: int
    """Connections opened; more than the job's means that the other side did not keep them."""
    errors: dict[str, int]
    gap_p50: float | None = None
    """Between an event (or some that came together) and the next one of its stream; of paced jobs alone."""
    gap_p99: float | None = None
    gap_max: float | None = None

    @property
    def answers_per_second(self) -> float:
        """Complete answers in the measured window, by its length."""
        return self.answers / self.seconds

    @property
    def events_per_second(self) -> float:
        """Server-Sent Events in the measured window, by its length."""
        return self.events / self.seconds


class LoadError(Exception):
    """The generator itself failed; the text is what it wrote."""


def run(job: Job) -> Result:
    """Run ``job`` in its own process and wait for it.

    :raises LoadError: it died or outlived its time by a minute.
    """
    command = [sys.executable, "-m", "benchmarks.load"]
    root = Path(__file__).resolve().parent.parent
    limit = job.seconds + job.warmup + job.stagger + 60
    text = json.dumps(dataclasses.asdict(job))
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, cwd=root, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise LoadError(f"the load generator was still running after {limit:.0f} s") from late
    if done.returncode:
        raise LoadError(f"the load generator exited {done.returncode}: {done.stderr[-2000:]}")
    return Result(**json.loads(done.stdout))


def percentile(values: list[float], share: float) -> float | None:
    """The nearest-rank percentile, null for an empty list; ``values`` need not be sorted."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client:
    """One connection; the parser calls the ``on_`` methods."""

    __slots__ = (
        "begun",
        "events",
        "fd",
        "gaps",
        "keep",
        "last",
        "parser",
        "pattern",
        "request",
        "rest",
        "seen",
        "sock",
        "state",
        "status",
        "tail",
    )

    def __init__(self, request: bytes, pattern: str = EVENT, gaps: list[float] | None = None) -> None:
        self.request = request
        self.pattern = pattern.encode()
        self.gaps = gaps  # milliseconds between events; null: nobody wants them
        self.last = 0.0
        self.state: Literal["idle", "connecting", "waiting", "answered", "over"] = "idle"
        self.fd = -1
        self.sock: socket.socket | None = None
        self.begun = 0.0
        self.events = 0
        self.seen = 0.0
        self.tail = b""
        self.rest = b""
        self.parser: Any = None
        self.status = 0
        self.keep = False

    def on_body(self, body: bytes) -> None:
        """Count the events that begin in these bytes, or between the last ones and these."""
        pattern = self.pattern
        found = body.count(pattern)
        if self.tail:
            found += (self.tail + body[: len(pattern) - 1]).count(pattern)
        if found and not self.seen:
            self.seen = time.perf_counter()
        if found and self.gaps is not None:
            now = time.perf_counter()
            if self.last:
                self.gaps.append((now - self.last) * 1000)
            self.last = now
        self.events += found
        if body.endswith(b"\n\n") or len(pattern) == 1:
            self.tail = b""
        else:
            self.tail = (self.tail + body)[1 - len(pattern) :]

    def on_message_complete(self) -> None:
        """The answer is whole; the parser forgets what it said of the connection once this returns."""
        self.state = "answered"
        self.status = self.parser.get_status_code()
        self.keep = self.parser.should_keep_alive()


class Generator:
    """Drives the clients of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._measuring = False
        self._latencies: list[float] = []
        self._ttfts: list[float] = []
        self._gaps: list[float] = []
        self._errors: dict[str, int] = {}
        self._events = 0
        self._answers = 0
        self._connects = 0
        self._left = job.connections
        self._buffer = memoryview(
            bytearray(262144)
        )  # one for all: a large buffer per read is a page fault per read

    def run(self) -> Result:
        """Run to the end of the job."""
        job = self._job
        requests = [_request(job, body) for body in job.bodies]
        step = job.stagger / job.connections
        gaps = self._gaps if job.mode == "paced" else None
        start = time.perf_counter()
        waiting = [
            (start + step * number, number, Client(requests[number % len(requests)], job.pattern, gaps))
            for number in range(job.connections)
        ]
        heapq.heapify(waiting)
        window, cpu = start + job.warmup, time.process_time()
        self._measuring = not job.warmup
        end = window + job.seconds
        now = start
        while now < end and self._left:
            while waiting and waiting[0][0] <= now:
                self._connect(heapq.heappop(waiting)[2])
            if not self._measuring and now >= window:
                self._measuring, window, cpu = True, now, time.process_time()
                end = window + job.seconds
            until = min(end, waiting[0][0]) if waiting else end
            for fd, mask in self._poll.poll(max(0.0, min(until - now, 0.05))):
                client = self._clients.get(fd)
                if client is not None:
                    self._serve(client, mask)
            now = time.perf_counter()
        if job.mode == "paced" and self._left:
            self._fail("no whole answer in time", self._left)
        for client in tuple(self._clients.values()):
            self._drop(client)
        elapsed = now - window
        return Result(
            answers=self._answers,
            events=self._events,
            seconds=elapsed,
            latency_p50=percentile(self._latencies, 0.50),
            latency_p99=percentile(self._latencies, 0.99),
            ttft_p50=percentile(self._ttfts, 0.50),
            ttft_p99=percentile(self._ttfts, 0.99),
            cpu=(time.process_time() - cpu) / elapsed,
            connects=self._connects,
            errors=self._errors,
            gap_p50=percentile(self._gaps, 0.50),
            gap_p99=percentile(self._gaps, 0.99),
            gap_max=max(self._gaps, default=None),
        )

    def _connect(self, client: Client) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.begun = time.perf_counter()
        self._connects += 1
        client.sock, client.fd, client.state = sock, sock.fileno(), "connecting"
        client.parser = httptools.HttpResponseParser(client)
        sock.connect_ex((self._job.host, self._job.port))
        self._clients[client.fd] = client
        self._poll.register(client.fd, select.EPOLLIN | select.EPOLLOUT)

    def _ask(self, client: Client) -> None:
        assert client.sock is not None
        client.events, client.seen, client.tail = 0, 0.0, b""
        client.state = "waiting"
        try:
            sent = client.sock.send(client.rest or client.request)
        except OSError as problem:
            self._lost(client, f"sending failed: {problem.strerror}")
            return
        client.rest = (client.rest or client.request)[sent:]

    def _serve(self, client: Client, mask: int) -> None:
        assert client.sock is not None
        if client.state == "connecting":
            code = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._lost(client, f"connecting failed: errno {code}")
                return
            if not mask & select.EPOLLOUT:
                return
            self._ask(client)
            if client.fd >= 0 and not client.rest:
                self._poll.modify(client.fd, select.EPOLLIN)
            return
        if client.rest and mask & select.EPOLLOUT:
            self._ask(client)
            if client.fd >= 0 and not client.rest:
                self._poll.modify(client.fd, select.EPOLLIN)
        if mask & ~select.EPOLLOUT and client.sock is not None:
            self._receive(client)

    def _receive(self, client: Client) -> None:
        assert client.sock is not None
        try:
            size = client.sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as problem:
            self._lost(client, f"reading failed: {problem.strerror}")
            return
        if not size:
            self._lost(client, "closed before the answer was whole")
            return
        before = client.events
        try:
            client.parser.feed_data(self._buffer[:size])
        except httptools.HttpParserError as problem:
            self._lost(client, f"not HTTP: {problem}")
            return
        if self._measuring:
            self._events += client.events - before
        if client.state == "answered":
            self._answered(client)

    def _answered(self, client: Client) -> None:
        now = time.perf_counter()
        if self._measuring:
            if client.status == 200:
                self._answers += 1
                self._latencies.append((now - client.begun) * 1000)
                if client.seen:
                    self._ttfts.append((client.seen - client.begun) * 1000)
            else:
                self._fail(f"status {client.status}")
        if self._job.mode == "paced":
            self._left -= 1
            self._drop(client)
        elif client.keep:
            client.begun = now
            self._ask(client)
        else:
            self._drop(client)
            self._connect(client)

    def _lost(self, client: Client, what: str) -> None:
        self._fail(what)
        self._drop(client)
        if self._job.mode == "paced":
            self._left -= 1
        else:
            self._connect(client)

    def _fail(self, what: str, times: int = 1) -> None:
        self._errors[what] = self._errors.get(what, 0) + times

    def _drop(self, client: Client) -> None:
        if client.sock is not None:
            self._clients.pop(client.fd, None)
            client.sock.close()
        client.sock, client.fd, client.state, client.rest = None, -1, "over", b""


def _request(job: Job, body: str) -> bytes:
    data = body.encode()
    fields = {
        "Host": f"{job.host}:{job.port}",
        "Content-Type": "application/json",
        **job.headers,
        "Content-Length": str(len(data)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {job.path} HTTP/1.1\r\n{head}\r\n".encode() + data


def main() -> int:
    """Read a job from stdin, write its result to stdout."""
    job = Job(**json.loads(sys.stdin.read()))
    gc.disable()  # a collection in the middle of a run would be counted as the server's latency
    sys.stdout.write(json.dumps(dataclasses.asdict(Generator(job).run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
