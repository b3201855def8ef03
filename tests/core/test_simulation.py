"""The pools, admission and the life of instances under random interleavings, in invented time.

Real registry, real supervisors, real pools; the runtime is scripted, and time is invented, so that thousands of
stories of minutes are played in seconds and each can be played again. LLAMAMAN_TEST_STORIES says how many
(10,000 before a release; fewer in every run).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llamaman.core.admission import Launcher, Policy
from llamaman.core.cold_starts import MINUTE_S
from llamaman.core.demand import Demand
from llamaman.core.instance import Instance
from llamaman.core.instances import Instances
from llamaman.core.room import Place, Room, Start
from llamaman.errors import LaunchError, LlamaManError
from llamaman.gateway.grant import Grant
from llamaman.gateway.pool import Pool, Wish
from llamaman.records import Exit, LaunchRequest, State

from .fake_runtime import FakeRuntime, World
from .simulated_time import SimulatedLoop

STORIES = int(os.environ.get("LLAMAMAN_TEST_STORIES", "400"))
STEPS = 18
MODELS = ("alpha", "beta", "gamma")
COUNTED = frozenset(State) - {State.SLEEPING, State.STOPPED, State.FAILED}
#: Who ends an engine only when nobody uses it.
POLITE = ("admission", "idle")

models = st.sampled_from(MODELS)
launchers: st.SearchStrategy[Launcher] = st.sampled_from(["ollama", "openai"])
keys = st.sampled_from([None, None, None, "one", "two"])
moments = st.sampled_from([0.0, 0.01, 0.3, 2.0, 40.0])


class SimulatedRuntime(FakeRuntime):
    """Blocking calls must come from threads, also from those that are none."""

    loop: SimulatedLoop

    def _may_block(self, what: str) -> None:
        if not self.loop.in_thread:
            self.faults.append(f"{what} was called on the event loop")


@dataclass(frozen=True, slots=True)
class Watched:
    """The room that a start was given, and who wants to know when the start begins."""

    place: Place
    start: Start
    told: Callable[[Start], None]

    def begun(self) -> None:
        self.place.begun()
        self.told(self.start)


class Story(RuleBasedStateMachine):
    """One manager and whatever happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="story-"))
        self.random = random.Random(0)
        self.loop = SimulatedLoop(lambda: self.random.choice([0.0, 0.0, 0.02, 0.4]))
        runtime = SimulatedRuntime()
        runtime.loop = self.loop
        self.world = World(self.folder, runtime=runtime)
        self.faults: list[str] = []
        self.asked: dict[asyncio.Task[None], str] = {}
        self.order: dict[tuple[str, Launcher], list[int]] = {}
        self.numbers = itertools.count()
        self.late: set[tuple[str, Launcher]] = set()
        self.line: dict[int, Start] = {}  # starts that wait for room, in the order in which they came
        self.begun: dict[str, list[float]] = {}  # of every key
        self.patches = [
            mock.patch.object(gc, "collect", return_value=0),
            mock.patch.object(Pool, "_grant", self.watched(Pool._grant)),
            mock.patch.object(Room, "for_one", self.in_order(Room.for_one)),
            mock.patch.object(Instances, "ensure_running", self.with_latecomers(Instances.ensure_running)),
        ]
        for patch in self.patches:
            patch.start()

    # --- the beginning and the end

    @initialize(
        limit=st.sampled_from([0, 1, 1, 2]),
        hand=st.booleans(),
        openai=st.booleans(),
        idle=st.sampled_from([0.0, 5.0]),
        starts=st.sampled_from([0, 0, 1, 3]),
        seed=st.integers(0, 2**16),
    )
    def begin(self, limit: int, hand: bool, openai: bool, idle: float, starts: int, seed: int) -> None:
        self.random.seed(seed)
        world = self.world
        world.policy = Policy(
            limit,
            enforce_for_admin=True,
            ollama_may_evict_admin=hand,
            openai_may_evict_managed=openai,
            cold_starts_per_minute=starts,
        )
        world.managed_idle_timeout_s = idle
        world.request_timeout_s = 300.0
        world.drain_timeout_s = 10.0
        world.load_timeout_s = 30.0
        self.manager = world.manager(stop_engines=True)
        self.loop.play(self.manager.__aenter__())
        world.instances.subscribe(self.changed)

    def teardown(self) -> None:
        try:
            if hasattr(self, "manager"):
                self.loop.play(self.peace())
                self.loop.play(self.manager.__aexit__(None, None, None))
                assert not self.world.runtime.live
                assert not self.faults, self.faults
        finally:
            for patch in self.patches:
                patch.stop()
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def peace(self) -> None:
        """No more failures: everybody is answered, and everything is released."""
        world = self.world
        world.runtime.script = type(world.runtime.script)()
        await asyncio.sleep(1)
        while not all(task.done() for task in self.asked):  # more may come while these are waited for
            asked = set(self.asked)
            _, pending = await asyncio.wait(asked, timeout=2000)
            assert not pending, f"never answered: {[self.asked[task] for task in pending]}"
        await asyncio.sleep(1)
        assert not world.instances.waits()
        for view in world.instances.views():
            if view.state is State.FAILED:
                await self.managed(world.instances._by_hand.stop(view.id, "key:admin", force=False))
        await asyncio.sleep(120)
        assert not (found := world.faults()), found

    # --- what happens

    def call(self, what: str, work: Callable[..., Any], *args: Any, **given: Any) -> None:
        async def guarded() -> None:
            try:
                await work(*args, **given)
            except asyncio.CancelledError:
                pass
            except LlamaManError as error:
                # Who waits for what has to leave is answered when it is back.
                if "was stopped: evicted" in error.message:
                    self.faults.append(f"{what}: {error.message}")
            except Exception as error:
                self.faults.append(f"{what}: {type(error).__name__}: {error}")

        self.asked[self.loop.create_task(guarded())] = what

    async def managed(self, work: Any) -> None:
        with contextlib.suppress(LlamaManError):
            await work

    async def use(self, wish: Wish, number: int, hold_s: float, keep_alive: float | None) -> None:
        pool = self.world.pools.of(wish.model.path)
        line = self.order.setdefault((wish.model.name, wish.launcher), [])
        if wish.weight == 1 and wish.only is None:
            line.append(number)
        try:
            grant = pool.try_now(wish) or await pool.wait(wish)
            if number in line and line[0] != number:
                self.faults.append(f"{number} was granted before {line[0]}")
        finally:
            if number in line:
                line.remove(number)
        try:
            await asyncio.sleep(hold_s)
        finally:
            grant.release()
            if keep_alive is not None:
                self.world.instances.keep_alive(grant.instance, keep_alive)

    @rule(
        model=models,
        launcher=launchers,
        weight=st.sampled_from([1, 1, 1, 2, 0]),
        hold_s=moments,
        keep_alive=st.sampled_from([None, None, 0.0, 3.0, float("inf")]),
        crowd=st.sampled_from([1, 1, 1, 6]),
        key=keys,
    )
    def ask(
        self,
        model: str,
        launcher: Launcher,
        weight: int,
        hold_s: float,
        keep_alive: float | None,
        crowd: int,
        key: str | None,
    ) -> None:
        for _ in range(crowd):
            number = next(self.numbers)
            wish = Wish(self.world.models[model], weight, launcher=launcher, key=key)
            what = f"{launcher} asks {model} ({number})"
            self.call(what, self.use, wish, number, hold_s, keep_alive)

    @rule(model=models, launcher=launchers)
    def change_their_minds(self, model: str, launcher: Launcher) -> None:
        """Everybody who wants a model leaves, and somebody comes at the very moment when its start is given up."""
        for task, what in tuple(self.asked.items()):
            if not task.done() and what.startswith(f"{launcher} asks {model} ("):
                self.loop.do(task.cancel)
        self.late.add((model, launcher))

    @rule(which=st.integers(0, 50))
    def ask_a_port(self, which: int) -> None:
        if instance := self.one(which):
            wish = Wish(self.world.models[instance.model], only=instance.id)
            what = f"somebody asks the port of {instance.model}"
            self.call(what, self.use, wish, next(self.numbers), 0.2, None)

    @rule(which=st.integers(0, 50))
    def leave(self, which: int) -> None:
        asking = [task for task, what in self.asked.items() if not task.done() and " asks " in what]
        if asking:
            self.loop.do(asking[which % len(asking)].cancel)

    @rule(seconds=moments)
    def wait(self, seconds: float) -> None:
        self.loop.play(asyncio.sleep(seconds))

    @rule(model=models, pinned=st.booleans(), embedding=st.sampled_from([False, False, True]))
    def launch(self, model: str, pinned: bool, embedding: bool) -> None:
        request = LaunchRequest(
            self.world.models[model].path, {"pinned": pinned, "embedding_model": embedding}
        )
        self.call(f"launch {model}", self.world.instances._launching.launch, request, "key:admin")

    @rule(which=st.integers(0, 50), force=st.booleans())
    def stop(self, which: int, force: bool) -> None:
        if instance := self.one(which):
            self.call("stop", self.world.instances._by_hand.stop, instance.id, "key:admin", force=force)

    @rule(which=st.integers(0, 50))
    def restart(self, which: int) -> None:
        if instance := self.one(which):
            restart = self.world.instances._by_hand.restart
            self.call("restart", restart, instance.id, "key:admin", {}, confirm_overcommit=False)

    @rule(which=st.integers(0, 50))
    def remove(self, which: int) -> None:
        if instance := self.one(which):
            self.call("remove", self.world.instances._by_hand.remove, instance.id, "key:admin")

    @rule(model=models)
    def unload(self, model: str) -> None:
        self.loop.do(self.world.instances.unload, self.world.models[model].path)

    @rule(code=st.sampled_from([0, 1]), which=st.integers(0, 50))
    def die(self, code: int, which: int) -> None:
        if pids := sorted(self.world.runtime.live):
            exit_ = Exit(code, None, self.loop.now)
            self.loop.do(self.world.runtime.exit, pids[which % len(pids)], exit_)

    @rule(
        start=st.sampled_from([None, None, LaunchError("no")]),
        stop=st.sampled_from([None, None, LaunchError("stuck")]),
        ready=st.sampled_from([True, True, True, False]),
        dies=st.sampled_from([False, False, False, True]),
    )
    def trouble(self, start: Any, stop: Any, ready: bool, dies: bool) -> None:
        script = self.world.runtime.script
        script.start_error, script.stop_error, script.ready, script.dies_at_once = start, stop, ready, dies

    @rule(model=models, preset=st.sampled_from([{}, {"max_concurrent": 1}, {"parallel": 2}]))
    def preset(self, model: str, preset: dict[str, Any]) -> None:
        self.world.presets[self.world.models[model].path] = preset
        self.loop.do(self.world.instances.preset_saved, model)

    # --- what always holds

    @invariant()
    def never_more_than_the_limit(self) -> None:
        limit = self.world.policy.max_models
        if not limit or not hasattr(self.world, "instances"):
            return
        with self.loop.running():
            counted = [
                view
                for view in self.world.instances.views()
                if view.state in COUNTED and not view.options.get("embedding_model")
            ]
        assert len(counted) <= limit, [(view.model, view.state, view.reason) for view in counted]

    @invariant()
    def nothing_has_gone_wrong(self) -> None:
        assert not self.faults, self.faults
        assert not self.world.runtime.faults, self.world.runtime.faults
        assert not self.world.loop_errors, self.world.loop_errors

    def changed(self, instance: Instance, previous: State | None) -> None:
        # What is loading has no requests of its own; those of its last run may still be on their way out.
        ran = previous in (State.READY, State.DRAINING)
        if ran and instance.state is State.STOPPING and instance.actor in POLITE and instance.active:
            self.faults.append(f"{instance.actor} ended {instance.model} in the middle of a request")

    def watched(self, grant: Any) -> Any:
        def watch(pool: Pool, instance: Instance, wish: Wish) -> Grant:
            if instance.state is not State.READY:
                self.faults.append(f"a grant on an instance that is {instance.state}")
            if instance.active + wish.weight > instance.capacity:
                self.faults.append(f"{instance.active} + {wish.weight} requests in {instance.capacity} slots")
            granted: Grant = grant(pool, instance, wish)
            return granted

        return watch

    def in_order(self, for_one: Any) -> Any:
        @contextlib.asynccontextmanager
        async def watch(room: Room, start: Start) -> AsyncIterator[Place]:
            number = next(self.numbers)
            if start.launcher != "admin" and not start.embedding and start.key is None:
                self.line[number] = start
            try:
                async with for_one(room, start) as place:
                    if start.launcher != "admin" and not start.embedding and self.world.policy.max_models:
                        before = [each.model for turn, each in self.line.items() if turn < number]
                        if before:
                            self.faults.append(f"the start of {start.model} overtook {before}")
                    yield Watched(place, start, self.start_begun)
            finally:
                self.line.pop(number, None)

        return watch

    def start_begun(self, start: Start) -> None:
        limit = self.world.policy.cold_starts_per_minute
        if start.key is None or not limit:
            return
        begun = self.begun.setdefault(start.key, [])
        begun.append(self.loop.now)
        lately = [moment for moment in begun if moment > self.loop.now - MINUTE_S]
        if len(lately) > limit:
            self.faults.append(f"key {start.key} has begun {lately} within a minute")

    def with_latecomers(self, ensure_running: Any) -> Any:
        async def watch(instances: Instances, demand: Demand) -> None:
            try:
                await ensure_running(instances, demand)
            finally:
                who = demand.model.name, demand.launcher
                if demand.only is None and who in self.late:
                    self.late.remove(who)
                    number = next(self.numbers)
                    wish = Wish(demand.model, launcher=demand.launcher, key=demand.key)
                    what = f"{demand.launcher} asks {demand.model.name} ({number}), late"
                    self.call(what, self.use, wish, number, 0.3, None)

        return watch

    def one(self, which: int) -> Instance | None:
        instances = [self.world.get(view.id) for view in self.world.instances.views()]
        return instances[which % len(instances)] if instances else None


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=STORIES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
