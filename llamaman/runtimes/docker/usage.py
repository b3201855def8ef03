"""What containers use of processor and memory, sampled beside every request.

For the Docker runtime. Asking never waits: it returns the last sample and keeps the sampling going for a while; when
nobody asks, nothing is sampled. A figure that is not known (yet) is None. The arithmetic is that of Docker's own
command line client, on samples of the Docker Engine API 1.41 for control groups of version 1 and 2.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llamaman.records import ResourceUse, WorkDone
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Json

EVERY_S: Final = 2.0
ASKED_WITHIN_S: Final = 15.0
_STALE_S: Final = 15.0  # a sample takes up to two seconds, and many wait for each other
_WORKERS: Final = 4
_NO_LIMIT: Final = 1 << 60  # the kernel's own number for "none" is near 2**63

log = logging.getLogger(__name__)


# --- the arithmetic: pure ----------------------------------------------------------------------------


def cpu_percent(before: Json | None, now: Json) -> float | None:
    """Processor time between two samples, 100 for one processor busy all the time; None when they do not tell."""
    if before is None:
        return None
    used = _cpu_time(now, before, "cpu_usage", "total_usage")
    passed = _cpu_time(now, before, "system_cpu_usage")
    processors = online_cpus(now)
    if used is None or passed is None or processors is None or used < 0 or passed <= 0:
        return None
    return used / passed * processors * 100


def online_cpus(stats: Json) -> int | None:
    """Processors of the machine."""
    cpu = stats.get("cpu_stats") or {}
    return cpu.get("online_cpus") or len(_below(cpu, "cpu_usage", "percpu_usage") or ()) or None


def memory_bytes(stats: Json) -> int | None:
    """Memory in use, without file cache that was not touched lately and could be dropped."""
    memory = stats.get("memory_stats") or {}
    used = memory.get("usage")
    if used is None:
        return None
    details = memory.get("stats") or {}
    # Version 1 has both; there the one without "total" leaves out the control groups below.
    idle = details.get("total_inactive_file", details.get("inactive_file", 0))
    return int(used - idle if idle < used else used)


def memory_limit(stats: Json) -> int | None:
    """Bytes; without a limit of its own, what the machine has."""
    limit = (stats.get("memory_stats") or {}).get("limit")
    return int(limit) if limit and limit < _NO_LIMIT else None


def anonymous_memory(stats: Json) -> int | None:
    """Memory that is no file cache: ``total_rss`` of version 1, ``anon`` of version 2."""
    details = (stats.get("memory_stats") or {}).get("stats") or {}
    found = details.get("total_rss", details.get("anon"))
    return None if found is None else int(found)


def work_done(stats: Json) -> WorkDone:
    """Processor time, and page faults from disk: the same name in both versions, but where version 1 sums up."""
    cpu_ns = _below(stats.get("cpu_stats") or {}, "cpu_usage", "total_usage")
    details = (stats.get("memory_stats") or {}).get("stats") or {}
    faults = details.get("total_pgmajfault", details.get("pgmajfault"))
    return WorkDone(None if cpu_ns is None else cpu_ns / 1e9, None if faults is None else int(faults))


def cpu_quota(inspected: Json) -> float | None:
    """Processors that a container is limited to; None: no limit."""
    host = inspected.get("HostConfig") or {}
    if host.get("NanoCpus"):
        return float(host["NanoCpus"] / 1e9)
    if (host.get("CpuQuota") or 0) > 0:
        return float(host["CpuQuota"] / (host.get("CpuPeriod") or 100_000))
    return None


def use_of(before: Json | None, now: Json, quota: float | None) -> ResourceUse:
    """The record of a sample and the one before it."""
    return ResourceUse(
        cpu_percent=cpu_percent(before, now),
        cpus=quota or online_cpus(now),
        cpu_quota=quota,
        memory_bytes=memory_bytes(now),
        memory_limit=memory_limit(now),
    )


def _cpu_time(now: Json, before: Json, *path: str) -> int | None:
    values = [_below(stats.get("cpu_stats") or {}, *path) for stats in (now, before)]
    return None if None in values else int(values[0] - values[1])


def _below(found: Any, *path: str) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


# --- sampling ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sampled:
    """One container. Owned by the sampler's lock, but for what its one worker needs."""

    asked: float
    sampling: bool = False
    inspected: bool = False
    quota: float | None = None
    stats: Json | None = None
    use: ResourceUse | None = None
    at: float = 0.0


