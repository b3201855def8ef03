"""Making what runs and what is recorded agree again: when a runtime is back, and every now and then.

Nothing is done on one look: a start or a stop of this manager may be under way while others are asked what
runs. Only what two looks find alike, with the same knowledge of ours before and after each, is acted upon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llamaman.core import messages as m
from llamaman.core.adoption import Adoption, is_same
from llamaman.core.instance import STILL, Desired, Instance
from llamaman.core.parts import Parts
from llamaman.core.reach import Reach
from llamaman.core.roster import Roster
from llamaman.core.runtime_choice import is_lost
from llamaman.core.workers import Workers
from llamaman.errors import RuntimeLost
from llamaman.records import Handle, State
from llamaman.runtime import Runtime

log = logging.getLogger("llamaman.instances")

#: Seconds between the two looks.
LOOK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Known:
    """What the manager knows of one instance at one moment. ``busy``: its engine is being started or stopped."""

    runtime: str
    generation: int
    state: State
    desired: Desired
    handle: Handle | None
    busy: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not agree, and what was known when it was found; None: there is no such instance.

    ``adopt`` an engine that a record wants, ``end`` one that nobody wants, complete the ``stop`` of one whose
    record does not want it any more, note that one is ``gone``.
    """

    kind: Literal["adopt", "end", "stop", "gone"]
    instance_id: str
    handle: Handle
    known: Known | None


def judge(
    runtime: str, before: Mapping[str, Known], found: Sequence[Handle], after: Mapping[str, Known]
) -> list[Finding]:
    """What one look at a runtime shows.

    :param before: instance id -> what was known when the runtime was asked. :param after: when it had answered.
    """
    findings: list[Finding] = []
    for handle in found:
        known = after.get(handle.instance_id)
        if before.get(handle.instance_id) != known or (known and known.busy):
            continue
        if kind := _kind(runtime, handle, known):
            findings.append(Finding(kind, handle.instance_id, handle, known))
    for instance_id, known in after.items():
        if known.runtime != runtime or known.handle is None or known.busy or before.get(instance_id) != known:
            continue
        if not any(_is_its(known.handle, handle) for handle in found):
            findings.append(Finding("gone", instance_id, known.handle, known))
    return findings


def _kind(runtime: str, handle: Handle, known: Known | None) -> Literal["adopt", "end", "stop"] | None:
    if known is None or known.runtime != runtime:
        return "end"
    if known.handle is not None:
        if not _is_its(known.handle, handle):
            return "end"
        return "stop" if known.desired != "running" and known.state not in STILL else None
    if known.state not in STILL:  # its end has been heard of just now, or it is about to start
        return None
    return "adopt" if handle.generation == known.generation and known.desired == "running" else "end"


def _is_its(recorded: Handle, handle: Handle) -> bool:
    same = recorded.instance_id == handle.instance_id and recorded.generation == handle.generation
    return same and is_same(recorded, handle)


class Reconcile:
    """Looks at all runtimes, one round at a time; whoever asks during a round gets one more after it."""

    def __init__(
        self, parts: Parts, roster: Roster, workers: Workers, reach: Reach, adoption: Adoption
    ) -> None:
        self._p = parts
        self._roster = roster
        self._workers = workers
        self._reach = reach
        self._adoption = adoption
        self._round: asyncio.Task[None] | None = None
        self._again = False

    def soon(self) -> None:
        """Begin a round now, or one more after the one that runs."""
        self._again = True
        if self._round is None or self._round.done():
            self._round = asyncio.get_running_loop().create_task(self._rounds(), name="reconcile")

    async def run(self) -> None:
        """A round, and the return when it is complete."""
        self.soon()
        assert self._round is not None
        await asyncio.shield(self._round)

    async def close(self) -> None:
        """No round any more."""
        if self._round:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)

    async def _rounds(self) -> None:
        while self._again:
            self._again = False
            await asyncio.gather(*(self._look(runtime) for runtime in self._p.runtimes.values()))

    async def _look(self, runtime: Runtime) -> None:
        try:
            if reason := is_lost(runtime):
                raise RuntimeLost(reason)
            due: Sequence[Instance] = ()
            if any(i.unsettled and i.runtime == runtime.name for i in self._roster.all()):
                due = await self._adoption.settle_again(runtime, await self._adoption.find(runtime))
            if first := await self._differences(runtime):
                await asyncio.sleep(LOOK_AGAIN_S)
                second = await self._differences(runtime)
                await asyncio.gather(*(self._act(runtime, each) for each in second if each in first))
        except RuntimeLost as error:
            self._reach.mark(runtime.name, error.message)
        except Exception:
            log.exception("what runs on runtime %s could not be compared with the records", runtime.name)
        else:
            if is_lost(runtime) is None:
                self._reach.clear(runtime.name)
                self._adoption.start(due)

    async def _differences(self, runtime: Runtime) -> list[Finding]:
        before = self._knowledge()
        found = await self._adoption.find(runtime)
        return judge(runtime.name, before, found, self._knowledge())

    async def _act(self, runtime: Runtime, finding: Finding) -> None:
        instance = self._roster.get(finding.instance_id)
        if (self._know(instance) if instance else None) != finding.known:
            return  # something has happened since
        log.info("instance %s: reconciled: %s", finding.instance_id[:8], finding.kind)
        if instance is None or finding.kind == "end":
            await self._adoption.end_stale(runtime, finding.handle)
        elif finding.kind == "adopt":
            await self._adoption.adopt(instance, finding.handle)
        elif finding.kind == "stop":
            target: m.Target = "sleeping" if instance.desired == "sleeping" else "stopped"
            self._roster.supervisor(instance).post(m.Stop(target, "reconcile", "its stop was completed", 0))
        else:
            exit_ = await self._workers.run(self._workers.inspects, runtime.inspect, finding.handle)
            if exit_ is not None and self._know(instance) == finding.known and self._roster.has(instance):
                self._roster.supervisor(instance).post(m.Exited(instance.generation, exit_))

    def _knowledge(self) -> dict[str, Known]:
        return {instance.id: self._know(instance) for instance in self._roster.all()}

    def _know(self, instance: Instance) -> Known:
        return Known(
            runtime=instance.runtime,
            generation=instance.generation,
            state=instance.state,
            desired=instance.desired,
            handle=instance.handle,
            busy=self._roster.supervisor(instance).is_busy or not self._roster.has(instance),
        )
