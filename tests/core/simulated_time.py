"""An event loop whose time is invented: nothing sleeps, and a minute is over as soon as nothing is left to do in it.

Blocking work that code hands to threads is done on the loop after a delay that the test chooses, so that a run is
the same every time and the order in which such work ends can be played with. ``time.time`` and ``time.monotonic``
tell the invented time while :meth:`SimulatedLoop.running` holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

BEGIN_S = 1_000_000.0


class _Timeless(selectors.DefaultSelector):
    """Instead of waiting it lets the loop's time pass."""

    owner: SimulatedLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everything waits for something that will never happen")
        self.owner.now += max(timeout, 0)
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """See the module's docstring.

    :param delay_s: how long a piece of blocking work takes.
    """

    def __init__(self, delay_s: Callable[[], float] = lambda: 0.0) -> None:
        self.now = BEGIN_S
        self.in_thread = False
        self._delay_s = delay_s
        self._idle_at: dict[int, float] = {}
        selector = _Timeless()
        selector.owner = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override] # no executor is asked
        future: asyncio.Future[Any] = self.create_future()
        begin = self.now
        if getattr(executor, "_max_workers", 0) == 1:  # one thing after the other
            begin = max(begin, self._idle_at.get(id(executor), begin) + 1e-6)
        end = begin + self._delay_s()
        self._idle_at[id(executor)] = end

        def work() -> None:
            self.in_thread = True
            try:
                result = func(*args)
            except BaseException as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)
            finally:
                self.in_thread = False

        self.call_at(end, work)
        return future

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this holds, everybody's clock is the loop's."""
        with (
            mock.patch.object(time, "monotonic", self.time),
            mock.patch.object(time, "time", self.time),
            mock.patch.object(time, "sleep"),
        ):
            yield

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something that expects to be called on the running loop."""

        async def call() -> Any:
            return function(*args)

        return self.play(call())

    def play(self, work: Any) -> Any:
        """Run something to its end in invented time."""
        with self.running():
            return self.run_until_complete(work)
