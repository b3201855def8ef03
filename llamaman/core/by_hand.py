"""What people ask of an instance that exists: stop it, start it again, forget it. On the event loop.

Each waits until it has come to pass, and tells why where it has not. How an instance comes to run in the first
place is :mod:`llamaman.core.launching`'s; what a stop does to it, the supervisor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from llamaman.core import messages as m
from llamaman.core.instance import STILL, Instance
from llamaman.core.instance_ports import InstancePorts
from llamaman.core.launching import Launching
from llamaman.core.parts import COLLECTION, Parts
from llamaman.core.reach import Reach
from llamaman.core.room import Start
from llamaman.core.roster import Roster
from llamaman.core.runtime_choice import LOST_RETRY_S
from llamaman.core.supervisor import Supervisor
from llamaman.core.workers import Workers
from llamaman.errors import Conflict, LaunchError, LlamaManError, RuntimeLost
from llamaman.records import InstanceView, State

USER_DRAIN_S = 30.0
_NOTHING: Final = object()


class ByHand:
    """Works on the registry's own parts.

    :param persist: stores the record of an instance that is there to stay.
    :param end: asks for a stop and tells whether it came to pass.
    :param removed: announces that an instance is gone, and who removed it.
    """

    def __init__(
        self,
        parts: Parts,
        roster: Roster,
        workers: Workers,
        ports: InstancePorts,
        reach: Reach,
        launching: Launching,
        *,
        persist: Callable[[Instance], Awaitable[None]],
        end: Callable[[Instance, m.Stop], asyncio.Future[bool]],
        removed: Callable[[Instance, str], None],
    ) -> None:
        self._p = parts
        self._roster = roster
        self._workers = workers
        self._ports = ports
        self._reach = reach
        self._launching = launching
        self._persist = persist
        self._end = end
        self._removed = removed

    async def stop(self, instance_id: str, actor: str, *, force: bool) -> InstanceView:
        """Return when its process is gone; stopping a stopped one is no error.

        :raises RuntimeLost: it cannot be reached now, and goes on as it is.
        """
        instance = self._roster.require(instance_id)
        instance.stops += 1
        drain = 0.0 if force else USER_DRAIN_S
        grace = m.SHORT_GRACE_S if force else m.STOP_GRACE_S
        stop = m.Stop("stopped", actor, "stopped by an administrator", drain, grace_s=grace)
        if not await self._end(instance, stop):
            self._raise_if_lost(instance)
        return instance.view()

    def _raise_if_lost(self, instance: Instance) -> None:
        """Say so where a stop came to nothing because the runtime could not be reached."""
        if isinstance(error := self._roster.supervisor(instance).stop_error, RuntimeLost):
            raise RuntimeLost(error.message, retry_after=error.retry_after or LOST_RETRY_S) from error

    async def restart(
        self, instance_id: str, actor: str, options: Mapping[str, Any], *, confirm_overcommit: bool
    ) -> InstanceView:
        """Start again under the same id, with these options over what its launch and its presets say now.

        :raises Confirmation: an administrator has to confirm it. :raises LaunchError: it could not be ended.
        """
        instance = self._roster.require(instance_id)
        stops = instance.stops
        if instance.handle or instance.state not in STILL:
            self._reach.refuse_if_lost(instance.runtime)
        resolved = await self._launching.resolve(instance, {**instance.overrides, **options})
        want = m.Want(actor, "restarted")
        start = Start(
            instance.model,
            "admin",
            embedding=bool(resolved.options["embedding_model"]),
            confirmed=confirm_overcommit,
            starting=instance_id,
        )
        async with self._launching.room.for_one(start):
            self._workers.refuse_if_closing()
            supervisor = self._unless_gone(instance, stops)
            if instance.state in STILL and not instance.handle:
                await self._ports.reserve(instance)  # before anything changes: there may be no port left
                try:
                    supervisor = self._unless_gone(instance, stops)
                except LlamaManError:
                    await self._ports.release(instance)
                    raise
                instance.overrides = {**instance.overrides, **options}
                instance.options = resolved.options
                await supervisor.tell(want)
                return instance.view()
            before = instance.overrides  # now: a preset may have been saved meanwhile
            instance.overrides = {**before, **options}
            # "sleeping" keeps the port, and requests that come meanwhile wait for the new process. The want
            # lies right behind the stop, so that a later stop by somebody else wins.
            ended = self._end(instance, m.Stop("sleeping", actor, "restarting", USER_DRAIN_S))
            supervisor.post(want)
        if not await ended:
            instance.overrides = _taken_back(instance.overrides, options, before)
            await self._persist(instance)
            self._raise_if_lost(instance)
            raise LaunchError(f"the instance was not restarted: {instance.reason}")
        return instance.view()

    def _unless_gone(self, instance: Instance, stops: int) -> Supervisor:
        """Who looks after it, unless it was removed or stopped (``stops``: how often it had been) meanwhile."""
        supervisor = self._roster.supervisor(self._roster.require(instance.id))
        if instance.stops != stops:
            raise Conflict("the instance was stopped meanwhile; restart it again if it shall run")
        return supervisor

    async def remove(self, instance_id: str, actor: str) -> None:
        """Forget a stopped or failed instance.

        :raises Conflict: it is neither.
        """
        instance = self._roster.require(instance_id)
        if not _has_ended(instance):
            raise Conflict("stop the instance before removing it")
        if instance.handle:
            raise Conflict("its engine could not be ended; stop the instance again before removing it")
        self._roster.leave(instance)
        try:
            await self._workers.run(self._workers.writer, self._p.store.delete, COLLECTION, instance_id)
        except LlamaManError:
            self._roster.stay(instance)
            raise
        if not _has_ended(instance):
            self._roster.stay(instance)
            await self._persist(instance)
            raise Conflict("the instance was started again meanwhile; stop it before removing it")
        supervisor = self._roster.forget(instance)
        await supervisor.close()  # first, so that nothing it was still told starts a process
        await self._ports.release(instance, forgotten=True)
        self._ports.release_internal(instance)
        await self._workers.run(self._workers.inspects, self._p.discard_log, instance.log_path)
        self._roster.stay(instance)
        self._removed(instance, actor)


def _has_ended(instance: Instance) -> bool:
    return instance.state in (State.STOPPED, State.FAILED)


def _taken_back(
    now: Mapping[str, Any], laid_over: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """What counts when a restart came to nothing. What somebody else has changed meanwhile stays as it is."""
    theirs = {name: value for name, value in now.items() if laid_over.get(name, _NOTHING) != value}
    ours = now.keys() - theirs.keys()
    return theirs | {name: before[name] for name in ours if name in before}
