"""What a manager costs before the first request: start-up time, start to first answer, idle memory.

Read by :mod:`benchmarks.__main__`. Guarantees that every start is a new process on data that an earlier
start has left in order (the first start of a machine also compiles Python files, which is not what is
timed).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import llamaman_proc, processes
from benchmarks.llamaman_proc import CHAT, MODEL, Setup


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds and MB (10^6 bytes), each the median over the starts; memory is the last start's."""

    health_seconds: float
    answer_seconds: float
    idle_mb: float | None
    serving_mb: float | None
    refused_with: tuple[int, ...]
    """Statuses that callers saw before the first 200; empty when the first request that was accepted
    succeeded."""


def measure(starts: int) -> Startup:
    """Start ``starts`` managers one after the other, twice each: once for /health, once for a first
    answer."""
    with tempfile.TemporaryDirectory(prefix="llamaman-bench-") as folder:
        setup = llamaman_proc.prepare(Path(folder) / "manager")
        process = llamaman_proc.start(setup)
        try:
            setup = llamaman_proc.create_key(setup)
            llamaman_proc.save_preset(setup)
        finally:
            llamaman_proc.end(setup, process)
        health, answer, refused = [], [], list[int]()
        idle = serving = None
        for _ in range(starts):
            seconds, idle = _health(setup)
            health.append(seconds)
            seconds, serving, statuses = _first_answer(setup)
            answer.append(seconds)
            refused += statuses
        return Startup(statistics.median(health), statistics.median(answer), idle, serving, tuple(refused))


def _health(setup: Setup) -> tuple[float, float | None]:
    begun = time.perf_counter()
    process = llamaman_proc.start(setup)
    try:
        return time.perf_counter() - begun, _settled_mb(process.pid)
    finally:
        llamaman_proc.end(setup, process)


def _first_answer(setup: Setup) -> tuple[float, float | None, list[int]]:
    """Ask from the moment of the spawn until the model answers, launch of its engine included."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    refused: list[int] = []

    def answered() -> bool:
        try:
            status, _ = llamaman_proc.call(setup.proxy_port, "POST", CHAT, key=setup.inference_key, body=body)
        except OSError:
            return False
        if status != 200:
            refused.append(status)
        return status == 200

    begun = time.perf_counter()
    process = llamaman_proc.spawn(setup)
    try:
        processes.wait_until(answered, "llamaman serve (first answer)", process, setup.log)
        seconds = time.perf_counter() - begun
        memory = _settled_mb(process.pid)
        _end_instances(setup)
    finally:
        llamaman_proc.end(setup, process)
    return seconds, memory, refused


def _end_instances(setup: Setup) -> None:
    for record in llamaman_proc.manage(setup, "GET", "/api/instances"):
        llamaman_proc.stop_and_remove(setup, record["id"])


def _settled_mb(pid: int) -> float | None:
    """Memory once two looks a second apart agree within 1%, or after ten looks."""
    last = processes.rss_mb(pid)
    for _ in range(10):
        time.sleep(1)
        now = processes.rss_mb(pid)
        if now is None or (last is not None and abs(now - last) < 0.01 * last):
            return now
        last = now
    return last
