"""Whether one request answers for the crash of an engine. Read by the supervisor. Pure.

An engine that ends by a fault of its own was ended by what it worked on. If that was one request, the model is as
good as before, and whoever sent the request answers for it; if there were several, nobody can say which one it was.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from llamaman.records import Exit

if TYPE_CHECKING:
    from llamaman.core.instance import Instance

_FAULTS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
#: What a shell and a container runtime add to the number of a signal.
_BY_SIGNAL = 128


class Guest(Protocol):
    """A request that an engine works on."""

    @property
    def progress(self) -> object:
        """Another value whenever the engine has said something more of it; its pings say nothing."""

    def blamed(self, instance: Instance) -> bool:
        """It was alone in the engine when that crashed or froze. Whether somebody answers for it, so that the model
        need not."""


def is_crash(exit_: Exit) -> bool:
    """Whether an engine ended by its own fault, or because it took more memory than there is."""
    number = exit_.signal
    if number is None and exit_.code is not None and exit_.code > _BY_SIGNAL:
        number = exit_.code - _BY_SIGNAL
    return number in _FAULTS or exit_.oom is True


def culprit(exit_: Exit, inside: Sequence[Guest]) -> Guest | None:
    """The one request that ended an engine; None when there was none, or when it cannot be told."""
    return alone(inside) if is_crash(exit_) else None


def alone(inside: Sequence[Guest]) -> Guest | None:
    """The one request that an engine works on; None when there is none, or more.

    :param inside: a request may be there more than once.
    """
    if not inside or any(guest is not inside[0] for guest in inside):
        return None
    return inside[0]
