"""How engines are run: what every runtime must be able to do, and what some can do besides.

Runtimes implement this (processes, containers, plugins through ``runtime_register``); the registry of instances
calls it. Every method may block unless it says otherwise, so none is ever called on the event loop; all may be
called from any thread. What only some runtimes can do are protocols of their own, found by ``isinstance``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, runtime_checkable

from llamaman.records import Engine, Exit, Handle, LaunchPlan, ResourceUse, WorkDone


class Runtime(Protocol):
    """How a :class:`LaunchPlan` becomes a running server."""

    name: str

    def engines(self) -> Sequence[Engine]:
        """The engines that can run here now, best first."""

    def start(self, plan: LaunchPlan) -> Handle:
        """Start the engine and return at once, before the model is loaded.

        :raises LaunchError: nothing is left running.
        :raises RuntimeLost: the runtime cannot be reached now; what is left is found when it is back.
        """

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        """Ask it to end, wait ``grace_s`` seconds, then make it end. Ending an ended one is no error."""

    def watch(self, handle: Handle, on_exit: Callable[[Exit], None]) -> Callable[[], None]:
        """Call ``on_exit`` once, from any thread, when the engine ends; returns a function that cancels."""

    def inspect(self, handle: Handle) -> Exit | None:
        """None while it runs."""

    def find(self, node: str, install: str) -> Sequence[Handle]:
        """Every engine that a manager of this node and installation left running.

        :raises RuntimeLost: the runtime cannot be reached now, so nobody knows.
        """


@runtime_checkable
class PlacesEngines(Protocol):
    """Its engines may need no port of this machine (they listen in a container, say)."""

    def needs_port(self) -> bool:
        """Whether a plan must bring a free loopback port. Does not block."""


@runtime_checkable
class FetchesEngines(Protocol):
    """Its engines may be named freely and may have to be fetched before they can start."""

    def engine(self, name: str) -> Engine | None:
        """The engine of that name, also one that :meth:`Runtime.engines` does not list; None: not one of its.

        :raises InvalidField: it has the form of one and may not be used here; the text says who can allow it.
        """

    def fetch(self, engine: Engine, report: Callable[[str], None]) -> Future[None] | None:
        """Begin to fetch an engine that is not here; None when it is.

        The future fails with a LaunchError when it cannot be had. One fetch serves everybody who waits for the
        same engine; cancelling the future leaves it to the others.

        :param report: called from any thread with what is happening, such as "pulling image, 43 %".
        """


@runtime_checkable
class CanBeLost(Protocol):
    """Somebody else runs the engines (a daemon), and that somebody may go away for a while."""

    def lost(self) -> str | None:
        """Why it cannot be reached now, as a sentence that says what to do; None when it can. Does not block."""

    def on_reach(self, listener: Callable[[str | None], None]) -> None:
        """Call ``listener`` from any thread with the reason when it is lost and with None when it is back."""


@runtime_checkable
class MeasuresEngines(Protocol):
    """It knows what its engines use."""

    def usage(self, handle: Handle) -> ResourceUse | None:
        """The last sample, None when there is none (yet). Asking keeps the sampling going. Does not block."""

    def anonymous_bytes(self, handle: Handle) -> int | None:
        """Memory that is no file cache, measured now; None when it cannot be had."""


@runtime_checkable
class ShowsWork(Protocol):
    """It knows what its engines have done, where their processes cannot be seen from here."""

    def work(self, handle: Handle) -> WorkDone | None:
        """What it has done so far, asked now; None when that cannot be had. May block for seconds."""


@runtime_checkable
class KeepsLines(Protocol):
    """It has the end of an engine's output also where the log file could not be written."""

    def last_lines(self, handle: Handle, count: int) -> list[str]:
        """The newest lines of this engine's output, made safe to show; empty when there are none."""


@runtime_checkable
class HasPeers(Protocol):
    """Its engines have network addresses of their own, from which they could call our ports."""

    def peers(self) -> frozenset[str]:
        """The addresses (IPv4 or IPv6, as text) that belong to engines now. Does not block."""
