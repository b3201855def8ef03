"""A scripted runtime and the world around one registry, for tests of what happens when messages cross.

:class:`FakeRuntime` is a complete :class:`llamaman.runtime.Runtime` whose "processes" are entries in a
table: a test says how long a start or a stop takes, whether it fails, when a process exits and what a later
manager finds. It notes what must never happen: two live processes of one instance, and a call of something
that may block on the event loop. :class:`World` holds everything that outlives a manager (the processes, the
store, the ports of the machine) and builds the real registry with the real pools on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from llamaman.core import launch, planner
from llamaman.core.admission import Launcher, Policy
from llamaman.core.engine_client import EngineUnreachable
from llamaman.core.events import Events
from llamaman.core.instance import Instance
from llamaman.core.instances import Instances
from llamaman.core.parts import COLLECTION, Parts
from llamaman.core.ports import PortPool
from llamaman.core.store import Changes, Document, Operation, Store
from llamaman.core.supervisor import Supervisor
from llamaman.errors import LlamaManError, NotFound, PortTaken, StoreReadOnly
from llamaman.gateway.grant import Grant
from llamaman.gateway.pool import Pools, Wish
from llamaman.records import (
    Address,
    Engine,
    Exit,
    Handle,
    InstanceView,
    LaunchPlan,
    LaunchRequest,
    ModelView,
    State,
)

PUBLIC = range(18_000, 18_008)
INTERNAL = range(19_000, 19_012)
NODE, INSTALL = "node-a", "install-a"

STILL = frozenset({State.SLEEPING, State.STOPPED, State.FAILED})
SETTLED = STILL | {State.READY}


@dataclass
class Script:
    """How the runtime and the engines behave from now on. Times are seconds."""

    start_s: float = 0.0
    start_when: threading.Event | None = None
    start_error: Exception | None = None
    stop_s: float = 0.0
    stop_error: Exception | None = None
    ready: bool = True
    dies_at_once: bool = False
    find_error: Exception | None = None


class FakeRuntime:
    """See the module's docstring. ``live`` is what runs: pid -> handle."""

    name = "process"

    def __init__(self) -> None:
        self.script = Script()
        self.live: dict[int, Handle] = {}
        self.installs: dict[int, tuple[str, str]] = {}
        self.faults: list[str] = []
        self.started = 0
        self.asked = 0  # how often an engine was asked whether it is ready
        self.loop_thread: int | None = None
        self._pids = itertools.count(1000)
        self._watchers: dict[int, list[Callable[[Exit], None]]] = {}
        self._lock = threading.RLock()

    # --- the contract

    def engines(self) -> Sequence[Engine]:
        self._may_block("engines")
        return [Engine("fake", "binary", "/fake", "1", None)]

    def start(self, plan: LaunchPlan) -> Handle:
        self._may_block("start")
        time.sleep(self.script.start_s)
        if self.script.start_when:
            assert self.script.start_when.wait(60), "no test let this start go on"
        if self.script.start_error:
            raise self.script.start_error
        handle = self.spawn(plan.instance_id, plan.generation, plan.port)
        if self.script.dies_at_once:
            assert handle.pid is not None
            self.exit(handle.pid, Exit(1, None, time.time()))
        return handle

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        self._may_block("stop")
        assert handle.pid is not None
        time.sleep(self.script.stop_s)
        if self.script.stop_error:
            raise self.script.stop_error
        exit_ = Exit(0, None, time.time())
        self.exit(handle.pid, exit_)
        return exit_

    def watch(self, handle: Handle, on_exit: Callable[[Exit], None]) -> Callable[[], None]:
        assert handle.pid is not None
        with self._lock:
            gone = handle.pid not in self.live
            watchers = self._watchers.setdefault(handle.pid, [])
            if not gone:
                watchers.append(on_exit)
        if gone:
            on_exit(Exit(None, None, time.time()))

        def cancel() -> None:
            with self._lock, contextlib.suppress(ValueError):
                watchers.remove(on_exit)

        return cancel

    def inspect(self, handle: Handle) -> Exit | None:
        self._may_block("inspect")
        return None if handle.pid in self.live else Exit(None, None, time.time())

    def find(self, node: str, install: str) -> Sequence[Handle]:
        self._may_block("find")
        if self.script.find_error:
            raise self.script.find_error
        with self._lock:
            return [h for pid, h in self.live.items() if self.installs[pid] == (node, install)]

    # --- the script

    def spawn(self, instance_id: str, generation: int, port: int, install: str = INSTALL) -> Handle:
        """A process, from wherever it came."""
        with self._lock:
            twins = [h.generation for h in self.live.values() if h.instance_id == instance_id]
            if twins and install == INSTALL:
                self.faults.append(f"{instance_id}: generation {generation} started beside {twins}")
            pid = next(self._pids)
            handle = self.handle(instance_id, generation, pid, port)
            self.live[pid] = handle
            self.installs[pid] = (NODE, install)
            self.started += 1
            return handle

    def handle(self, instance_id: str, generation: int, pid: int, port: int) -> Handle:
        """How a process is known."""
        return Handle(instance_id, generation, pid, pid * 10, Address("127.0.0.1", port))

    def exit(self, pid: int, exit_: Exit) -> None:
        """A process ends, and whoever watches it hears of it from another thread."""
        with self._lock:
            if self.live.pop(pid, None) is None:
                return
            watchers = self._watchers.pop(pid, [])
        for watcher in list(watchers):
            watcher(exit_)

    def of(self, instance_id: str) -> list[Handle]:
        """The live processes of one instance."""
        with self._lock:
            return [handle for handle in self.live.values() if handle.instance_id == instance_id]

    def answers(self, address: Address) -> bool:
        """Whether the engine behind an address says that it is ready."""
        with self._lock:
            self.asked += 1
            return self.script.ready and any(h.address == address for h in self.live.values())

    def _may_block(self, what: str) -> None:
        if threading.get_ident() == self.loop_thread:
            self.faults.append(f"{what} was called on the event loop")


