"""What engine processes use: right figures for a real process with children, and none for an ended one."""

from __future__ import annotations

import sys
import time

import pytest

from llamaman.records import Engine, Handle
from llamaman.runtime import MeasuresEngines
from llamaman.runtimes import process_usage

from .conftest import Lab, until

MIB = 1 << 20

#: Holds 64 MiB itself and 32 MiB in a child, of which one is busy, and has 48 MiB of a file mapped.
BUSY = """
import mmap, os, sys, time
own = b"x" * (64 << 20)
with open(sys.argv[0] + ".data", "w+b") as file:
    file.truncate(48 << 20)
    mapped = mmap.mmap(file.fileno(), 0)
    sum(mapped[::4096])
if os.fork() == 0:
    del own
    own = b"y" * (32 << 20)
    open(sys.argv[0] + ".ready", "w").close()
    while True: pass
while True: time.sleep(60)
"""


@pytest.fixture
def busy(lab: Lab) -> Handle:
    script = lab.folder / "llama-server-busy"
    script.write_text(f"#!{sys.executable} -IS\n{BUSY}")
    script.chmod(0o700)
    handle = lab.start(lab.plan(Engine("llama-server", "binary", str(script))))
    until((lab.folder / "llama-server-busy.ready").exists)
    return handle


def test_memory_is_that_of_the_engine_and_its_children_without_files(lab: Lab, busy: Handle) -> None:
    assert isinstance(lab.runtime, MeasuresEngines)
    # What the fork shares with its parent counts twice, as the kernel counts it: the interpreter, little more.
    expected = 96 * MIB
    until(lambda: (lab.runtime.anonymous_bytes(busy) or 0) >= expected)
    assert expected <= (lab.runtime.anonymous_bytes(busy) or 0) < expected + 40 * MIB
    use = lab.runtime.usage(busy)
    assert use is not None
    assert use.memory_bytes is not None
    assert expected <= use.memory_bytes < expected + 40 * MIB


def test_the_share_of_processors_is_known_from_the_second_sample_on(
    lab: Lab, busy: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lab.runtime.usage(busy)
    assert first is not None
    assert first.cpu_percent is None
    assert lab.runtime.usage(busy) is first  # too soon for another one
    monkeypatch.setattr(process_usage, "LEAST_INTERVAL_S", 0.2)

    def share() -> float:
        use = lab.runtime.usage(busy)
        return (use and use.cpu_percent) or 0.0

    until(lambda: share() > 5)  # one busy loop, on a machine that may have much else to do
    assert share() < 150


def test_a_sample_from_long_ago_says_nothing_about_now(
    lab: Lab, busy: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_usage, "LEAST_INTERVAL_S", 0.0)
    monkeypatch.setattr(process_usage, "MOST_INTERVAL_S", 0.0)
    for _ in range(2):
        use = lab.runtime.usage(busy)
        assert use is not None
        assert use.cpu_percent is None


def test_an_ended_engine_uses_nothing_that_is_known(lab: Lab, busy: Handle) -> None:
    lab.runtime.usage(busy)
    lab.runtime.stop(busy, 0)
    until(lambda: lab.runtime.usage(busy) is None)
    assert lab.runtime.anonymous_bytes(busy) is None
    stranger = Handle("x", 1, 1, 12345, busy.address)  # another process has the pid now
    assert lab.runtime.usage(stranger) is None
    assert lab.runtime.anonymous_bytes(stranger) is None


def test_a_question_is_answered_quickly(lab: Lab, busy: Handle) -> None:
    begun = time.monotonic()
    lab.runtime.usage(busy)
    lab.runtime.anonymous_bytes(busy)
    assert time.monotonic() - begun < 10
