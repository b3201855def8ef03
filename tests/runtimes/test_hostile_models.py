"""A model whose chat template takes all memory while it is loaded: it is seen to, and the kernel ends it in time."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from llamaman.records import Engine
from llamaman.runtimes import limits
from llamaman.testing import write_memory_bomb

from .conftest import Lab, until

MIB = 1 << 20


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_memory_bomb(tmp_path_factory.mktemp("hostile") / "bomb.gguf")


def test_its_file_is_small_and_in_order(bomb: Path) -> None:
    assert bomb.stat().st_size < MIB


def test_what_it_takes_is_seen_while_it_is_loaded(real_lab: Lab, engine: Engine, bomb: Path) -> None:
    usual = real_lab.launch(engine)
    taken = real_lab.runtime.anonymous_bytes(usual)
    assert taken is not None
    real_lab.runtime.stop(usual, 0)
    handle = real_lab.start(real_lab.plan(engine, model_path=bomb, memory_bytes=2048 * MIB))
    for most in (taken + 200 * MIB, taken + 400 * MIB):
        until(lambda most=most: (real_lab.runtime.anonymous_bytes(handle) or 0) > most)
    assert real_lab.runtime.inspect(handle) is None
    real_lab.runtime.stop(handle, 0)


@pytest.mark.real("control groups")
@pytest.mark.skipif("memory" not in limits.enforceable(), reason="no memory control group can be made here")
def test_the_kernel_ends_it_at_its_limit_and_that_is_known(real_lab: Lab, engine: Engine, bomb: Path) -> None:
    neighbour = real_lab.launch(engine)
    handle = real_lab.start(real_lab.plan(engine, model_path=bomb, memory_bytes=512 * MIB))
    exit_ = real_lab.end_of(handle)
    assert (exit_.signal, exit_.oom) == (signal.SIGKILL, True)
    assert real_lab.call(neighbour, "/health")[0] == 200
