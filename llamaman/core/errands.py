"""What a supervisor sends out to be done: everything that waits. Each errand ends with a message to it.

No errand changes a state or decides anything; by the time its message is read the world may be another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from llamaman.core import frozen, memory_guard
from llamaman.core import messages as m
from llamaman.core.instance import Instance
from llamaman.core.notes import Notes
from llamaman.core.readiness import Health, await_ready, probe
from llamaman.core.services import Services
from llamaman.errors import LaunchError, LlamaManError, RuntimeLost
from llamaman.records import Exit, LaunchPlan, ResourceUse, State, WorkDone
from llamaman.runtime import MeasuresEngines, ShowsWork

log = logging.getLogger("llamaman.supervisor")

WEDGE_PROBES = 3
WEDGE_PAUSE_S = 0.5


class Errands:
    """The errands of one instance; ``post`` is its supervisor's inbox."""

    def __init__(
        self, instance: Instance, services: Services, notes: Notes, post: Callable[[m.Message], None]
    ) -> None:
        self._instance = instance
        self._s = services
        self._notes = notes
        self._post = post

    async def prepare(self, generation: int) -> None:
        """Everything before the process: its port, its engine, its plan."""
        instance = self._instance

        def report(text: str | None) -> None:
            self._post(m.Fetching(generation, text))

        try:
            await self._s.open_port(instance)
            plan = await self._s.plan(instance, generation, report)
            await self._notes.must()  # the intent is durable before the process exists
        except LlamaManError as error:
            self._post(m.StartFailed(generation, error))
        except Exception as error:
            log.exception("instance %s: planning failed", instance.id)
            self._post(m.StartFailed(generation, LaunchError(f"internal error: {type(error).__name__}")))
        else:
            self._post(m.Planned(generation, plan))

    async def spawn(self, plan: LaunchPlan) -> None:
        """The process."""
        runtime = self._s.runtime(self._instance.runtime)
        try:
            handle = await self._s.start(runtime.start, plan)
        except LlamaManError as error:
            self._post(m.StartFailed(plan.generation, error))
        except Exception as error:
            log.exception("instance %s: the runtime failed", plan.instance_id)
            failure = LaunchError(f"the runtime failed: {type(error).__name__}")
            self._post(m.StartFailed(plan.generation, failure))
        else:
            self._post(m.Started(plan.generation, handle))

    async def await_ready(self, generation: int) -> None:
        """Until it answers, or will not."""
        instance = self._instance
        client = instance.client
        assert client is not None
        health = Health(
            client,
            instance.api_key,
            instance.log_path,
            instance.handle.pid if instance.handle else None,
            load_timeout_s=self._s.load_timeout_s,
            health_timeout_s=self._s.health_timeout_s,
            use=self._use,
            in_container=instance.handle is not None and instance.handle.container_id is not None,
        )
        try:
            facts = await await_ready(health)
        except TimeoutError as error:
            self._post(m.NotReady(generation, str(error)))
        except Exception as error:
            log.exception("instance %s: its health could not be checked", instance.id)
            self._post(m.NotReady(generation, f"its health could not be checked: {type(error).__name__}"))
        else:
            self._post(m.Ready(generation, facts.slots, facts.context_length, facts.engine))

    def _use(self) -> ResourceUse | None:
        """What it uses now, of an engine whose process cannot be seen from here."""
        runtime, handle = self._s.runtime(self._instance.runtime), self._instance.handle
        if handle is None or not isinstance(runtime, MeasuresEngines):
            return None
        with contextlib.suppress(RuntimeLost):
            return runtime.usage(handle)
        return None

    async def guard_memory(self, generation: int) -> None:
        """Measure it while it loads, where its runtime can; says so when it takes far too much."""
        instance = self._instance
        runtime = self._s.runtime(instance.runtime)
        if not isinstance(runtime, MeasuresEngines):
            return
        allowed = await self._s.inspect(self._s.allowance, instance)
        while (handle := instance.handle) and self._is(generation, State.STARTING):
            taken = await self._s.inspect(runtime.anonymous_bytes, handle)
            if reason := memory_guard.verdict(taken, allowed):
                self._post(m.NotReady(generation, reason, grace_s=0.0))
                return
            await asyncio.sleep(memory_guard.CHECK_EVERY_S)

    async def diagnose(self, generation: int, exit_: Exit) -> None:
        """Why it ended."""
        try:
            cause = await self._s.inspect(self._s.diagnose, self._instance, exit_)
        except Exception:
            log.exception("instance %s: the cause of its end could not be found out", self._instance.id)
            how = f"signal {exit_.signal}" if exit_.signal is not None else f"status {exit_.code}"
            cause = f"the engine ended ({how})"
        self._post(m.Diagnosed(generation, exit_, cause))

    async def end(self, generation: int, grace_s: float) -> None:
        """The end of its process."""
        instance = self._instance
        handle = instance.handle
        exit_: Exit | None = None
        await self._notes.may("its stop")  # so that the next manager completes it if this one is killed
        try:
            if handle:
                runtime = self._s.runtime(instance.runtime)
                exit_ = await self._s.stop(runtime.stop, handle, grace_s)
        except LlamaManError as error:
            self._post(m.Stopped(generation, None, error))
        except Exception as error:
            log.exception("instance %s: the runtime could not stop it", instance.id)
            self._post(m.Stopped(generation, None, LaunchError(f"stop failed: {type(error).__name__}")))
        else:
            self._post(m.Stopped(generation, exit_))

    async def check_wedged(self, generation: int) -> None:
        """Whether it still answers, although requests to it fail."""
        instance = self._instance
        for _ in range(WEDGE_PROBES):
            if not self._is(generation, State.READY) or not instance.client:
                return
            if await probe(instance.client, self._s.health_timeout_s):
                instance.failures = 0
                return
            await asyncio.sleep(WEDGE_PAUSE_S)
        self._post(m.Wedged(generation))

    async def watch(self, generation: int) -> None:
        """Whether its loop goes on, for as long as it runs."""
        s = self._s
        await frozen.watch(self._instance, generation, s.frozen_after_s, s.inspect, self._work, self._post)

    def _work(self) -> WorkDone | None:
        """What it has done, of an engine whose process cannot be seen from here."""
        runtime, handle = self._s.runtime(self._instance.runtime), self._instance.handle
        return runtime.work(handle) if handle and isinstance(runtime, ShowsWork) else None

    def _is(self, generation: int, state: State) -> bool:
        return self._instance.generation == generation and self._instance.state is state
