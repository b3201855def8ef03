"""A request's hold on an instance. Made by the pool, let go by the pipeline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llamaman.core.crash import Guest
from llamaman.core.instance import Instance
from llamaman.gateway.dialect import Lease
from llamaman.gateway.upstream import Upstream

_LINGER_S = 2.0
#: How long an engine that does not let go of a request may be held by it: until it is found to be frozen, at most.
_KEPT_S = 900.0


class Grant:
    """A lease on an instance together with its permits; the slots come free when the last holder lets go.

    :param weight: how many; 0 for what runs beside what generates.
    :param after_release: told when the permits came free.
    :ivar is_alone: whether it took every slot there was, so that nothing else runs in the engine.
    """

    __slots__ = (
        "_after_release",
        "_guest",
        "_holders",
        "_is_kept",
        "_was_left",
        "_weight",
        "client",
        "generation",
        "instance",
        "is_alone",
    )

    def __init__(self, instance: Instance, weight: int, after_release: Callable[[Instance], None]) -> None:
        self._after_release = after_release
        self._weight = weight
        self.instance = instance
        self.generation = instance.generation
        self.client: Upstream = instance.client  # type: ignore[assignment] # the gateway made it
        self._holders = 1
        self._guest: Guest | None = None
        self._was_left = self._is_kept = False
        self.is_alone = instance.active == 0 and weight >= instance.capacity
        instance.active += weight
        if weight:
            instance.last_request = time.time()

    def enter(self, guest: Guest) -> None:
        """The engine is about to work on it: should it crash, this request may be the cause."""
        if self._guest is None:
            self._guest = guest
            self.instance.inside.append(guest)

    def hold(self) -> None:
        """One more holder: the wait for an engine to let go."""
        self._holders += 1
        self._was_left = True

    def keep(self) -> None:
        """The engine does not let go of the request: what becomes of it from now on may still be its doing."""
        self._is_kept = True

    def release(self) -> None:
        """One holder less; the last one gives the slots back and lets the next ticket have them."""
        self._holders -= 1
        if self._holders:
            return
        instance = self.instance
        if self._guest is not None:
            self._leave(self._guest)
        if not self._weight:  # only inference counts as use
            return
        instance.active -= self._weight
        instance.last_release = time.monotonic()
        self._after_release(instance)

    def _leave(self, guest: Guest) -> None:
        if self._was_left:  # an engine lets go by dying, too, and its end is heard of a moment later
            until = time.monotonic() + _KEPT_S if self._is_kept else 0.0
            asyncio.get_running_loop().call_later(_LINGER_S, self._linger, guest, until)
        else:
            self.instance.inside.remove(guest)

    def _linger(self, guest: Guest, until: float) -> None:
        if self.instance.generation == self.generation and time.monotonic() < until:
            asyncio.get_running_loop().call_later(_LINGER_S, self._linger, guest, until)
        else:
            self.instance.inside.remove(guest)


def lease_of(grant: Grant) -> Lease:
    """What the dialect may know of a grant."""
    instance = grant.instance
    return Lease(
        instance_id=instance.id,
        granted=time.time(),
        context_length=instance.context_length,
        slots=instance.slots,
        options=instance.options,
        engine=instance.facts,
    )
