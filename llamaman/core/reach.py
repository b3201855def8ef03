"""Which runtimes cannot be reached now, and that their instances show it. On the event loop.

A runtime counts as lost from the first word of it until its engines have been looked at after its return, so
that nothing is started beside what is not known yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial

from llamaman.core.instance import Instance
from llamaman.core.roster import Roster
from llamaman.core.runtime_choice import LOST_RETRY_S, is_lost
from llamaman.errors import RuntimeLost
from llamaman.runtime import CanBeLost, Runtime


class Reach:
    """The lost runtimes, each with its reason.

    :param told: publishes news of this kind about an instance.
    """

    def __init__(
        self, roster: Roster, runtimes: Mapping[str, Runtime], told: Callable[[Instance, str], None]
    ) -> None:
        self._roster = roster
        self._runtimes = runtimes
        self._told = told
        self._reasons: dict[str, str] = {}
        self._shown: dict[str, set[str]] = {}  # runtime -> the instances that were told of as unknown

    def listen(self, back: Callable[[], None]) -> None:
        """Hear of losses from now on; ``back`` is called on the loop when a runtime has come back."""
        loop = asyncio.get_running_loop()
        for runtime in self._runtimes.values():
            if isinstance(runtime, CanBeLost):
                runtime.on_reach(partial(self._hear, loop, back, runtime.name))
                if reason := runtime.lost():
                    self.mark(runtime.name, reason)

    def has_returned(self) -> bool:
        """Whether a runtime that counts as lost can be reached again."""
        return any(is_lost(self._runtimes[name]) is None for name in self._reasons)

    def reason(self, name: str) -> str | None:
        """Why the runtime of this name cannot be used now; None when it can. From any thread."""
        if reason := self._reasons.get(name):
            return reason
        runtime = self._runtimes.get(name)
        return is_lost(runtime) if runtime else None

    def refuse_if_lost(self, name: str) -> None:
        """Nothing is started or stopped on a lost runtime.

        :raises RuntimeLost: it is.
        """
        if reason := self.reason(name):
            raise RuntimeLost(reason, retry_after=LOST_RETRY_S)

    def mark(self, name: str, reason: str) -> None:
        """It is lost."""
        if self._reasons.get(name) == reason:
            return
        self._reasons[name] = reason
        self._shown.setdefault(name, set()).clear()  # another reason is told of again
        for instance in self._roster.all():
            if instance.runtime == name:
                self.show(instance)

    def clear(self, name: str) -> None:
        """It is back, and its engines are known again."""
        if self._reasons.pop(name, None) is None:
            return
        shown = self._shown.pop(name)
        for instance in self._roster.all():
            if instance.runtime == name:
                instance.lost = None
            if instance.id in shown:
                self._told(instance, "known")

    def show(self, instance: Instance) -> None:
        """Let an instance show what holds for its runtime."""
        instance.lost = self._reasons.get(instance.runtime)
        if not instance.unknown:
            return
        shown = self._shown[instance.runtime]
        if instance.id not in shown:
            shown.add(instance.id)
            self._told(instance, "unknown")

    def _hear(
        self, loop: asyncio.AbstractEventLoop, back: Callable[[], None], name: str, reason: str | None
    ) -> None:
        """Called by the runtime from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody wants to know any more
            if reason is None:
                loop.call_soon_threadsafe(back)
            else:
                loop.call_soon_threadsafe(self.mark, name, reason)
