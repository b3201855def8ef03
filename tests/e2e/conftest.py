"""Real managers for end-to-end tests. Each ends clean: no engine left behind, no traceback in its output."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pytest

from llamaman.testing import write_temper
from llamaman.testing.engines import TestEngine
from llamaman.testing.manager import Manager


class NewManager(Protocol):
    """Makes a manager with ``tiny.gguf`` among its models, and starts it."""

    def __call__(
        self,
        *,
        binary: Path | None = None,
        env: Mapping[str, str] | None = None,
        start: bool = True,
        instance_ports: int = 8,
    ) -> Manager: ...


@pytest.fixture
def new_manager(tmp_path: Path, tiny_model: Path) -> Iterator[NewManager]:
    managers: list[Manager] = []

    def make(*, start: bool = True, **options: Any) -> Manager:
        manager = Manager(tmp_path / f"m{len(managers)}", **options)
        managers.append(manager)
        shutil.copy(tiny_model, manager.models / "tiny.gguf")
        if start:
            manager.start()
        return manager

    yield make
    left = {}
    for manager in managers:
        if manager.is_alive:
            manager.terminate()
            left |= manager.engines()
        manager.close()
    assert not left, "a manager that ends leaves no engine running"
    for manager in managers:
        assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture
def manager(real_engine: TestEngine, new_manager: NewManager) -> Manager:
    """A running manager, with each real engine in turn."""
    return new_manager(binary=real_engine.binary)


@pytest.fixture(params=[pytest.param("embedded", marks=pytest.mark.real("embedded engine"))])
def embedded(request: pytest.FixtureRequest) -> None:
    """For tests where the engine makes no difference: the one that is always there."""
    from llamaman.testing.engines import available_engines

    (engine,) = (each for each in available_engines() if each.name == request.param)
    if engine.missing:
        pytest.skip(engine.missing)


@pytest.fixture
def plain_manager(embedded: None, new_manager: NewManager) -> Manager:
    """A running manager with the embedded engine."""
    return new_manager()


@pytest.fixture(scope="module")
def shared_manager(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Manager]:
    """A running manager for tests that change nothing; one for all of a module."""
    manager = Manager(tmp_path_factory.mktemp("shared") / "m")
    shutil.copy(tiny_model, manager.models / "tiny.gguf")
    with manager:
        yield manager
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture
def tempered(new_manager: NewManager, tmp_path: Path) -> Callable[..., Manager]:
    """Makes a running manager whose engine has a bad temper: ``tempered("slow", chunk_ms=5)``."""

    def make(kind: str, *, env: Mapping[str, str] | None = None, **settings: object) -> Manager:
        return new_manager(binary=write_temper(tmp_path, kind, **settings), env=env)

    return make


@pytest.fixture
def slow(slow_model: Path) -> Callable[[Manager], str]:
    """Gives a manager the model with which long answers take seconds; its name."""

    def give(manager: Manager) -> str:
        shutil.copy(slow_model, manager.models / "slow.gguf")
        manager.manage("POST", "/api/models/rescan")
        return "slow"

    return give


@pytest.fixture
def at_once() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that run at the same time."""
    with ThreadPoolExecutor(40) as pool:
        yield pool


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Note a figure with the test's report; shown by ``pytest -s`` and in junit files."""

    def note(name: str, seconds: float) -> None:
        record_property(name, round(seconds, 3))
        print(f"{name}: {seconds:.3f} s")

    return note


@pytest.fixture
def clock() -> Callable[[], float]:
    """Seconds since the fixture was made."""
    begun = time.monotonic()
    return lambda: time.monotonic() - begun
