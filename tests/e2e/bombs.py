"""A hostile model beside a harmless one, whatever runs them: what must hold, in one place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llamaman.runtimes import procfs
from llamaman.testing import processes, write_memory_bomb
from llamaman.testing.manager import Manager
from llamaman.testing.wire import Answer

GIB = 1 << 30
#: What may be taken by a model that needs some megabytes.
MOST_BYTES = 2 * GIB + GIB // 8
#: What is taken between two looks of the guard, some 300 MB a second, and until it has ended.
LATE_BYTES = 2 * GIB
#: For the bomb, the tests beside this one, and the machine.
NEEDED_BYTES = 7 * GIB

Pids = Callable[[], Iterable[int]]


def need_memory() -> None:
    """Skip where the machine could not bear it."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    (free,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    if free < NEEDED_BYTES:
        pytest.skip(f"a hostile model is only let go where {NEEDED_BYTES // GIB} GiB of memory are free")


def below(pid: int) -> list[int]:
    """A process and all that come from it."""
    parents = {each: processes.parent(each) for each in processes.pids()}
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


@dataclass
class Peak:
    """The most memory without a file behind it that some processes together had at one moment, in bytes."""

    value: int = 0

    @contextmanager
    def watching(self, pids: Pids) -> Iterator[Peak]:
        """Look every 20 ms, from a thread of its own."""
        enough = threading.Event()

        def look() -> None:
            while not enough.wait(0.02):
                held = [memory.anonymous for pid in pids() if (memory := procfs.memory(pid))]
                self.value = max(self.value, sum(held))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            enough.set()
            thread.join()


@contextmanager
def talking(manager: Manager, model: str) -> Iterator[list[Answer]]:
    """One request after the other to a model, and their answers."""
    answers: list[Answer] = []
    enough = threading.Event()

    def talk() -> None:
        while not enough.is_set():
            answers.append(manager.chat(model, max_tokens=2))

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        enough.set()
        thread.join(30)
        assert not thread.is_alive(), "an answer of the harmless model never came"


def ended(manager: Manager, instance_id: str, peak: Peak) -> dict[str, Any] | None:
    """The instance when it has failed; a test that fails here ends its manager, and the bomb with it."""
    assert peak.value < MOST_BYTES + LATE_BYTES, "it was not ended at its ceiling"
    seen = manager.instance(instance_id)
    return seen if seen["status"] == "failed" else None


def let_go(
    manager: Manager, pids: Callable[[str], Iterable[int]], **options: Any
) -> tuple[dict[str, Any], int]:
    """Launch the bomb beside ``tiny``, which must not notice; the failed instance, and the most bytes it had.

    :param pids: instance id -> the processes that run it now.
    """
    write_memory_bomb(manager.models / "bomb.gguf")
    manager.manage("POST", "/api/models/rescan")
    harmless = manager.launch("tiny")
    with talking(manager, "tiny") as answers:
        bomb = manager.launch("bomb", wait=None, **options)
        with Peak().watching(lambda: pids(bomb["id"])) as peak:
            failed = manager.until(lambda: ended(manager, bomb["id"], peak), "the bomb to have failed", 60)
        told = manager.chat("bomb")
        heard = len(answers)
        manager.until(lambda: len(answers) > heard, "the harmless model to answer")
    print(f"at its peak it had {peak.value / GIB:.2f} GiB; {len(answers)} answers of the harmless model")
    assert peak.value > GIB // 8, "it did go off"
    assert {answer.status for answer in answers} == {200}, answers
    now = manager.instance(harmless["id"])
    assert (now["status"], now["generation"]) == ("healthy", harmless["generation"])
    assert told.status == 503
    assert failed["reason"] in told.error
    assert int(told.headers["retry-after"]) >= 1
    assert not list(pids(bomb["id"])), "nothing is left of it"
    return failed, peak.value
