"""A scripted runtime with every ability: its engines are images, and the daemon behind it may go away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from llamaman.errors import LaunchError, RuntimeLost
from llamaman.records import Address, Engine, Exit, Handle, LaunchPlan, ResourceUse

from .fake_runtime import FakeRuntime, World

IMAGE = "example.org/llama:server"
AWAY = "the Docker daemon cannot be reached: is it running?"


@dataclass
class Fetch:
    """One fetch that somebody waits for; a test decides how it goes on."""

    engine: Engine
    report: Callable[[str], None]
    future: Future[None] = field(default_factory=Future)

    def progress(self, text: str) -> None:
        """Tell of it from a thread of the runtime."""
        from_thread(self.report, text)

    def fail(self, error: Exception) -> None:
        from_thread(self.future.set_exception, error)


class FakeDocker(FakeRuntime):
    """``missing``: whether the image has to be fetched first. ``away``: why the daemon cannot be reached."""

    name = "docker"

    def __init__(self) -> None:
        super().__init__()
        self.missing = False
        self.fetches: list[Fetch] = []
        self.fetch_s = 0.0  # how long it takes to begin one
        self.away: str | None = None
        self.finds = 0
        self.memory: int | None = 0
        self.measured = 0
        self.while_finding: Callable[[], None] = lambda: None
        self._finding = threading.Lock()
        self._listeners: list[Callable[[str | None], None]] = []

    # --- the contract

    def engines(self) -> Sequence[Engine]:
        self._may_block("engines")
        if self.missing:
            return [Engine("docker", "image", IMAGE)]
        return [Engine("docker", "image", IMAGE, "b1", None, digest="sha256:abc")]

    def start(self, plan: LaunchPlan) -> Handle:
        self._here()
        if self.missing:
            raise LaunchError(f"Docker image not found: {plan.engine.path}")
        if plan.port or plan.env:
            self.faults.append(f"{plan.instance_id}: started with port {plan.port} and {plan.env}")
        return super().start(plan)

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        self._here()
        return super().stop(handle, grace_s)

    def inspect(self, handle: Handle) -> Exit | None:
        self._here()
        return super().inspect(handle)

    def find(self, node: str, install: str) -> Sequence[Handle]:
        self.finds += 1
        self._here()
        if not self._finding.acquire(blocking=False):
            self.faults.append("asked what runs while it is being asked")
            return super().find(node, install)
        try:
            found = super().find(node, install)
            self.while_finding()
            return found
        finally:
            self._finding.release()

    def handle(self, instance_id: str, generation: int, pid: int, port: int) -> Handle:
        return Handle(instance_id, generation, pid, None, Address(f"10.0.0.{pid - 999}", 8080), f"c{pid}")

    # --- the abilities

    def needs_port(self) -> bool:
        return False

    def engine(self, name: str) -> Engine | None:
        return None

    def fetch(self, engine: Engine, report: Callable[[str], None]) -> Future[None] | None:
        self._may_block("fetch")
        time.sleep(self.fetch_s)
        if not self.missing:
            return None
        self.fetches.append(Fetch(engine, report))
        return self.fetches[-1].future

    def lost(self) -> str | None:
        return self.away

    def on_reach(self, listener: Callable[[str | None], None]) -> None:
        self._listeners.append(listener)

    def usage(self, handle: Handle) -> ResourceUse | None:
        self._here()
        return ResourceUse(cpu_percent=time.monotonic())

    def anonymous_bytes(self, handle: Handle) -> int | None:
        self._may_block("anonymous_bytes")
        self.measured += 1
        return self.memory

    # --- the script

    def go(self, reason: str = AWAY) -> None:
        """The daemon is gone; its containers go on."""
        self.away = reason
        self._tell(reason)

    def come(self) -> None:
        """The daemon is back."""
        self.away = None
        self._tell(None)

    def arrived(self) -> None:
        """The image is here now, and so is whoever waited for it."""
        self.missing = False
        for fetch in self.fetches:
            if not fetch.future.done():
                from_thread(fetch.future.set_result, None)

    def _tell(self, reason: str | None) -> None:
        for listener in self._listeners:
            from_thread(listener, reason)

    def _here(self) -> None:
        if self.away:
            raise RuntimeLost(self.away)


def from_thread(call: Callable[..., Any], *args: Any) -> None:
    thread = threading.Thread(target=call, args=args)
    thread.start()
    thread.join()


Story = Callable[[World, FakeDocker], Coroutine[Any, Any, None]]


def play(world: World, story: Story) -> None:
    """Run a story with one manager; at its end everything must have come to rest."""
    docker = world.runtime
    assert isinstance(docker, FakeDocker)

    async def main() -> None:
        async with world.manager():
            await story(world, docker)
            await world.rest()
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 120))
