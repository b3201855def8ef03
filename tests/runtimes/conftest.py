"""Plans and a client for tests that run real engine processes. Whatever is started here is ended here."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamaman.records import Engine, Exit, Handle, LaunchPlan
from llamaman.runtimes.process import ProcessRuntime
from llamaman.testing import write_temper
from llamaman.testing.processes import free_ports

KEY = "key-of-this-test"


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The first truthy value of ``condition``; fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


@dataclass
class Lab:
    """One runtime with everything that was started through it."""

    runtime: ProcessRuntime
    folder: Path
    model: Path
    handles: list[Handle] = field(default_factory=list)

    def plan(self, engine: Engine, **changes: Any) -> LaunchPlan:
        given: dict[str, Any] = {
            "instance_id": f"i{len(self.handles)}-{self.folder.name}",
            "node": "test-node",
            "install": self.folder.name,
            "generation": 1,
            "engine": engine,
            "model_path": self.model,
            "alias": "tiny",
            "options": {},
            "flags": ("--ctx-size", "2048", "--threads", "1", "--parallel", "1"),
            "env": {},
            "host": "127.0.0.1",
            "port": free_ports(1)[0],
            "log_path": self.folder / "logs" / "engine.log",
            "config_hash": "",
            "api_key": KEY,
        }
        return LaunchPlan(**(given | changes))

    def start(self, plan: LaunchPlan) -> Handle:
        handle = self.runtime.start(plan)
        self.handles.append(handle)
        return handle

    def launch(self, engine: Engine, **changes: Any) -> Handle:
        """Start and wait until it is healthy."""
        handle = self.start(self.plan(engine, **changes))
        self.ready(handle)
        return handle

    def ready(self, handle: Handle) -> None:
        def healthy() -> bool:
            ended = self.runtime.inspect(handle)
            assert ended is None, f"{ended}: {self.log()}"
            try:
                return self.call(handle, "/health")[0] == 200
            except OSError:
                return False

        until(healthy)

    def temper(self, kind: str, **settings: object) -> Engine:
        """A runtime whose binary has this temper, and its engine."""
        binary = write_temper(self.folder, kind, **settings)
        self.runtime.close()
        self.runtime = ProcessRuntime(binary=binary, embedded=False, state_dir=self.folder / "state")
        return self.runtime.engines()[0]

    def call(
        self, handle: Handle, path: str, body: object = None, *, key: str | None = KEY
    ) -> tuple[int, Any]:
        """Status and decoded body."""
        address = handle.address
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"http://{address.host}:{address.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode()

    def log(self) -> str:
        return (self.folder / "logs" / "engine.log").read_text(errors="replace")

    def end_of(self, handle: Handle) -> Exit:
        """Wait for it to end by itself."""
        return until(lambda: self.runtime.inspect(handle))


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path) -> Iterator[Lab]:
    runtime = ProcessRuntime(binary=None, embedded=False, state_dir=tmp_path / "state")
    lab = Lab(runtime, tmp_path, tiny_model)
    yield lab
    for handle in lab.handles:
        lab.runtime.stop(handle, 0)
    lab.runtime.close()


@pytest.fixture
def real_lab(process_runtime: ProcessRuntime, tmp_path: Path, tiny_model: Path) -> Iterator[Lab]:
    """The same around each real engine in turn."""
    lab = Lab(process_runtime, tmp_path, tiny_model)
    yield lab
    for handle in lab.handles:
        lab.runtime.stop(handle, 0)
