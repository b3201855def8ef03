"""Reading ``/proc``: who a process is, so that no other process is ever taken for it.

For the process runtime. Every function answers None or an empty value for a process that is gone or may not
be read; none raises for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """One process at one moment.

    :ivar started: the kernel's start time in clock ticks since boot; with the pid it identifies a process.
    :ivar cpu_ticks: clock ticks that it and its ended children have spent on a processor.
    """

    pid: int
    state: str
    group: int
    session: int
    started: int
    cpu_ticks: int

    @property
    def alive(self) -> bool:
        """False for a zombie: it has ended, only its parent has not asked yet."""
        return self.state not in "ZXx"


def read(pid: int) -> Process | None:
    """The process with that pid now, a zombie included."""
    raw = _contents(pid, "stat")
    if not raw:
        return None
    # The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    fields = raw[raw.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        state=fields[0].decode(),
        group=int(fields[2]),
        session=int(fields[3]),
        started=int(fields[19]),
        cpu_ticks=sum(map(int, fields[11:15])),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process holds in main memory, in bytes.

    :ivar anonymous: its own, which no file stands for.
    :ivar shared: shared memory, and files in memory-backed file systems.
    """

    anonymous: int
    shared: int


def memory(pid: int) -> Memory | None:
    """The memory of that process now; None for a zombie, which has none."""
    found = {}
    for line in _contents(pid, "status").splitlines():
        name, _, value = line.partition(b":")
        if name in (b"RssAnon", b"RssShmem"):
            found[name] = int(value.split()[0]) << 10
    return Memory(found[b"RssAnon"], found[b"RssShmem"]) if len(found) == 2 else None


def environ(pid: int) -> Mapping[str, str]:
    """The environment it was started with."""
    pairs = (entry.partition(b"=") for entry in _contents(pid, "environ").split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def command_line(pid: int) -> tuple[str, ...]:
    """Its argument vector."""
    raw = _contents(pid, "cmdline")
    return tuple(os.fsdecode(part) for part in raw.removesuffix(b"\0").split(b"\0")) if raw else ()


def executable(pid: int) -> str | None:
    """The path of its program, also when that file was replaced since."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return None


def owner(pid: int) -> int | None:
    """Its effective user id."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def pids() -> Iterator[int]:
    """Every pid there is."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def _contents(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:  # gone, or not ours to read: the same to every caller
        return b""
