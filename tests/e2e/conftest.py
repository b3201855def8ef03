"""Real managers for end-to-end tests. Each ends clean: no engine left behind, no traceback in its output."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from llamaman.testing import write_temper
from llamaman.testing.engines import TestEngine, available_engines
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


def end(manager: Manager) -> None:
    """End a manager in order, and see that it was in order."""
    left = {}
    if manager.is_alive:
        manager.terminate()
        left = manager.engines()
    manager.close()
    assert not left, "a manager that ends leaves no engine running"
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


def _lift_cold_starts(manager: Manager) -> None:
    """All tests that borrow it use one key, which starts more models a minute than a client's key may."""
    manager.setting(inference={"cold_starts_per_minute": 0})


@pytest.fixture
def new_manager(tmp_path: Path, tiny_model: Path) -> Iterator[NewManager]:
    """Makes managers for this test alone."""
    with ExitStack() as stack:

        def make(*, start: bool = True, **options: Any) -> Manager:
            manager = Manager(tmp_path / secrets.token_hex(4), **options)
            shutil.copy(tiny_model, manager.models / "tiny.gguf")
            stack.callback(end, manager)
            if start:
                manager.start()
            return manager

        yield make


@dataclass(frozen=True, slots=True)
class Lender:
    """Lends running managers to one test after the other: starting one takes longer than most tests do."""

    folder: Path
    model: Path
    managers: dict[str, Manager] = field(default_factory=dict)

    def take(self, engine: TestEngine) -> Manager:
        """A running manager in which nothing has happened that can still be seen."""
        manager = self.managers.get(engine.name)
        if manager is None:
            manager = Manager(self.folder / secrets.token_hex(4), binary=engine.binary)
            shutil.copy(self.model, manager.models / "tiny.gguf")
            try:
                manager.start()
            except BaseException:  # what does not start is not lent to the next one
                manager.close()
                raise
            self.managers[engine.name] = manager
            _lift_cold_starts(manager)
        return manager

    def give_back(self, engine: TestEngine) -> None:
        """Make it as new; one that cannot be made so is not lent again."""
        manager = self.managers.pop(engine.name)
        try:
            if not manager.is_alive:
                manager.start()
            manager.clear()
            manager.setting(require_auth=True)
            _lift_cold_starts(manager)
            for path in manager.manage("GET", "/api/presets"):
                manager.manage("DELETE", f"/api/presets/{quote(path.lstrip('/'))}")
            for model in set(manager.models.iterdir()) - {manager.models / "tiny.gguf"}:
                model.unlink()
            manager.manage("POST", "/api/models/rescan")
            assert not manager.engines(), "no engine runs that no instance owns"
        except BaseException:
            manager.close()
            raise
        assert "Traceback" not in manager.output(), manager.output()[-4000:]
        self.managers[engine.name] = manager


@pytest.fixture(scope="session")
def lender(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Lender]:
    """Running managers for all tests of a run."""
    lender = Lender(tmp_path_factory.mktemp("lent"), tiny_model)
    yield lender
    for manager in lender.managers.values():
        end(manager)


@pytest.fixture
def manager(real_engine: TestEngine, lender: Lender) -> Iterator[Manager]:
    """A running manager, with each real engine in turn."""
    yield lender.take(real_engine)
    lender.give_back(real_engine)


@pytest.fixture(params=[pytest.param("embedded", marks=pytest.mark.real("embedded engine"))])
def embedded(request: pytest.FixtureRequest) -> TestEngine:
    """For tests where the engine makes no difference: the one that is always there."""
    (engine,) = (each for each in available_engines() if each.name == request.param)
    if engine.missing:
        pytest.skip(engine.missing)
    return engine


@pytest.fixture
def plain_manager(embedded: TestEngine, lender: Lender) -> Iterator[Manager]:
    """A running manager with the embedded engine."""
    yield lender.take(embedded)
    lender.give_back(embedded)


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
def measured() -> Callable[[str, float], None]:
    """Print a figure; ``pytest -rP`` shows those of passed tests, ``pytest -s`` all of them."""

    def note(name: str, seconds: float) -> None:
        print(f"{name}: {seconds:.3f} s")

    return note