@dataclass
class FakeAnswer:
    body: bytes
    status: int = 200

    async def read_all(self, limit: int) -> bytes:
        return self.body


class FakeClient:
    """Talks to a process in the runtime's table."""

    def __init__(self, runtime: FakeRuntime, address: Address) -> None:
        self._runtime = runtime
        self._address = address

    async def request(
        self, method: str, target: bytes, headers: Any, body: bytes = b"", **_: Any
    ) -> FakeAnswer:
        await asyncio.sleep(0)
        if not self._runtime.answers(self._address):
            raise EngineUnreachable("nobody answers")
        return FakeAnswer(
            json.dumps({"total_slots": 2, "default_generation_settings": {"n_ctx": 99}}).encode()
        )

    async def close(self) -> None: ...

    def abort(self) -> None: ...


@dataclass
class _Bound:
    """A reserved port, as the registry sees a listening socket."""

    machine: Machine
    port: int

    def close(self) -> None:
        self.machine.bound.pop(self.port, None)


@dataclass
class Machine:
    """The public ports of the machine: who has bound them, and who serves them."""

    taken: set[int] = field(default_factory=set)
    bound: dict[int, _Bound] = field(default_factory=dict)
    open_ports: dict[str, int] = field(default_factory=dict)

    def reserve(self, port: int) -> socket.socket:
        if port in self.taken or port in self.bound:
            raise PortTaken(f"Port {port} is already occupied by another process")
        self.bound[port] = _Bound(self, port)
        return cast(socket.socket, self.bound[port])

    async def open(self, instance_id: str, port: int, sock: socket.socket | None) -> None:
        assert instance_id not in self.open_ports, "opened twice"
        await asyncio.sleep(0)
        if sock is None:
            self.reserve(port)
        assert port in self.bound, "a door on a port that was given back"
        self.open_ports[instance_id] = port

    async def close(self, instance_id: str) -> None:
        port = self.open_ports.pop(instance_id)
        await asyncio.sleep(0)
        self.bound.pop(port, None)

    def reset(self) -> None:
        """The manager is gone, and its sockets with it."""
        self.bound.clear()
        self.open_ports.clear()


