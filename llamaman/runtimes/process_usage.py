"""What engine processes use of this machine, measured when somebody asks.

For the process runtime. An engine is its session: the process that was started and whatever it started. There
is no thread: a question costs some files of ``/proc``, and the processor share is that since the last one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from llamaman.records import ResourceUse
from llamaman.runtimes import limits, procfs
from llamaman.runtimes.exits import Identity

#: Shorter intervals say more about the clock than about the engine; until then the last answer is given again.
LEAST_INTERVAL_S = 0.5
#: An older sample says nothing about now.
MOST_INTERVAL_S = 60.0
_SESSIONS_S = 1.0
_REMEMBERED = 256
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    ticks: int
    answer: ResourceUse


class ProcessUsage:
    """Keeps the last sample of each engine. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: OrderedDict[Identity, _Sample] = OrderedDict()
        self._sessions: dict[int, list[int]] = {}
        self._looked = float("-inf")

    def usage(self, identity: Identity, group: str) -> ResourceUse | None:
        """What it uses now; None when it has ended.

        :param group: the control group that may limit it.
        """
        with self._lock:
            last = self._samples.get(identity)
            now = time.monotonic()
            if last is not None and now - last.at < LEAST_INTERVAL_S:
                return last.answer
            members = self._members(identity)
            if not members:
                self._samples.pop(identity, None)
                return None
            ticks = sum(process.cpu_ticks for process in members)
            share = None
            if last is not None and now - last.at <= MOST_INTERVAL_S:
                # A child that ends unwaited takes its ticks with it.
                share = max(0, ticks - last.ticks) / _TICKS_PER_S / (now - last.at) * 100
            held = [memory for process in members if (memory := procfs.memory(process.pid))]
            most = limits.in_force(group)
            answer = ResourceUse(
                cpu_percent=share,
                cpus=most.cpus or _processors(identity[0]),
                cpu_quota=most.cpus,
                memory_bytes=sum(memory.anonymous + memory.shared for memory in held) if held else None,
                memory_limit=most.memory_bytes,
            )
            self._samples[identity] = _Sample(now, ticks, answer)
            self._samples.move_to_end(identity)
            while len(self._samples) > _REMEMBERED:
                self._samples.popitem(last=False)
            return answer

    def anonymous_bytes(self, identity: Identity) -> int | None:
        """Bytes of memory that no file stands for, now; None when it has ended."""
        with self._lock:
            members = self._members(identity)
        held = [memory for process in members if (memory := procfs.memory(process.pid))]
        return sum(memory.anonymous for memory in held) if held else None

    def _members(self, identity: Identity) -> list[procfs.Process]:
        """The processes of its session; empty when the one that leads it has ended."""
        pid, started = identity
        leader = procfs.read(pid)
        if leader is None or leader.started != started or not leader.alive:
            return []
        if time.monotonic() - self._looked > _SESSIONS_S:  # one look at all processes serves all engines
            self._sessions.clear()
            for other in procfs.pids():
                process = procfs.read(other)
                if process is not None:
                    self._sessions.setdefault(process.session, []).append(other)
            self._looked = time.monotonic()
        others = (procfs.read(other) for other in self._sessions.get(pid, ()) if other != pid)
        return [leader, *(process for process in others if process and process.session == pid)]


def _processors(pid: int) -> float | None:
    """How many it may run on."""
    try:
        return float(len(os.sched_getaffinity(pid)))
    except OSError:  # it has just ended
        return None
