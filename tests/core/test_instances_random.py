"""Random calls, requests, deaths and failures against one registry: at rest nothing is wrong.

Each seed is one run: a few hundred steps that do not wait for one another, then everything is let go and the
world must come to rest with every caller answered. A failing seed repeats its order of steps; where threads
make the difference, several runs of it may be needed.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import breaker, by_hand, fetching, notes, reconcile, supervisor
from llamaman.core.admission import Policy
from llamaman.errors import LaunchError, LlamaManError
from llamaman.records import Exit, State

from .fake_docker import FakeDocker
from .fake_runtime import MemoryStore, World

MODELS = ("alpha", "beta", "gamma")
STEPS = 150


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of seconds become pauses of milliseconds."""
    monkeypatch.setattr(by_hand, "USER_DRAIN_S", 0.05)
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(notes, "FIRST_WRITE_PAUSE_S", 0.01)
    monkeypatch.setattr(notes, "LONGEST_WRITE_PAUSE_S", 0.05)
    monkeypatch.setattr(supervisor, "LONGEST_BACKOFF_S", 0.05)
    monkeypatch.setattr(supervisor, "LOST_PAUSE_S", 0.01)
    monkeypatch.setattr(fetching, "HOLD_S", 0.05)
    monkeypatch.setattr(reconcile, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE_S", 0.05)


class Chaos:
    """One run."""

    def __init__(self, world: World, seed: int, *, failing_store: bool) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.failing_store = failing_store
        self.docker = world.runtime if isinstance(world.runtime, FakeDocker) else None
        self.calls: list[asyncio.Task[Any]] = []
        self.unexpected: list[str] = []
        self.step = 0
        self.stopped_in: dict[str, int] = {}
        self.started_in: dict[str, int] = defaultdict(int)  # by instance id and by model name

    # --- steps

    def one(self) -> str | None:
        ids = [view.id for view in self.world.instances.views()]
        return self.random.choice(ids) if ids else None

    def call(self, work: Coroutine[Any, Any, Any]) -> None:
        async def guarded() -> None:
            try:
                await work
            except LlamaManError:
                pass
            except Exception as error:
                self.unexpected.append(f"step {self.step}: {type(error).__name__}: {error}")

        self.calls.append(asyncio.get_running_loop().create_task(guarded()))

    def launch(self) -> None:
        options = self.random.choice(
            [{}, {"idle_timeout_min": 5}, {"restart_policy": "on-failure"}, {"pinned": True}, {"parallel": 2}]
        )
        self.call(self.world.launch(self.random.choice(MODELS), **options))

    def stop(self) -> None:
        if instance_id := self.one():
            self.stopped_in[instance_id] = self.step
            self.call(self.world.stop(instance_id, force=self.random.random() < 0.3))

    def restart(self) -> None:
        if instance_id := self.one():
            self.started_in[instance_id] = self.step
            self.call(self.world.restart(instance_id, ctx_size=self.random.choice([512, 1024])))

    def remove(self) -> None:
        if instance_id := self.one():
            self.call(self.world.remove(instance_id))

    def ask(self) -> None:
        model = self.random.choice(MODELS)
        only = self.one() if self.random.random() < 0.3 else None
        if only:
            model = self.world.get(only).model
        self.started_in[model] = self.step
        for _ in range(20 if self.random.random() < 0.2 else 1):
            self.call(self.hold(model, only, self.random.random() * 0.03))

    async def hold(self, model: str, only: str | None, seconds: float) -> None:
        grant = await self.world.grant(model, only=only)
        await asyncio.sleep(seconds)
        grant.release()

    def die(self) -> None:
        if pids := list(self.world.runtime.live):
            status = Exit(self.random.choice([0, 1]), None, 0.0)
            self.world.runtime.exit(self.random.choice(pids), status)

    def script(self) -> None:
        script = self.world.runtime.script
        script.start_s = self.random.choice([0, 0, 0.01, 0.03])
        script.stop_s = self.random.choice([0, 0, 0.01, 0.03])
        script.start_error = self.random.choice([None, None, None, LaunchError("no"), OSError("bug")])
        script.stop_error = self.random.choice([None, None, None, LaunchError("stuck"), OSError("bug")])
        script.ready = self.random.random() < 0.9
        script.dies_at_once = self.random.random() < 0.1
        self.world.store.delay_s = self.random.choice([0, 0, 0.002])
        if self.failing_store:
            self.world.store.read_only = self.random.random() < 0.2

    def suspect(self) -> None:
        if instance_id := self.one():
            self.world.instances.suspect(self.world.get(instance_id))

    def preset(self) -> None:
        model = self.random.choice(MODELS)
        preset = self.random.choice([{}, {"idle_timeout_min": 1}, {"max_concurrent": 1}])
        self.world.presets[self.world.models[model].path] = preset
        self.world.instances.preset_saved(model)

    def limit(self) -> None:
        self.world.policy = Policy(
            max_models=self.random.choice([0, 1, 2, 3]),
            enforce_for_admin=self.random.random() < 0.5,
            openai_may_evict_managed=True,
        )

    def daemon(self) -> None:
        """The daemon goes and comes, images come and go, and all is looked at."""
        assert self.docker
        step = self.random.choice(["go", "come", "come", "missing", "arrived", "arrived", "progress", "fail"])
        if step == "go":
            self.docker.go()
        elif step == "come":
            self.docker.come()
        elif step == "missing":
            self.docker.missing = True
        elif step == "arrived":
            self.docker.arrived()
        elif fetches := [each for each in self.docker.fetches if not each.future.done()]:
            if step == "progress":
                fetches[0].progress(f"pulling image, {self.step} %")
            else:
                fetches[0].fail(LaunchError("Docker image not found"))

    def reconcile(self) -> None:
        self.call(asyncio.to_thread(self.world.instances.reconcile))

    def take_a_port(self) -> None:
        free = [port for port in (18_000, 18_001, 18_002) if port not in self.world.machine.bound]
        self.world.machine.taken = set(self.random.sample(free, self.random.randint(0, len(free))))

    # --- a run

    async def run(self) -> None:
        steps: list[Callable[[], None]] = [
            *[self.ask] * 6, *[self.launch] * 2, *[self.stop] * 3, *[self.restart] * 3, self.remove, self.remove,
            *[self.die] * 2, *[self.script] * 2, self.suspect, self.preset, self.limit, self.take_a_port,
        ]  # fmt: skip
        if self.docker:
            steps += [*[self.daemon] * 5, self.reconcile, self.reconcile]
        for self.step in range(1, STEPS):
            if len(self.world.instances.views()) > 6 and self.random.random() < 0.7:
                self.random.choice([self.stop, self.remove])()
            else:
                self.random.choice(steps)()
            if self.random.random() < 0.7:
                await asyncio.sleep(self.random.random() * 0.008)
        await self.peace()

    async def peace(self) -> None:
        """No more failures; what was asked of it must be answered, and the world come to rest."""
        world = self.world
        world.runtime.script = type(world.runtime.script)()
        world.store.read_only = False
        world.store.delay_s = 0
        if self.docker:
            self.docker.arrived()
            self.docker.come()
            await asyncio.to_thread(world.instances.reconcile)
        self.step += 1
        last = [view.id for view in world.instances.views() if self.random.random() < 0.5]
        for instance_id in last:
            self.call(world.stop(instance_id))
        _, pending = await asyncio.wait(self.calls, timeout=20)
        assert not pending, f"{len(pending)} callers were never answered:\n{self.picture(pending)}"
        assert not self.unexpected, self.unexpected
        for instance_id in last:
            if (instance := world.instances.get(instance_id)) and instance.state is not State.FAILED:
                assert instance.state is State.STOPPED, f"{instance.state} after a stop: {instance.reason}"
        # What could not be stopped earlier may be now; what still runs shows that it works.
        for view in world.instances.views():
            if view.state is State.FAILED:
                await world.stop(view.id)
        await world.rest()
        self.check_history()

    def check_history(self) -> None:
        seen: dict[str, int] = {}
        for instance_id, state, generation in self.world.history:
            if state is State.PREPARING:
                assert generation > seen.get(instance_id, 0), "generations grow"
                seen[instance_id] = generation

    def picture(self, pending: set[asyncio.Task[Any]]) -> str:
        views = [
            f"{view.id[:8]} {view.model} {view.state}: {view.reason}" for view in self.world.instances.views()
        ]
        return "\n".join([*views, *(repr(task.get_coro()) for task in list(pending)[:5])])


def play(
    folder: Path, seed: int, *, store: Any = None, failing_store: bool = False, runtime: Any = None
) -> None:
    world = World(folder, store, runtime)
    world.managed_idle_timeout_s = 0.05

    async def main() -> None:
        async with world.manager():
            await Chaos(world, seed, failing_store=failing_store).run()
        # The next manager finds the same world.
        before = {view.id: view.state for view in world.instances.views()}
        live = set(world.runtime.live)
        world.machine.taken.clear()
        async with world.manager(stop_engines=True):
            assert {view.id for view in world.instances.views()} == before.keys()
            await world.rest()
            assert live >= set(world.runtime.live)
        assert not world.runtime.live
        assert not world.loop_errors
        assert not world.runtime.faults

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_it_comes_to_rest_with_nothing_wrong(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed)


@pytest.mark.parametrize("seed", range(300, 312))
def test_whatever_happens_while_a_daemon_and_its_images_come_and_go(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed, runtime=FakeDocker())


@pytest.mark.parametrize("seed", range(100, 104))
def test_whatever_happens_with_a_store_that_fails_now_and_then(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed, store=MemoryStore(), failing_store=True)


@pytest.mark.parametrize("seed", range(200, 202))
def test_whatever_happens_the_files_of_the_real_store_agree(tmp_path: Path, seed: int) -> None:
    from llamaman_store_json.store import JsonStore

    (tmp_path / "data").mkdir(mode=0o700)
    store = JsonStore(tmp_path / "data")
    try:
        play(tmp_path, seed, store=store)
    finally:
        store.close()
