"""Ceilings by control groups, where the machine lets a test make some."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamaman.records import Engine, Exit, Handle
from llamaman.runtimes import limits
from llamaman.runtimes.ceiling import memory_ceiling

from .conftest import Lab, until

HOG = "data = bytearray()\nwhile True: data += bytes(1 << 20)\n"


def groups_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


needs_memory = pytest.mark.skipif(
    "memory" not in limits.enforceable(), reason="no memory control group can be made here"
)


@needs_memory
def test_an_engine_over_its_memory_limit_is_killed_and_that_is_known(lab: Lab) -> None:
    script = lab.folder / "llama-server-hog"
    script.write_text(f"#!{sys.executable} -IS\nimport time\ntime.sleep(0.2)\n{HOG}")
    script.chmod(0o700)
    plan = lab.plan(Engine("llama-server", "binary", str(script)), memory_bytes=64 << 20)
    handle = lab.start(plan)
    assert f"llamaman-{plan.instance_id}-1" in groups_of(handle.pid)
    exit_ = lab.end_of(handle)
    assert (exit_.signal, exit_.oom) == (signal.SIGKILL, True)


@pytest.mark.skipif("cpus" not in limits.enforceable(), reason="no CPU control group can be made here")
def test_groups_are_removed_with_their_engine(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"), cpus=0.5, memory_bytes=1 << 30)
    name = f"llamaman-{handle.instance_id}-1"
    assert name in groups_of(handle.pid)
    made = [folder for folder in Path("/sys/fs/cgroup").rglob(name) if folder.is_dir()]
    assert made
    lab.runtime.stop(handle, 5)
    assert not any(folder.exists() for folder in made)


def test_what_can_be_limited_here_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab.runtime.limits_enforced() <= {"memory", "cpus"}
    for enforceable, missing in ((frozenset({"cpus"}), True), (frozenset({"memory"}), False)):
        monkeypatch.setattr(limits, "enforceable", lambda enforceable=enforceable: enforceable)
        assert any("no memory ceiling" in note for note in lab.runtime.isolation()) is missing


@pytest.mark.real("control groups")
@needs_memory
@pytest.mark.parametrize("asked", [None, 1 << 50])
def test_an_engine_without_a_limit_or_with_too_high_a_one_leaves_the_machine_enough(
    lab: Lab, asked: int | None
) -> None:
    handle = lab.launch(lab.temper("polite"), memory_bytes=asked)
    name = limits.group_name(handle.instance_id, handle.generation)
    assert name in groups_of(handle.pid)
    # The kernel counts in pages.
    assert limits.in_force(name).memory_bytes == memory_ceiling(limits.memory_total()) // 4096 * 4096


def test_we_have_no_more_memory_than_the_machine() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:")) << 10
    assert (64 << 20) < limits.memory_total() <= total


@needs_memory
def test_groups_that_nobody_removed_are_swept_and_others_stay(lab: Lab) -> None:
    engine = lab.temper("polite")
    running = lab.launch(engine)
    left, sleeper = limits.group_name(f"left-{lab.folder.name}", 1), subprocess.Popen(["sleep", "1000"])
    limits.apply(left, sleeper.pid, memory_bytes=1 << 30, cpus=None)
    limits.sweep(older_than_s=0)
    assert left in groups_of(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    limits.sweep()
    assert limits.in_force(left).memory_bytes == 1 << 30  # it could be of a start that is under way
    limits.sweep(older_than_s=0)
    assert limits.in_force(left) == limits.InForce()
    assert limits.in_force(limits.group_name(running.instance_id, 1)) != limits.InForce()


OLD_MANAGER = """
import os, pickle, signal, sys
from pathlib import Path
from llamaman.runtimes.process import ProcessRuntime
runtime = ProcessRuntime(binary=None, embedded=False, state_dir=Path(sys.argv[1]))
print(pickle.dumps(runtime.start(pickle.loads(bytes.fromhex(sys.argv[2])))).hex(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_memory
def test_a_new_manager_knows_that_an_engine_of_the_old_one_was_killed_for_memory(lab: Lab) -> None:
    script, go = lab.folder / "llama-server-hog", lab.folder / "go"
    waits = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    script.write_text(f"#!{sys.executable} -IS\n{waits}{HOG}")
    script.chmod(0o700)
    plan = lab.plan(Engine("llama-server", "binary", str(script)), memory_bytes=64 << 20)
    old = [sys.executable, "-c", OLD_MANAGER, str(lab.folder / "old"), pickle.dumps(plan).hex()]
    told = subprocess.run(old, capture_output=True, text=True, check=False)
    assert told.returncode == -signal.SIGKILL, told.stderr
    handle: Handle = pickle.loads(bytes.fromhex(told.stdout))
    lab.handles.append(handle)
    heard: list[Exit] = []
    lab.runtime.watch(handle, heard.append)
    go.touch()
    until(lambda: heard)
    assert (heard[0].code, heard[0].signal, heard[0].oom) == (None, None, True)
    assert lab.runtime.inspect(handle) == heard[0]


@needs_memory
@pytest.mark.skipif("cpus" not in limits.enforceable(), reason="no CPU control group can be made here")
def test_the_limits_in_force_are_told(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"), cpus=0.5, memory_bytes=1 << 30)
    use = lab.runtime.usage(handle)
    assert use is not None
    assert (use.cpu_quota, use.cpus, use.memory_limit) == (0.5, 0.5, 1 << 30)
