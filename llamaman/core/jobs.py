"""Periodic work: one scheduler thread and a small pool. A job never runs beside itself.

The period of a job counts from the end of one run to the start of the next, so a slow job slows only itself.
A failing job is logged, counted and run less often until it works again.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llamaman.records import Job

log = logging.getLogger("llamaman.jobs")

WORKERS = 3

#: Failures in a row after which a job counts as degraded.
DEGRADED_AFTER = 5

#: No failing job waits longer than this (or its own period, if that is longer), in seconds.
LONGEST_WAIT_S = 600.0


@dataclass(frozen=True, slots=True)
class JobReport:
    """How a job is doing. ``last_duration_s`` and ``last_error`` are None before the first end and error."""

    name: str
    owner: str
    every_s: float
    running: bool
    runs: int
    failures: int
    failures_in_a_row: int
    degraded: bool
    last_duration_s: float | None
    last_error: str | None


@dataclass(slots=True)
class _Entry:
    """A job's books; changed only under the scheduler's lock."""

    job: Job
    owner: str
    #: The start that counts: a popped heap item with another ticket is out of date.
    ticket: int = 0
    running: bool = False
    again: bool = False
    runs: int = 0
    failures: int = 0
    in_a_row: int = 0
    last_duration_s: float | None = None
    last_error: str | None = None


@dataclass(order=True, slots=True)
class _Due:
    at: float
    ticket: int
    entry: _Entry = field(compare=False)


class Jobs:
    """See the module's docstring. Jobs may be added before and after :meth:`start`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, workers: int = WORKERS) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._entries: dict[str, _Entry] = {}
        self._due: list[_Due] = []
        self._tickets = itertools.count(1)
        self._ready: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def add(self, job: Job, owner: str, *, first_in_s: float | None = None) -> None:
        """Schedule a job; its first run is after one period, or after ``first_in_s`` seconds.

        :raises ValueError: the name is taken (the message names both owners), or the period is not positive.
        """
        if not job.every_s > 0:
            raise ValueError(f"job '{job.name}' of {owner}: every_s must be above 0, not {job.every_s}")
        with self._wake:
            present = self._entries.get(job.name)
            if present is not None:
                raise ValueError(f"job '{job.name}' is declared by both {present.owner} and {owner}")
            entry = self._entries[job.name] = _Entry(job, owner)
            self._schedule(entry, job.every_s if first_in_s is None else first_in_s)

    def start(self) -> None:
        """Start the scheduler and its pool."""
        names = ["jobs", *(f"job-{number}" for number in range(self._workers))]
        targets = [self._run_scheduler, *[self._run_worker] * self._workers]
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in zip(names, targets, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Start nothing more and wait for what runs; False if a job was still running at the deadline."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for _ in range(self._workers):
            self._ready.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._wake:
            late = [entry.job.name for entry in self._entries.values() if entry.running]
        if late:
            log.warning("stopped while still running after %.1f s: %s", timeout_s, ", ".join(sorted(late)))
        return not late

    def run_now(self, name: str) -> None:
        """Run a job as soon as a worker is free; if it is running, once more after that.

        :raises KeyError: no such job.
        """
        with self._wake:
            entry = self._entries[name]
            if entry.running:
                entry.again = True
            else:
                self._schedule(entry, 0.0)

    def report(self) -> tuple[JobReport, ...]:
        """Every job, by name."""
        with self._wake:
            return tuple(
                JobReport(
                    entry.job.name,
                    entry.owner,
                    entry.job.every_s,
                    entry.running,
                    entry.runs,
                    entry.failures,
                    entry.in_a_row,
                    entry.in_a_row >= DEGRADED_AFTER,
                    entry.last_duration_s,
                    entry.last_error,
                )
                for _, entry in sorted(self._entries.items())
            )

    # --- threads --------------------------------------------------------------------------------------

    def _schedule(self, entry: _Entry, in_s: float) -> None:
        entry.ticket = next(self._tickets)
        heapq.heappush(self._due, _Due(self._clock() + in_s, entry.ticket, entry))
        self._wake.notify_all()

    def _run_scheduler(self) -> None:
        with self._wake:
            while not self._stopping:
                wait = self._due[0].at - self._clock() if self._due else None
                if wait is None or wait > 0:
                    self._wake.wait(wait)
                    continue
                due = heapq.heappop(self._due)
                if due.ticket == due.entry.ticket:
                    due.entry.running = True
                    self._ready.put(due.entry)

    def _run_worker(self) -> None:
        while (entry := self._ready.get()) is not None:
            with self._wake:
                if self._stopping:
                    entry.running = False
                    continue
            self._run(entry)

    def _run(self, entry: _Entry) -> None:
        started = time.monotonic()
        error: BaseException | None = None
        try:
            entry.job.run()
        except (Exception, SystemExit) as caught:  # a plugin's failure must end neither thread nor program
            error = caught
            log.exception("job '%s' of %s failed", entry.job.name, entry.owner)
        with self._wake:
            entry.running = False
            entry.runs += 1
            entry.last_duration_s = time.monotonic() - started
            if error is None:
                entry.in_a_row = 0
            else:
                entry.failures += 1
                entry.in_a_row += 1
                entry.last_error = f"{type(error).__name__}: {error}"
            wait = 0.0 if entry.again else wait_after(entry.job.every_s, entry.in_a_row)
            entry.again = False
            if not self._stopping:
                self._schedule(entry, wait)


def wait_after(every_s: float, failures_in_a_row: int) -> float:
    """Seconds until the next run: the period, doubled for each failure in a row, within limits."""
    longest = max(every_s, LONGEST_WAIT_S)
    return min(every_s * 2.0 ** min(failures_in_a_row, 20), longest)
