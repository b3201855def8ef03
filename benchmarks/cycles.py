"""``python -m benchmarks.cycles``: launch and stop one model again and again, and count what stays behind.

Guarantees a comparison like with like: the counts "before" are taken after a few cycles have filled caches
and thread pools, and both looks wait for the counts to settle (an engine that is still being reaped is no
leak). Exit status 1 when anything leaked, 2 when LlamaMan did not come up or a cycle failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import llamaman_proc
from llamaman.testing import processes
from llamaman.testing.manager import Manager

WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Counts:
    """What a manager holds while nothing runs; null = could not be read."""

    ports: int
    """Listening ports of both instance ranges."""
    engines: int
    """Processes that carry the mark of this run's manager."""
    threads: int | None
    descriptors: int | None
    records: int
    rss_mb: float | None


@dataclass(frozen=True, slots=True)
class Leaks:
    """The result of a run; memory is shown, and no leak by itself (an allocator keeps what it has)."""

    cycles: int
    seconds: float
    before: Counts
    after: Counts

    @property
    def leaked(self) -> list[str]:
        """Names of the counts that grew."""
        names = ("ports", "engines", "threads", "descriptors", "records")
        pairs = [(name, getattr(self.before, name), getattr(self.after, name)) for name in names]
        return [name for name, before, after in pairs if before is None or after is None or after > before]


def run(count: int, progress: Callable[[str], None]) -> Leaks:
    """Run ``count`` cycles on a manager of its own.

    :raises llamaman_proc.ManagerError: a launch or a stop failed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="llamaman-bench-") as folder,
        llamaman_proc.prepare(Path(folder) / "manager") as manager,
    ):
        for _ in range(WARM_UP):
            _cycle(manager)
        before = settled(manager)
        begun = time.perf_counter()
        for number in range(count):
            if number % 50 == 0:
                progress(f"cycle {number}/{count}")
            _cycle(manager)
        seconds = time.perf_counter() - begun
        return Leaks(count, seconds, before, settled(manager, before))


def text(leaks: Leaks) -> str:
    """The result in words."""
    lines = [f"{leaks.cycles} launch/stop cycles in {leaks.seconds:.1f} s; before -> after:"]
    for item in dataclasses.fields(Counts):
        before, after = getattr(leaks.before, item.name), getattr(leaks.after, item.name)
        lines.append(f"  {item.name:<12}{_show(before):>8} -> {_show(after)}")
    lines.append("leaked: " + (", ".join(leaks.leaked) or "nothing"))
    return "\n".join(lines)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, int) else f"{value:.1f}"


def _cycle(manager: Manager) -> None:
    llamaman_proc.stop_and_remove(manager, llamaman_proc.launch(manager, 1))


def settled(manager: Manager, goal: Counts | None = None) -> Counts:
    """Counts that two looks half a second apart agree on; with ``goal``, up to 10 s for what is still above
    it."""
    deadline = time.monotonic() + 10
    last = _count(manager)
    while True:
        time.sleep(0.5)
        now = _count(manager)
        same = dataclasses.replace(now, rss_mb=None) == dataclasses.replace(last, rss_mb=None)
        above = goal is not None and bool(Leaks(0, 0, goal, now).leaked)
        if (same and not above) or time.monotonic() > deadline:
            return now
        last = now


def _count(manager: Manager) -> Counts:
    pid = manager.running.pid
    return Counts(
        ports=len(processes.listening((*manager.public_ports, *manager.internal_ports))),
        engines=len(manager.engines()),
        threads=processes.thread_count(pid),
        descriptors=processes.descriptor_count(pid),
        records=len(manager.instances()),
        rss_mb=processes.rss_mb(pid),
    )


def main(argv: Sequence[str]) -> int:
    """Run the check by itself."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cycles", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--cycles", type=int, default=1000)
    wish = parser.parse_args(argv)
    reason = llamaman_proc.unavailable()
    if reason:
        sys.stderr.write(f"LlamaMan cannot be run here: {reason}\n")
        return 2
    try:
        leaks = run(wish.cycles, lambda line: print(line, file=sys.stderr))
    except (processes.NotReady, llamaman_proc.ManagerError, OSError) as problem:
        sys.stderr.write(f"the cycles could not be run: {problem}\n")
        return 2
    sys.stdout.write(text(leaks) + "\n")
    return 1 if leaks.leaked else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
