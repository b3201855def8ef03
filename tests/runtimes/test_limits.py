"""Ceilings by control groups, where the machine lets a test make some."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from llamaman.records import Engine
from llamaman.runtimes import limits

from .conftest import Lab

HOG = "data = bytearray()\nwhile True: data += bytes(1 << 20)\n"


def groups_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.skipif("memory" not in limits.enforceable(), reason="no memory control group can be made here")
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


def test_what_can_be_limited_here_is_said(lab: Lab) -> None:
    assert lab.runtime.limits_enforced() <= {"memory", "cpus"}


def test_an_engine_without_limits_gets_no_group(lab: Lab) -> None:
    handle = lab.launch(lab.temper("polite"))
    assert "llamaman-i" not in groups_of(handle.pid)