class MemoryStore:
    """As much of a store as the registry uses; ``read_only`` makes every write fail."""

    def __init__(self) -> None:
        self.documents: dict[str, dict[str, Document]] = {}
        self.read_only = False
        self.refuse_after: int | None = None
        self.writes = 0
        self.delay_s = 0.0

    def get(self, collection: str, key: str) -> Document | None:
        return self.documents.get(collection, {}).get(key)

    def list(self, collection: str) -> list[Document]:
        return sorted(self.documents.get(collection, {}).values(), key=lambda each: each.key)

    def put(self, collection: str, key: str, value: Any, *, expected: int | None = None) -> int:
        self._write()
        table = self.documents.setdefault(collection, {})
        version = table[key].version + 1 if key in table else 1
        table[key] = Document(key, version, json.loads(json.dumps(value)))
        return version

    def delete(self, collection: str, key: str, *, expected: int | None = None) -> bool:
        self._write()
        return self.documents.get(collection, {}).pop(key, None) is not None

    def batch(self, collection: str, operations: Sequence[Operation]) -> list[int]:
        raise NotImplementedError

    def watch(self, collection: str, since: int) -> Changes:
        raise NotImplementedError

    def probe(self) -> None: ...

    def close(self) -> None: ...

    def _write(self) -> None:
        time.sleep(self.delay_s)
        self.writes += 1
        if self.read_only or (self.refuse_after is not None and self.writes > self.refuse_after):
            raise StoreReadOnly("the disk is full")


