"""400 streams while the dashboard is hammered: what the management side takes from those who wait for tokens.

Read by :mod:`benchmarks.__main__`. The manager serves 400 paced streams, once alone and once while four connections
ask its management port as fast as it answers; both sides alternate, on one manager. The one that hammers is a
process of its own, ``python -m benchmarks.hammered`` with a :class:`Hammer` as JSON on stdin, which it does until
that is closed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from benchmarks import columns, dialects, doors, llamaman_proc, load
from benchmarks.llamaman_proc import CHAT, Manager
from benchmarks.report import Row, own_row

PATHS = ("/api/instances", "/api/models", "/api/settings", "/metrics", "/login")
CONNECTIONS = 4
PACE_MS = 75
TOKENS = 60


@dataclass(frozen=True, slots=True)
class Hammer:
    """Where to knock, and with which key."""

    port: int
    key: str


@dataclass(frozen=True, slots=True)
class Knocks:
    """What came of it. Latencies are milliseconds."""

    seconds: float
    statuses: Mapping[str, int]
    errors: Mapping[str, int]
    latency_p50: float | None
    latency_p99: float | None

    @property
    def per_second(self) -> float:
        """Answers in a second, whatever their status."""
        return sum(self.statuses.values()) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Side:
    """One run of 400 streams. Lag: milliseconds until /health is answered, asked every 5 ms."""

    streams: load.Result
    lag_p99: float | None
    lag_max: float | None
    knocks: Knocks | None


@dataclass(frozen=True, slots=True)
class Hammered:
    """The rounds of both sides."""

    alone: Sequence[Side]
    beside: Sequence[Side]


def measure(rounds: int, progress: Callable[[str], None]) -> Hammered:
    """Both sides, round by round.

    :raises processes.NotReady, llamaman_proc.ManagerError, load.LoadError: it could not be measured.
    """
    alone, beside = list[Side](), list[Side]()
    with tempfile.TemporaryDirectory(prefix="llamaman-bench-") as folder:
        manager = llamaman_proc.prepare(Path(folder) / "manager")
        # Without a user the login's page only leads to the set-up.
        manager.env |= {"LLAMAMAN_ADMIN_USER": doors.USER, "LLAMAMAN_ADMIN_PASSWORD": doors.PASSWORD}
        with manager:
            column = columns.launched(manager)
            hammer = Hammer(manager.port, manager.key("manage").secret)
            _stop(_start(hammer), 0.5)  # the first answers load code
            for number in range(rounds):
                sides = [(False, alone), (True, beside)]
                for hammered, into in sides if number % 2 else reversed(sides):
                    what = "while the dashboard is hammered" if hammered else "alone"
                    progress(f"round {number + 1}/{rounds}: {columns.STREAMS} streams {what}")
                    into.append(_run(manager, column, hammer if hammered else None))
    return Hammered(alone, beside)


def _run(manager: Manager, column: columns.Column, hammer: Hammer | None) -> Side:
    body = dialects.body(dialects.OPENAI, TOKENS, pace_ms=PACE_MS)
    job = load.Job(
        "paced", column.port, CHAT, [body], columns.STREAMS, 60.0, stagger=2.0, headers=column.headers
    )
    process = _start(hammer) if hammer else None
    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(load.run, job)
        lags = doors.lag(manager, streaming.done)
        streams = streaming.result()
    knocks = _stop(process, 0.0) if process else None
    return Side(streams, load.percentile(lags, 0.99), max(lags, default=None), knocks)


def _start(hammer: Hammer) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hammered"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(dataclasses.asdict(hammer)) + "\n")
    process.stdin.flush()
    return process


def _stop(process: subprocess.Popen[str], after: float) -> Knocks:
    """:raises load.LoadError: it failed."""
    time.sleep(after)
    told, _ = process.communicate(timeout=60)  # closes its stdin
    if process.returncode:
        raise load.LoadError(f"the process that hammers exited {process.returncode}")
    return Knocks(**json.loads(told))


# --- the process that hammers -----------------------------------------------------------------------------


def knock(hammer: Hammer, over: threading.Event, connections: int = CONNECTIONS) -> Knocks:
    """Ask in turn for every path on each of the connections until it is over."""
    statuses, errors, latencies = Counter[str](), Counter[str](), list[float]()

    def work(first: int) -> None:
        line = HTTPConnection("127.0.0.1", hammer.port, timeout=30)
        number = first
        while not over.is_set():
            path = PATHS[number % len(PATHS)]
            number += 1
            begun = time.perf_counter()
            # The page of the login is a stranger's; the key is not sent to it.
            headers = {} if path == "/login" else {"Authorization": f"Bearer {hammer.key}"}
            try:
                line.request("GET", path, headers=headers)
                answer = line.getresponse()
                answer.read()
            except (OSError, HTTPException) as problem:
                errors[type(problem).__name__] += 1
                line.close()
                time.sleep(0.01)  # a manager that is gone is not asked a million times
                continue
            latencies.append((time.perf_counter() - begun) * 1000)
            statuses[f"{path} {answer.status}"] += 1
        line.close()

    begun = time.monotonic()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return Knocks(
        time.monotonic() - begun,
        dict(statuses),
        dict(errors),
        load.percentile(latencies, 0.5),
        load.percentile(latencies, 0.99),
    )


def main() -> int:
    """Read a hammer from stdin, use it until stdin is closed, write what came of it to stdout."""
    hammer = Hammer(**json.loads(sys.stdin.readline()))
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    sys.stdout.write(json.dumps(dataclasses.asdict(knock(hammer, over))))
    return 0


# --- rows -------------------------------------------------------------------------------------------------


def rows(found: Hammered | None) -> list[Row]:
    """What the report shows: each figure alone, then while the dashboard is hammered."""
    if found is None:
        return [own_row("400 streams, TTFT p99, hammered", "ms", None)]
    shown: list[Row] = []
    figures: tuple[tuple[str, Callable[[Side], float | None]], ...] = (
        ("400 streams, TTFT p99", lambda side: side.streams.ttft_p99),
        (f"{PACE_MS} ms gaps, p99", lambda side: side.streams.gap_p99),
        (f"{PACE_MS} ms gaps, longest", lambda side: side.streams.gap_max),
        ("loop lag p99", lambda side: side.lag_p99),
        ("loop lag, longest", lambda side: side.lag_max),
    )
    for title, pick in figures:
        for label, sides in (("", found.alone), (", hammered", found.beside)):
            shown.append(own_row(title + label, "ms", _median(map(pick, sides)), errors=_errors(sides)))
    knocks = [side.knocks for side in found.beside if side.knocks]
    shown += [
        own_row("management answers meanwhile", "req/s", _median(each.per_second for each in knocks)),
        own_row("the same, latency p99", "ms", _median(each.latency_p99 for each in knocks)),
    ]
    return shown


def told(found: Hammered) -> dict[str, int]:
    """What management answered meanwhile, and what failed."""
    counted = Counter[str]()
    for side in found.beside:
        if side.knocks:
            counted.update(side.knocks.statuses)
            counted.update(side.knocks.errors)
    return dict(counted)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _errors(sides: Sequence[Side]) -> dict[str, int]:
    counted = Counter[str]()
    for side in sides:
        counted.update(side.streams.errors)
    return dict(counted)


if __name__ == "__main__":
    sys.exit(main())
