"""A real engine that was started through the process runtime, and plain requests to it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaman.records import Engine, Handle, LaunchPlan
from llamaman.runtimes.process import ProcessRuntime
from llamaman.testing.processes import free_ports

KEY = "key-of-this-test"
FLAGS = ("--ctx-size", "4096", "--threads", "1", "--parallel", "1")


@dataclass
class Talk:
    """One running engine."""

    handle: Handle

    def post(self, path: str, body: dict[str, Any] | bytes) -> tuple[int, bytes]:
        """Status and raw body of a POST."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        address = self.handle.address
        request = urllib.request.Request(
            f"http://{address.host}:{address.port}{path}",
            data,
            {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def healthy(self) -> bool:
        """Whether it is ready."""
        address = self.handle.address
        try:
            with urllib.request.urlopen(f"http://{address.host}:{address.port}/health", timeout=20) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def talking(
    runtime: ProcessRuntime, engine: Engine, model: Path, folder: Path, *flags: str
) -> Iterator[Talk]:
    """A ready engine for the time of the block."""
    plan = LaunchPlan(
        instance_id=f"talk-{folder.name}",
        node="test-node",
        install=folder.name,
        generation=1,
        engine=engine,
        model_path=model,
        alias="tiny",
        options={},
        flags=(*FLAGS, *flags),
        env={},
        host="127.0.0.1",
        port=free_ports(1)[0],
        log_path=folder / "engine.log",
        config_hash="",
        api_key=KEY,
    )
    talk = Talk(runtime.start(plan))
    try:
        deadline = time.monotonic() + 90
        while not talk.healthy():
            assert runtime.inspect(talk.handle) is None, plan.log_path.read_text(errors="replace")
            assert time.monotonic() < deadline, "the engine did not become ready"
            time.sleep(0.01)
        yield talk
    finally:
        runtime.stop(talk.handle, 5)
