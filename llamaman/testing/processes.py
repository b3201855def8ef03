"""Starting, finding and ending the processes of a run, and what /proc says about them.

Read by tests and benchmarks that own a process. Guarantees that only processes started here are ended, by
their pid, and that whatever /proc does not show any more reads as null or as absent, never as zero.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


class NotReady(Exception):
    """Something did not come up in time; the text says what and shows its last words."""


#: The lowest port of the first block, the port behind the last one at most, and how many ports a block has.
_FIRST_PORT, _BEHIND_LAST_PORT, _BLOCK = 10_000, 32_000, 100
#: The blocks that this process has taken, each with the socket whose name says so to the other processes.
_blocks: dict[int, socket.socket] = {}
#: Ports that this process has handed out: whoever got them need not listen on all of them all the time.
_handed_out: set[int] = set()


def free_ports(count: int) -> list[int]:
    """``count`` consecutive TCP ports of 127.0.0.1 that are free now, below the kernel's own ephemeral range.

    No other process that asks here gets one of them, though nobody may listen on them yet: tests that run side by
    side would else choose the same ones and fail when both begin to use them.

    :raises NotReady: there are none.
    """
    for first in [*_blocks, *_free_blocks()]:
        if first not in _blocks and not _take(first):
            continue
        for start in range(first, first + _BLOCK - count + 1):
            wanted = range(start, start + count)
            if not _handed_out.intersection(wanted) and _are_free(wanted):
                _handed_out.update(wanted)
                return list(wanted)
    raise NotReady(f"no {count} consecutive free ports between {_FIRST_PORT} and {_BEHIND_LAST_PORT}")


def _free_blocks() -> list[int]:
    """The first ports of the blocks that may be taken; each process begins somewhere else."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    blocks = list(range(_FIRST_PORT, min(low, _BEHIND_LAST_PORT) - _BLOCK + 1, _BLOCK))
    begin = os.getpid() % len(blocks) if blocks else 0
    return [first for first in blocks[begin:] + blocks[:begin] if first not in _blocks]


def _take(first: int) -> bool:
    """Take a block for this process, until it ends. The name of an abstract socket is as unique as a port is."""
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0llamaman-test-ports-{first}")
    except OSError:
        mark.close()
        return False
    _blocks[first] = mark
    return True


def _are_free(ports: Iterable[int]) -> bool:
    """Whether nothing is bound to any of them."""
    with contextlib.ExitStack() as held:
        try:
            for port in ports:
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(
    ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60
) -> None:
    """Poll ``ready`` every 5 ms.

    :raises NotReady: ``process`` exits first, or ``seconds`` pass; the text ends with the log's last lines.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            how = f"exited {code}" if code is not None else f"was not ready after {seconds:.0f} s"
            raise NotReady(f"{what} {how}; its last words:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.005)


def accepts(port: int) -> bool:
    """Whether something listens on this port of 127.0.0.1."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def stop(process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """SIGTERM, then SIGKILL after ``seconds``; waits for the end."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def freeze(pid: int) -> None:
    """SIGSTOP; returns when every thread has stopped, which takes a moment. SIGCONT lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    while any(_state(task) not in "Tt" for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.001)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process computes nothing while this holds; whoever asks it waits."""
    freeze(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(") ")[2][0]


def rss_mb(pid: int) -> float | None:
    """VmRSS in MB of 10^6 bytes, null when the process is gone."""
    for line in _lines(Path(f"/proc/{pid}/status")):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def cpu_seconds(pid: int) -> float:
    """Processor time a process has taken, without its children.

    :raises OSError: it is gone."""
    cells = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(cells[11]) + int(cells[12])) / os.sysconf("SC_CLK_TCK")


def thread_count(pid: int) -> int | None:
    """Threads of a process, null when it is gone."""
    return _count(Path(f"/proc/{pid}/task"))


def descriptor_count(pid: int) -> int | None:
    """Open file descriptors of a process, null when it is gone."""
    return _count(Path(f"/proc/{pid}/fd"))


def mentioning(text: str) -> dict[int, str]:
    """Processes, other than this one, whose command line holds ``text``: pid to command line."""
    found: dict[int, str] = {}
    for pid in pids():
        with contextlib.suppress(OSError):  # it ended while we looked
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line:
                found[pid] = line
    return found


def environ(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty when it is gone or was never ours to read."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in block.decode(errors="replace").split("\0") if entry)
    return {name: value for name, _, value in pairs}


def parent(pid: int) -> int | None:
    """The parent of a process, zombies included; null when it is gone."""
    for line in _lines(Path(f"/proc/{pid}/status")):
        if line.startswith("PPid:"):
            return int(line.split()[1])
    return None


def pids() -> list[int]:
    """Every process but this one."""
    return [int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit() and int(e.name) != os.getpid()]


def listening(ports: Iterable[int]) -> set[int]:
    """Those of ``ports`` on which anything on this machine listens."""
    wanted, found = set(ports), set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _lines(Path(table))[1:]:
            cells = line.split()
            if cells[3] == "0A":
                found.add(int(cells[1].rpartition(":")[2], 16))
    return wanted & found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _count(path: Path) -> int | None:
    try:
        return len(list(path.iterdir()))
    except OSError:
        return None