class Sampler:
    """The samples of all containers. Any thread may call any method."""

    def __init__(self, daemon: Daemon, *, every_s: float = EVERY_S) -> None:
        """:param every_s: seconds between two samples of a container."""
        self._daemon = daemon
        self._every_s = every_s
        self._lock = threading.Lock()
        self._sampled: dict[str, _Sampled] = {}
        self._running = False
        self._closed = threading.Event()

    def usage(self, container_id: str) -> ResourceUse | None:
        """The last sample; None when there is none, also when the container does not run. Does not block."""
        now = time.monotonic()
        with self._lock:
            sampled = self._sampled.setdefault(container_id, _Sampled(now))
            sampled.asked = now
            if not self._running and not self._closed.is_set():
                self._running = True
                threading.Thread(target=self._run, name="docker-stats", daemon=True).start()
            return sampled.use if now - sampled.at < _STALE_S else None

    def anonymous_bytes(self, container_id: str) -> int | None:
        """Memory that is no file cache, asked now, which takes up to two seconds; None when it cannot be had."""
        stats = self._now(container_id)
        return anonymous_memory(stats) if stats else None

    def work(self, container_id: str) -> WorkDone | None:
        """What it has done so far, asked now, which takes up to two seconds; None when it cannot be had."""
        stats = self._now(container_id)
        return work_done(stats) if stats else None

    def _now(self, container_id: str) -> Json | None:
        try:
            return self._daemon.stats(container_id)
        except (DaemonGone, DaemonError) as error:
            log.info("Docker does not tell what container %s uses: %s", container_id[:12], error)
            return None

    def forget(self, container_id: str) -> None:
        """It has ended."""
        with self._lock:
            self._sampled.pop(container_id, None)

    def close(self) -> None:
        """End the sampling; does not wait for samples on their way."""
        self._closed.set()
        with self._lock:
            self._sampled.clear()

    # --- threads: one that keeps the time, some that ask, all only while somebody wants to know -------

    def _run(self) -> None:
        work: queue.SimpleQueue[tuple[str, _Sampled] | None] = queue.SimpleQueue()
        workers: list[threading.Thread] = []
        while (due := self._due()) is not None:
            for item in due:
                work.put(item)
            while len(workers) < min(_WORKERS, len(due)):
                worker = threading.Thread(
                    target=self._work, args=(work,), name="docker-stats-worker", daemon=True
                )
                workers.append(worker)
                worker.start()
            self._closed.wait(self._every_s)
        for _ in workers:
            work.put(None)

    def _due(self) -> list[tuple[str, _Sampled]] | None:
        """What is to be sampled now; None when nobody wants to know any more."""
        now = time.monotonic()
        with self._lock:
            for container_id, sampled in list(self._sampled.items()):
                if now - sampled.asked > ASKED_WITHIN_S:
                    del self._sampled[container_id]
            if not self._sampled or self._closed.is_set():
                self._running = False
                return None
            due = [item for item in self._sampled.items() if not item[1].sampling]
            for _, sampled in due:
                sampled.sampling = True
        return due

    def _work(self, work: queue.SimpleQueue[tuple[str, _Sampled] | None]) -> None:
        while (item := work.get()) is not None:
            container_id, sampled = item
            try:
                self._sample(container_id, sampled)
            except (DaemonGone, DaemonError) as error:
                log.debug("no sample of container %s: %s", container_id[:12], error)
            except Exception:  # a daemon with figures of another kind must not end the sampling of all
                log.exception("no sample of container %s", container_id[:12])
            finally:
                with self._lock:
                    sampled.sampling = False

    def _sample(self, container_id: str, sampled: _Sampled) -> None:
        if not sampled.inspected:
            inspected = self._daemon.inspect(container_id)
            sampled.quota = cpu_quota(inspected) if inspected else None
            sampled.inspected = inspected is not None
        stats = self._daemon.stats(container_id)
        use = use_of(sampled.stats, stats, sampled.quota) if stats else None
        with self._lock:
            sampled.stats, sampled.use, sampled.at = stats, use, time.monotonic()
