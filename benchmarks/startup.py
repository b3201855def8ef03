"""What a manager costs before the first request: start-up time, start to first answer, idle memory.

Read by :mod:`benchmarks.__main__`. Guarantees that every start is a new process on data that an earlier
start has left in order (the first start of a machine also compiles Python files, which is not what is
timed).
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import llamaman_proc
from benchmarks.llamaman_proc import MODEL, Manager
from llamaman.testing import processes


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
        with llamaman_proc.prepare(Path(folder) / "manager") as manager:
            manager.preset(MODEL, ctx_size=llamaman_proc.CTX_SIZE, threads=None, parallel=4)
        health, answer, refused = [], [], list[int]()
        idle = serving = None
        for _ in range(starts):
            seconds, idle = _health(manager)
            health.append(seconds)
            seconds, serving, statuses = _first_answer(manager)
            answer.append(seconds)
            refused += statuses
        return Startup(statistics.median(health), statistics.median(answer), idle, serving, tuple(refused))


def _health(manager: Manager) -> tuple[float, float | None]:
    begun = time.perf_counter()
    with contextlib.closing(manager):
        llamaman_proc.start(manager)
        return time.perf_counter() - begun, _settled_mb(manager.running.pid)


def _first_answer(manager: Manager) -> tuple[float, float | None, list[int]]:
    """Ask from the moment of the spawn until the model answers, launch of its engine included."""
    refused: list[int] = []

    def answered() -> bool:
        try:
            status = manager.chat(MODEL, max_tokens=1).status
        except OSError:
            return False
        if status != 200:
            refused.append(status)
        return status == 200

    begun = time.perf_counter()
    with contextlib.closing(manager):
        manager.spawn()
        processes.wait_until(answered, "llamaman serve (first answer)", manager.running, manager.log)
        seconds = time.perf_counter() - begun
        memory = _settled_mb(manager.running.pid)
        manager.wait_ready()
        manager.clear()
    return seconds, memory, refused


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
