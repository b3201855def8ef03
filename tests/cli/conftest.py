"""The command line against a running manager."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "dashboard"))

from management_door import Manager, running_manager

from llamaman.cli import main


@dataclass
class Outcome:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with running_manager(tmp_path) as manager:
        yield manager


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The environment of a shell on the manager's machine."""
    for name in ("LLAMAMAN_URL", "LLAMAMAN_API_KEY", "LLAMAMAN_API_KEY_FILE", "LLAMAMAN_NODE_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return monkeypatch


@pytest.fixture
def llamaman(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command as the shell would."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(status, captured.out, captured.err)

    return run
