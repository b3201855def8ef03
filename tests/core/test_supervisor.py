"""The life of one instance: what a message means in each state, above all when two of them cross."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import messages as m
from llamaman.core.breaker import Breaker
from llamaman.core.instance import Instance
from llamaman.core.memory_guard import Allowance
from llamaman.core.services import Report, Services
from llamaman.core.supervisor import Supervisor
from llamaman.errors import LaunchError
from llamaman.records import Address, Engine, Exit, Handle, LaunchPlan, State

from .some_instance import some_instance

ADMIN = m.Stop("stopped", "key:admin", "stopped by an administrator", 0.2)
EVICT = m.Stop("sleeping", "admission", "evicted", 0.1, give_up=True)


@dataclass
class Answer:
    """An engine's answer."""

    body: bytes
    status: int = 200

    async def read_all(self, limit: int) -> bytes:
        return self.body


class Client:
    """An engine that is ready at once."""

    async def request(self, method: str, target: bytes, headers: Any, body: bytes = b"", **_: Any) -> Answer:
        return Answer(json.dumps({"total_slots": 2, "default_generation_settings": {"n_ctx": 99}}).encode())

    async def close(self) -> None: ...

    def abort(self) -> None: ...


@dataclass
class World:
    """One supervisor and everything that it asks for. Gates hold a step back until a test opens them."""

    instance: Instance
    planning: asyncio.Event = field(default_factory=asyncio.Event)
    spawning: asyncio.Event = field(default_factory=asyncio.Event)
    fetching: str | None = None
    plan_error: Exception | None = None
    spawn_error: Exception | None = None
    stop_error: Exception | None = None
    diagnose_error: Exception | None = None
    running: set[int] = field(default_factory=set)
    states: list[State] = field(default_factory=list)
    internal: set[str] = field(default_factory=set)
    exited: Callable[[Exit], None] = lambda _: None
    spawned: int = 0

    def __post_init__(self) -> None:
        self.planning.set()
        self.spawning.set()
        self.supervisor = Supervisor(self.instance, self.services())
        self.supervisor.run()

    # --- a runtime

    name = "process"

    def start(self, plan: LaunchPlan) -> Handle:
        if self.spawn_error:
            raise self.spawn_error
        self.spawned += 1
        self.running.add(self.spawned)
        return Handle(plan.instance_id, plan.generation, self.spawned, 1, Address("127.0.0.1", 1))

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        if self.stop_error:
            raise self.stop_error
        assert handle.pid is not None
        self.running.discard(handle.pid)
        return Exit(0, None, 1.0)

    def watch(self, handle: Handle, on_exit: Callable[[Exit], None]) -> Callable[[], None]:
        self.exited = on_exit
        return lambda: None

    # --- services

    def services(self) -> Services:
        async def run(function: Callable[..., Any], *arguments: Any) -> Any:
            await asyncio.sleep(0)
            return function(*arguments)

        async def spawn(function: Callable[..., Any], *arguments: Any) -> Any:
            await self.spawning.wait()
            return function(*arguments)

        async def plan(instance: Instance, generation: int, report: Report) -> LaunchPlan:
            if self.fetching:
                report(self.fetching)
            await self.planning.wait()
            if self.plan_error:
                raise self.plan_error
            self.internal.add(instance.id)
            return LaunchPlan(
                instance.id, "n", "i", generation, Engine("e", "binary", "/e"), Path("/m"), "tiny", {}, (), {},
                "127.0.0.1", 1, Path("/dev/null"), "", "key",
            )  # fmt: skip

        async def nothing(instance: Instance) -> None:
            await asyncio.sleep(0)

        def diagnose(instance: Instance, exit_: Exit) -> str:
            if self.diagnose_error:
                raise self.diagnose_error
            return "it died"

        return Services(
            start=spawn,
            stop=run,
            inspect=run,
            persist=nothing,
            plan=plan,
            api_key=lambda instance_id, generation: "key",
            runtime=lambda name: self,  # type: ignore[arg-type,return-value] # all that is asked of it
            lost=lambda name: None,
            connect=lambda address: Client(),
            changed=lambda instance, previous: self.states.append(instance.state),
            told=lambda instance, kind: None,
            diagnose=diagnose,
            allowance=lambda instance: Allowance(1, 1),
            release_internal=lambda instance: self.internal.discard(instance.id),
            release_port=nothing,
            open_port=nothing,
            idle_timeout_s=lambda instance: 0.0,
            breaker=Breaker(),
            load_timeout_s=5.0,
            health_timeout_s=1.0,
        )

    # --- for tests

    def want(self) -> None:
        self.supervisor.post(m.Want("key:admin", "launched"))

    async def ready(self) -> None:
        self.want()
        await self.reach(State.READY)

    async def reach(self, state: State) -> None:
        async with asyncio.timeout(5):
            while self.instance.state is not state:
                await asyncio.sleep(0.002)

    async def end(self, stop: m.Stop) -> bool:
        """Post a stop and wait for its outcome, as the registry does."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.supervisor.post(m.Stop(stop.target, stop.actor, stop.reason, stop.drain_s, stop.give_up, done))
        return await asyncio.wait_for(done, 5)


def live(main: Callable[[World], Coroutine[Any, Any, None]], **given: Any) -> None:
    """Run a story around one supervisor."""

    async def story() -> None:
        world = World(some_instance(**({"state": State.QUEUED} | given)))
        try:
            await main(world)
        finally:
            await world.supervisor.close()

    asyncio.run(asyncio.wait_for(story(), 20))


def test_a_wanted_instance_becomes_ready_and_says_what_the_engine_said() -> None:
    async def main(world: World) -> None:
        await world.ready()
        assert world.states == [State.PREPARING, State.STARTING, State.READY]
        assert (world.instance.slots, world.instance.context_length) == (2, 99)
        assert world.instance.generation == 1
        assert await world.end(ADMIN)
        assert (world.instance.state, world.running, world.internal) == (State.STOPPED, set(), set())

    live(main)


def test_a_stop_while_it_is_planned_leaves_nothing() -> None:
    async def main(world: World) -> None:
        world.planning.clear()
        world.want()
        await world.reach(State.PREPARING)
        ending = asyncio.ensure_future(world.end(ADMIN))
        await asyncio.sleep(0.01)
        world.planning.set()
        assert await ending
        assert (world.instance.state, world.spawned, world.internal) == (State.STOPPED, 0, set())

    live(main)


def test_a_start_that_was_given_up_during_a_fetch_stays_so_even_if_its_plan_or_failure_comes_late() -> None:
    async def main(world: World) -> None:
        world.fetching = "pulling image, 43 %"
        world.planning.clear()
        world.want()
        while not world.instance.fetching:
            await asyncio.sleep(0.002)
        assert await world.end(ADMIN)
        world.planning.set()
        plan = await world.supervisor._s.plan(world.instance, 1, lambda text: None)
        await world.supervisor.tell(m.Planned(1, plan))
        await world.supervisor.tell(m.StartFailed(1, LaunchError("late")))
        await world.supervisor.tell(m.Fetching(1, "pulling image, 99 %"))
        assert (world.instance.state, world.spawned, world.instance.fetching) == (State.STOPPED, 0, None)

    live(main)


def test_a_stop_while_it_is_spawned_ends_the_process() -> None:
    async def main(world: World) -> None:
        world.spawning.clear()
        world.want()
        await world.reach(State.STARTING)
        ending = asyncio.ensure_future(world.end(ADMIN))
        await asyncio.sleep(0.01)
        world.spawning.set()
        assert await ending
        assert (world.instance.state, world.spawned, world.running) == (State.STOPPED, 1, set())
        assert world.internal == set()

    live(main)


@pytest.mark.parametrize("step", ["plan_error", "spawn_error"])
@pytest.mark.parametrize("error", [LaunchError("no such engine"), ZeroDivisionError("bug")])
def test_a_start_that_fails_says_why_and_leaves_nothing(step: str, error: Exception) -> None:
    async def main(world: World) -> None:
        setattr(world, step, error)
        world.want()
        await world.reach(State.FAILED)
        await asyncio.sleep(0.01)
        assert "no such engine" in world.instance.reason or "ZeroDivisionError" in world.instance.reason
        assert (world.running, world.internal) == (set(), set())
        setattr(world, step, None)
        await world.ready()  # and may be tried again

    live(main)


def test_an_eviction_never_weakens_a_stop_by_an_administrator() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.instance.active = 1  # a request is running
        stopping = asyncio.ensure_future(world.end(ADMIN))
        await world.reach(State.DRAINING)
        evicting = asyncio.ensure_future(world.end(EVICT))
        assert await stopping
        assert await evicting
        assert world.instance.state is State.STOPPED
        assert world.running == set()

    live(main)


def test_an_eviction_gives_up_when_requests_go_on() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.instance.active = 1
        assert await world.end(EVICT) is False
        assert (world.instance.state, world.running) == (State.READY, {1})
        assert world.instance.desired == "running"

    live(main)


@pytest.mark.parametrize("state", [State.STOPPED, State.FAILED, State.SLEEPING])
def test_an_eviction_of_what_has_gone_meanwhile_changes_nothing(state: State) -> None:
    async def main(world: World) -> None:
        assert await world.end(EVICT)
        assert world.instance.state is state

    live(main, state=state)


def test_an_administrators_stop_of_what_sleeps_stops_it() -> None:
    async def main(world: World) -> None:
        assert await world.end(ADMIN)
        assert world.instance.state is State.STOPPED

    live(main, state=State.SLEEPING)


def test_a_drain_ends_with_the_last_request() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.instance.active = 1
        stopping = asyncio.ensure_future(world.end(m.Stop("stopped", "key:a", "stop", 30)))
        await world.reach(State.DRAINING)
        world.instance.active = 0
        world.supervisor.released()
        assert await stopping
        assert world.instance.state is State.STOPPED

    live(main)


def test_a_process_that_dies_fails_the_instance_with_its_cause() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.exited(Exit(None, 11, 0.0))
        await world.reach(State.FAILED)
        assert (world.instance.reason, world.instance.crashes, world.internal) == ("it died", 1, set())

    live(main, options={"restart_policy": "never"})


def test_a_cause_that_cannot_be_found_out_does_not_leave_the_waiters_waiting() -> None:
    async def main(world: World) -> None:
        world.diagnose_error = UnicodeError("a strange log")
        await world.ready()
        world.exited(Exit(None, 11, 0.0))
        await world.reach(State.FAILED)
        assert "11" in world.instance.reason

    live(main, options={"restart_policy": "never"})


def test_what_cannot_be_stopped_is_failed_and_whoever_stops_it_is_told() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.stop_error = LaunchError("no permission")
        assert await world.end(ADMIN) is False
        assert world.instance.state is State.FAILED
        assert "no permission" in world.instance.reason

    live(main)


def test_late_news_of_an_earlier_generation_changes_nothing_but_a_late_process_is_ended() -> None:
    async def main(world: World) -> None:
        await world.ready()
        old = Handle("i0", 0, 77, 1, Address("127.0.0.1", 1))
        world.running.add(77)
        for late in (
            m.Exited(0, Exit(1, None, 0.0)),
            m.NotReady(0, "late"),
            m.Stopped(0, None),
            m.StartFailed(0, LaunchError("late")),
            m.Idle(0),
            m.Suspect(0),
        ):
            world.supervisor.post(late)
        await world.supervisor.tell(m.Started(0, old))
        assert (world.instance.state, world.running) == (State.READY, {1})

    live(main)


def test_a_start_after_an_internal_error_is_not_stopped_by_what_was_left_of_it() -> None:
    async def main(world: World) -> None:
        await world.ready()
        world.stop_error = ZeroDivisionError("bug")
        assert await world.end(ADMIN) is False
        world.stop_error = None
        await world.ready()

    live(main)


def test_nobody_waits_for_a_supervisor_that_was_closed() -> None:
    async def main(world: World) -> None:
        world.planning.clear()
        world.want()
        await world.reach(State.PREPARING)
        ending = asyncio.ensure_future(world.end(ADMIN))
        await asyncio.sleep(0.01)
        telling = asyncio.ensure_future(world.supervisor.tell(m.Want("gateway", "late")))
        await world.supervisor.close()
        await asyncio.wait_for(asyncio.gather(ending, telling), 2)
        await asyncio.wait_for(world.supervisor.tell(m.Want("gateway", "too late")), 2)
        await world.end(ADMIN)

    live(main)
