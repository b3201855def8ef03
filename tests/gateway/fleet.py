"""A fleet for tests of the pool: real Instance objects, and starts that happen when the test says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from llamaman.core.demand import Demand
from llamaman.core.instance import Instance
from llamaman.errors import LlamaManError, ModelUnavailable
from llamaman.gateway.grant import Grant
from llamaman.gateway.pool import Pool, Pools, Wish
from llamaman.records import ModelView, State

MODEL = ModelView(name="tiny", path=Path("/models/tiny.gguf"), size=1, quant=None, modified=0.0)


class Fleet:
    """What the pool asks of the registry, with every call kept."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self.instances: list[Instance] = []
        self.starts: list[str | None] = []
        self.left: list[str] = []
        self.start_error: Exception | None = None
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.pools = Pools(self, timeout_s)
        self.pool: Pool = self.pools.of(MODEL.path)

    # --- the protocol

    def of_model(self, path: Path) -> list[Instance]:
        return [i for i in self.instances if i.model_path == path]

    async def ensure_running(self, demand: Demand) -> None:
        model, only = demand.model, demand.only
        self.starts.append(only)
        await self.may_start.wait()
        if self.start_error:
            raise self.start_error
        if not self.of_model(model.path):
            self.add(state=State.QUEUED)
        for instance in self.of_model(model.path):
            if only in (None, instance.id) and instance.state in (State.SLEEPING, State.QUEUED):
                self.turn(instance, State.STARTING)
                asyncio.get_running_loop().call_soon(self.turn, instance, State.READY)

    def released(self, instance: Instance) -> None:
        self.left.append(instance.id)

    def unavailable(self, instance: Instance) -> LlamaManError:
        return ModelUnavailable(f"failed: {instance.reason}", retry_after=5)

    # --- for tests

    def add(self, *, slots: int = 1, state: State = State.READY, **options: Any) -> Instance:
        """One more instance of the model."""
        instance = Instance(
            id=f"i{len(self.instances)}",
            model=MODEL.name,
            model_path=MODEL.path,
            port=8000 + len(self.instances),
            runtime="process",
            log_path=Path("/dev/null"),
            overrides={},
            options=options,
            slots=slots,
            state=state,
        )
        self.instances.append(instance)
        return instance

    def turn(self, instance: Instance, state: State, reason: str = "because") -> None:
        """Change a state as a supervisor does."""
        instance.state = state
        instance.reason = reason
        self.pools.changed(instance)

    def try_now(self, **wish: Any) -> Grant | None:
        """A grant if there is one without waiting."""
        return self.pool.try_now(Wish(MODEL, **wish))

    async def ask(self, **wish: Any) -> Grant:
        """A grant as the pipeline gets one."""
        return self.try_now(**wish) or await self.pool.wait(Wish(MODEL, **wish))

    def ask_soon(self, **wish: Any) -> asyncio.Task[Grant]:
        """The same as a task of its own."""
        return asyncio.get_running_loop().create_task(self.ask(**wish))

    @property
    def active(self) -> int:
        return sum(i.active for i in self.instances)


async def turns(count: int = 10) -> None:
    """Let everything run that can run without a timer."""
    for _ in range(count):
        await asyncio.sleep(0)
