"""CPU and memory of this machine or container. Read by ``/api/system-info``; no call waits or sleeps.
loop.

Inside a container the cgroup's limit and use count, page cache that can be dropped left out.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_MB = 1 << 20


class SystemMeter:
    """CPU use since the previous call, which is why it keeps one sample. Thread-safe."""

    def __init__(self, proc: Path = _PROC, cgroup: Path = _CGROUP) -> None:
        self._proc = proc
        self._cgroup = cgroup
        self._lock = threading.Lock()
        self._before = self._cpu_times()

    def read(self) -> dict[str, Any]:
        """The object of ``/api/system-info``; what cannot be read is null."""
        total, used = self._memory()
        free = None if total is None or used is None else max(0, total - used)
        return {
            "cpu_percent": self._cpu_percent(),
            "cpu_cores": len(os.sched_getaffinity(0)),
            "ram_total_mb": _mb(total),
            "ram_used_mb": _mb(used),
            "ram_free_mb": _mb(free),
            "ram_percent": round(100 * used / total, 1) if total and used is not None else None,
        }

    def _cpu_percent(self) -> float | None:
        with self._lock:
            before, now = self._before, self._cpu_times()
            self._before = now
        if before is None or now is None or now[1] <= before[1]:
            return None
        return round(100 * (now[0] - before[0]) / (now[1] - before[1]), 1)

    def _cpu_times(self) -> tuple[int, int] | None:
        """(busy, all) clock ticks of all cores since boot."""
        try:
            first = (self._proc / "stat").read_text().split("\n", 1)[0]
            ticks = [int(word) for word in first.split()[1:9]]
        except (OSError, ValueError):
            return None
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

    def _memory(self) -> tuple[int | None, int | None]:
        """(total, used) bytes."""
        total, available = self._host_memory()
        used = None if total is None or available is None else total - available
        limit, current, cache = self._cgroup_memory()
        if limit is not None and current is not None and (total is None or limit < total):
            return limit, max(0, current - (cache or 0))
        return total, used

    def _host_memory(self) -> tuple[int | None, int | None]:
        values: dict[str, int] = {}
        try:
            for line in (self._proc / "meminfo").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    values[name] = int(rest.split()[0]) * 1024
        except (OSError, ValueError, IndexError):
            return None, None
        return values.get("MemTotal"), values.get("MemAvailable")

    def _cgroup_memory(self) -> tuple[int | None, int | None, int | None]:
        """(limit, use, inactive file cache) of version 2, else of version 1."""
        new, old = self._cgroup, self._cgroup / "memory"
        if (new / "memory.max").exists():
            cache = _stat(new / "memory.stat", "inactive_file")
            return _number(new / "memory.max"), _number(new / "memory.current"), cache
        limit, current = old / "memory.limit_in_bytes", old / "memory.usage_in_bytes"
        return _number(limit), _number(current), _stat(old / "memory.stat", "total_inactive_file")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def _stat(path: Path, name: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            word, _, value = line.partition(" ")
            if word == name:
                return int(value)
    except (OSError, ValueError):
        return None
    return None


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / _MB, 1)