class World:
    """What outlives a manager, and the manager that runs now."""

    def __init__(self, folder: Path, store: Store | None = None, runtime: FakeRuntime | None = None) -> None:
        self.folder = folder
        self.runtime = runtime or FakeRuntime()
        self.memory_estimate: int | None = None
        self.machine = Machine()
        self.store: Any = store or MemoryStore()
        self.policy = Policy(max_models=0)
        self.presets: dict[Path, Mapping[str, Any]] = {}
        self.models: dict[str, ModelView] = {}
        self.managed_idle_timeout_s = 0.0
        self.drain_timeout_s = 0.15
        self.request_timeout_s = 600.0  # a test that is to see it run out says so
        self.may_enlarge = False
        self.load_timeout_s = 600.0
        self.loop_errors: list[str] = []
        self.diagnosis: Exception | None = None
        self.history: list[tuple[str, State, int]] = []
        for name in ("alpha", "beta", "gamma"):
            path = folder / f"{name}.gguf"
            path.write_bytes(b"GGUF")
            self.models[name] = ModelView(name=name, path=path, size=4, quant=None, modified=0.0)

    # --- a manager

    @contextlib.asynccontextmanager
    async def manager(self, *, stop_engines: bool = False) -> AsyncIterator[World]:
        """Boot one; at the end it is closed as if it were killed, unless engines are to be stopped."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.loop_errors.append(_describe(context)))
        self.runtime.loop_thread = threading.get_ident()
        self.public = PortPool(PUBLIC[0], PUBLIC[-1])
        self.internal = PortPool(INTERNAL[0], INTERNAL[-1])
        parts = self._parts()
        self.events = parts.events
        self.instances = Instances(parts)
        self.pools = Pools(self.instances, self.request_timeout_s)
        self.instances.subscribe(self.pools.changed, reasons=True)
        self.instances.subscribe(lambda i, _: self.history.append((i.id, i.state, i.generation)))
        await asyncio.wait_for(self.instances.boot(), 60)
        try:
            yield self
        finally:
            await asyncio.wait_for(self.instances.shutdown(stop_engines=stop_engines), 60)
            self.machine.reset()
            gc.collect()  # a task whose failure nobody saw tells so now
            await asyncio.sleep(0)

    def _parts(self) -> Parts:
        runtime = self.runtime

        def model_at(path: Path) -> ModelView:
            for model in self.models.values():
                if model.path == path:
                    return model
            raise NotFound(f"no model {path}")

        def diagnose(instance: Instance, exit_: Exit) -> str:
            if self.diagnosis:
                raise self.diagnosis
            return exit_.cause or f"the engine ended with status {exit_.code}"

        return Parts(
            store=self.store,
            events=Events(),
            sources=planner.Sources(
                node=NODE,
                install=INSTALL,
                gpu_devices="all",
                model_facts=lambda path: launch.ModelFacts(),
                model_file=lambda text: None,
                preset=self.presets.get,
                runtimes=lambda: [runtime],
                instance_key=lambda instance_id, generation: f"key-{instance_id}-{generation}",
                allow_unlisted=lambda: False,
                gpu_present=lambda engine: True,
                memory_estimate=lambda path, options: self.memory_estimate,
            ),
            runtimes={runtime.name: runtime},
            connect=lambda address: FakeClient(runtime, address),
            doors=self.machine,
            public_ports=self.public,
            internal_ports=self.internal,
            logs_dir=self.folder,
            model_at=model_at,
            why_not_runnable=lambda path: None,
            policy=lambda: self.policy,
            managed_idle_timeout_s=self.managed_idle_timeout_s,
            load_timeout_s=self.load_timeout_s,
            health_timeout_s=60.0,
            drain_timeout_s=self.drain_timeout_s,
            request_timeout_s=self.request_timeout_s,
            may_enlarge=lambda: self.may_enlarge,
            diagnose=diagnose,
            discard_log=lambda path: path.unlink(missing_ok=True),
        )

    # --- what a management thread does

    async def launch(self, model: str = "alpha", port: int | None = None, **options: Any) -> InstanceView:
        request = LaunchRequest(self.models[model].path, options, port=port, confirm_overcommit=True)
        return await asyncio.to_thread(self.instances.launch, request, "key:admin")

    async def stop(self, instance_id: str, *, force: bool = False) -> InstanceView:
        return await asyncio.to_thread(self.instances.stop, instance_id, "key:admin", force)

    async def restart(self, instance_id: str, **options: Any) -> InstanceView:
        return await asyncio.to_thread(self.instances.restart, instance_id, "key:admin", options, True)

    async def remove(self, instance_id: str) -> None:
        await asyncio.to_thread(self.instances.remove, instance_id, "key:admin")

    # --- what a client does

    async def grant(
        self,
        model: str = "alpha",
        *,
        only: str | None = None,
        launcher: Launcher = "openai",
        context: int | None = None,
        key: str | None = None,
    ) -> Grant:
        """A slot, as the pipeline gets one; raises why there is none."""
        pool = self.pools.of(self.models[model].path)
        wish = Wish(self.models[model], only=only, launcher=launcher, context=context, key=key)
        return pool.try_now(wish) or await pool.wait(wish)

    # --- looking at it

    def get(self, instance_id: str) -> Instance:
        instance = self.instances.get(instance_id)
        assert instance is not None
        return instance

    def supervisor(self, instance_id: str) -> Supervisor:
        return self.instances._roster.supervisor(self.get(instance_id))

    async def reach(self, instance_id: str, *states: State, seconds: float = 60) -> Instance:
        """Wait for one of ``states``."""
        await self.until(
            lambda: self.get(instance_id).state in states,
            lambda: f"{states}, but it is {self.get(instance_id).state}: {self.get(instance_id).reason}",
            seconds,
        )
        return self.get(instance_id)

    async def running(self, model: str = "alpha", **options: Any) -> Instance:
        """A launched and ready instance."""
        return await self.reach((await self.launch(model, **options)).id, State.READY)

    async def until(
        self, holds: Callable[[], bool], what: Callable[[], str] | str, seconds: float = 60
    ) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s for {what if isinstance(what, str) else what()}")
            await asyncio.sleep(0.005)

    def faults(self) -> list[str]:
        """Everything that is wrong with a world that has come to rest; empty when all is well."""
        found = [*self.runtime.faults, *self.loop_errors]
        views = {view.id: self.get(view.id) for view in self.instances.views()}
        for instance in views.values():
            found += self._faults_of(instance)
        held = {port: owner for port in PUBLIC if (owner := self.public.owner_of(port))}
        kept = {i.port: i.id for i in views.values() if i.state in (State.READY, State.SLEEPING)}
        if held != kept:
            found.append(f"public ports are held by {held}, not by {kept}")
        if self.machine.open_ports != {owner: port for port, owner in kept.items()}:
            found.append(f"doors are open for {self.machine.open_ports}, not for {kept}")
        if set(self.machine.bound) != set(kept):
            found.append(f"sockets are bound on {set(self.machine.bound)}, not on {set(kept)}")
        inside = {port: owner for port in INTERNAL if (owner := self.internal.owner_of(port))}
        engines = [(i.handle.address, i.id) for i in views.values() if i.handle]
        used = {address.port: owner for address, owner in engines if address.host == "127.0.0.1"}
        if inside != used:
            found.append(f"internal ports are held by {inside}, not by {used}")
        strays = [h for h in self.runtime.live.values() if h.instance_id not in views]
        found += [f"a process of nobody: {stray}" for stray in strays]
        stored = {each.key: each.value for each in self.store.list(COLLECTION)}
        known = {i.id: json.loads(json.dumps(i.document())) for i in views.values()}
        found += [f"stored but not known: {key}" for key in stored.keys() - known.keys()]
        found += [f"known but not stored: {key}" for key in known.keys() - stored.keys()]
        for key in stored.keys() & known.keys():
            differs = {n: (stored[key][n], v) for n, v in known[key].items() if stored[key][n] != v}
            if differs:
                found.append(f"{key}: stored, known: {differs}")
        return found

    def _faults_of(self, instance: Instance) -> list[str]:
        found = []
        name = f"{instance.id[:8]} ({instance.state}: {instance.reason})"
        if instance.state not in SETTLED:
            found.append(f"{name} is on its way for ever")
        live = self.runtime.of(instance.id)
        if instance.state is State.READY and live != [instance.handle]:
            found.append(f"{name}: runs {live}, not {instance.handle}")
        if instance.state in STILL and live and not (instance.state is State.FAILED and instance.handle):
            found.append(f"{name}: {live} still run")
        if instance.active:
            found.append(f"{name}: {instance.active} requests are running")
        return found

    async def rest(self, seconds: float = 60) -> None:
        """Wait until nothing is wrong, or fail saying what is."""
        await self.until(lambda: not self.faults(), lambda: "\n".join(["peace:", *self.faults()]), seconds)

    def put_record(self, instance_id: str, **given: Any) -> Instance:
        """A record of an earlier manager."""
        instance = Instance(
            id=instance_id,
            model="alpha",
            model_path=self.models["alpha"].path,
            port=PUBLIC[0],
            runtime=self.runtime.name,
            log_path=self.folder / f"{instance_id}.log",
            overrides={},
            options=launch.resolve({}, given.get("overrides", {})),
        )
        for name, value in given.items():
            setattr(instance, name, value)
        self.store.put(COLLECTION, instance_id, instance.document())
        return instance


def other_pid(handle: Handle) -> Handle:
    """The same process as recorded by somebody who saw another one."""
    assert handle.pid is not None
    return replace(handle, pid=handle.pid + 500)


def _describe(context: Mapping[str, Any]) -> str:
    return f"{context.get('message')}: {context.get('exception')!r}"


async def outcome(work: asyncio.Future[Any], seconds: float = 60) -> Any:
    """What a call gave or raised; fails if it never ends."""
    try:
        return await asyncio.wait_for(asyncio.shield(work), seconds)
    except LlamaManError as error:
        return error


Story = Callable[[World], Coroutine[Any, Any, None]]


def play(world: World, story: Story) -> None:
    """Run a story with one manager; at its end everything must have come to rest."""

    async def main() -> None:
        async with world.manager():
            await story(world)
            await world.rest()
        assert not world.loop_errors

    asyncio.run(asyncio.wait_for(main(), 60))
