"""What becomes of records and engines that an earlier manager left behind: adopted, ended or resettled.

The records of a runtime that cannot be reached at boot stay what they were until it is back; the boot does
not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llamaman.core import messages as m
from llamaman.core.instance import STILL, Instance
from llamaman.core.instance_ports import InstancePorts
from llamaman.core.parts import COLLECTION, Parts
from llamaman.core.reach import Reach
from llamaman.core.roster import Roster
from llamaman.core.runtime_choice import is_lost, needs_port
from llamaman.core.workers import Workers
from llamaman.errors import LlamaManError, RuntimeLost, StoreCorrupt
from llamaman.records import Handle, State
from llamaman.runtime import Runtime

log = logging.getLogger("llamaman.instances")

STALE_GRACE_S = 5.0

Found = tuple[Runtime, Handle]


class Adoption:
    """Works on the registry's own parts; on the event loop."""

    def __init__(
        self, parts: Parts, roster: Roster, workers: Workers, ports: InstancePorts, reach: Reach
    ) -> None:
        self._p = parts
        self._roster = roster
        self._workers = workers
        self._ports = ports
        self._reach = reach

    async def boot(self) -> None:
        """Load the records, adopt what still runs, remove what is stale.

        :raises StoreCorrupt: a record cannot be read; no engine was touched.
        """
        workers = self._workers
        documents = await workers.run(workers.writer, self._p.store.list, COLLECTION)
        found: list[Found] = []
        for runtime in self._p.runtimes.values():
            if reason := is_lost(runtime):
                self._reach.mark(runtime.name, reason)
                continue
            try:
                found += [(runtime, handle) for handle in await self.find(runtime)]
            except RuntimeLost as error:
                self._reach.mark(runtime.name, error.message)
        for record in [self._read_record(document.key, document.value) for document in documents]:
            self._roster.enter(record)
            record.unsettled = bool(self._reach.reason(record.runtime)) and _may_run(record)
            self._reach.show(record)
        own = {instance.id: own_engine(instance, found) for instance in self._roster.all()}
        for instance in self._roster.all():  # all before any is opened: nobody gets the port of another
            if own[instance.id] is not None or instance.state not in (State.STOPPED, State.FAILED):
                with contextlib.suppress(LlamaManError):  # opening it says so
                    self._ports.keep(instance)
        waiting = [instance for instance in self._roster.all() if instance.unsettled]
        due = await self._settle([i for i in self._roster.all() if not i.unsettled], own, found)
        self.start(due)
        for instance in waiting:
            await self._answer_on_its_port(instance)

    async def settle_again(self, runtime: Runtime, handles: Sequence[Handle]) -> Sequence[Instance]:
        """The runtime is back: do for the records that waited for it what the boot could not do.

        :returns: those that are to be started now, for :meth:`start` as soon as they may.
        """
        waiting = [i for i in self._roster.all() if i.unsettled and i.runtime == runtime.name]
        ids = {instance.id for instance in waiting}
        found = [(runtime, handle) for handle in handles if handle.instance_id in ids]
        own = {instance.id: own_engine(instance, found) for instance in waiting}
        return await self._settle(waiting, own, found)

    def start(self, due: Sequence[Instance]) -> None:
        """Start what is to run whenever LlamaMan does, as far as the model limit allows; pinned ones first."""
        limit = self._p.policy().max_models
        taken = sum(i.state not in STILL and not _is_embedding(i) for i in self._roster.all())
        for instance in sorted(due, key=lambda i: (not i.options.get("pinned"), i.created)):
            if not self._roster.has(instance):
                continue
            if not _is_embedding(instance):
                if limit and taken >= limit:
                    log.warning(
                        "instance %s (%s) is not started at boot: LLAMAMAN_MAX_MODELS=%d is reached",
                        instance.id[:8],
                        instance.model,
                        limit,
                    )
                    continue
                taken += 1
            self._roster.supervisor(instance).post(m.Want("boot", "start_at_boot is set"))

    async def find(self, runtime: Runtime) -> Sequence[Handle]:
        """Every engine of ours that a runtime has.

        :raises RuntimeLost: nobody knows now.
        """
        sources = self._p.sources
        return await self._workers.run(self._workers.inspects, runtime.find, sources.node, sources.install)

    async def adopt(self, instance: Instance, handle: Handle) -> None:
        """Go on with an engine that runs; if it was to be stopped, complete that."""
        instance.unsettled = False
        instance.state = State.STARTING  # nobody may be served before there is a connection to the engine
        instance.handle = handle
        if handle.address.port and needs_port(self._p.runtimes[instance.runtime]):
            self._ports.keep_internal(instance, handle.address.port)
        supervisor = self._roster.supervisor(instance)
        if instance.desired != "running":  # its stop was under way when the last manager ended
            supervisor.post(m.Stop(instance.desired, "boot", "stop completed at boot", 0))
            if instance.desired == "stopped":
                return
        try:
            await self._ports.open_some(instance)
        except LlamaManError as error:
            reason = f"its port could not be opened at boot: {error.message}"
            supervisor.post(m.Stop("stopped", "boot", reason, 0))
        else:
            if instance.desired == "running":
                supervisor.post(m.Adopted(handle))

    async def end_stale(self, runtime: Runtime, handle: Handle) -> None:
        """End an engine that nobody wants; a failure is logged."""
        log.warning("stopping a stale engine of instance %s", handle.instance_id)
        try:
            await self._workers.run(self._workers.stops, runtime.stop, handle, STALE_GRACE_S)
        except Exception:
            log.exception("the stale engine of instance %s could not be stopped", handle.instance_id)

    async def _settle(
        self, records: Sequence[Instance], own: Mapping[str, int | None], found: Sequence[Found]
    ) -> Sequence[Instance]:
        """``own``: instance id -> the index of its engine in ``found``. Returns those to be started at boot."""
        for instance in records:
            if (index := own[instance.id]) is not None:
                await self.adopt(instance, found[index][1])
        adopted = set(own.values())
        stale = [each for index, each in enumerate(found) if index not in adopted]
        await asyncio.gather(*(self.end_stale(runtime, handle) for runtime, handle in stale))
        engineless = [instance for instance in records if own[instance.id] is None]
        for instance in engineless:
            await self._resettle(instance)
        return [i for i in engineless if i.options.get("start_at_boot") and i.state is not State.FAILED]

    async def _resettle(self, instance: Instance) -> None:
        """No process: a record that said it ran sleeps if a request may wake it, else it is stopped."""
        before = instance.document()
        instance.unsettled = False
        instance.handle = None
        instance.internal_port = None
        if instance.state not in STILL:
            stays = instance.desired == "stopped" or not instance.wakes_on_request
            instance.state = State.STOPPED if stays else State.SLEEPING
            instance.desired = "stopped" if stays else "sleeping"
            instance.reason = "its process was gone when LlamaMan started"
        if instance.state is State.SLEEPING:
            try:
                self._ports.keep(instance)
                await self._ports.open(instance)
            except LlamaManError as error:
                instance.state = State.STOPPED
                instance.desired = "stopped"
                instance.reason = f"its port could not be opened at boot: {error.message}"
        if instance.state is State.STOPPED:
            await self._ports.release(instance)
        if (after := instance.document()) != before:
            try:
                await self._workers.run(
                    self._workers.writer, self._p.store.put, COLLECTION, instance.id, after
                )
            except LlamaManError as error:
                log.warning("instance %s: its state could not be stored: %s", instance.id, error.message)

    async def _answer_on_its_port(self, instance: Instance) -> None:
        """Whoever asks on the port of an instance that waits for its runtime is told so."""
        if instance.state in (State.STOPPED, State.FAILED):
            return
        try:
            await self._ports.open(instance)
        except LlamaManError as error:
            log.warning("instance %s: its port could not be opened: %s", instance.id, error.message)

    def _read_record(self, key: str, value: Mapping[str, Any]) -> Instance:
        try:
            return Instance.from_document(value, self._p.log_path(key))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(
                f"the record of instance {key} in the collection '{COLLECTION}' cannot be read "
                f"({type(error).__name__}: {error}); repair or delete it, its engine is left running"
            ) from error


def own_engine(instance: Instance, found: Sequence[Found]) -> int | None:
    """The index of the engine that is this record's current generation."""
    for index, (runtime, handle) in enumerate(found):
        if runtime.name != instance.runtime or handle.instance_id != instance.id:
            continue
        if handle.generation != instance.generation:
            continue
        recorded = instance.handle
        if recorded and recorded.generation == handle.generation and not is_same(recorded, handle):
            continue
        return index
    return None


def is_same(one: Handle, other: Handle) -> bool:
    """Whether two handles of one generation mean one engine: its container where both know it, else its process."""
    if one.container_id is not None and other.container_id is not None:
        return one.container_id == other.container_id
    return one.pid == other.pid


def _may_run(record: Instance) -> bool:
    """Whether what becomes of a record can only be told by its runtime."""
    if record.state not in STILL or record.desired == "running" or record.handle is not None:
        return True
    return bool(record.options.get("start_at_boot"))


def _is_embedding(instance: Instance) -> bool:
    return bool(instance.options.get("embedding_model"))
