"""How late the event loop comes to what is due, and where it stands when that is long.

A timer of the loop measures four times a second; a thread that only looks at the clock writes the loop's stack to
the log when the timer does not come back, since afterwards nobody could tell what held it up.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

from llamaman.gateway.spread import Histogram

log = logging.getLogger("llamaman.loop")

EVERY_S = 0.25
WINDOW_S = 60.0
#: A loop that has not come back for this long is stuck in something that belongs in a thread.
STUCK_S = 2.0


class LoopLag:
    """See the module's docstring. Made anywhere, started and stopped on the loop.

    :ivar histogram: of every lag, in seconds.
    """

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.histogram = Histogram(buckets)
        self._windows = [0.0, 0.0]  # the longest lag of this window and of the one before
        self._window_ends = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._beat = 0.0
        self._over = threading.Event()

    @property
    def longest(self) -> float:
        """The longest lag of the last one to two minutes, in seconds; from any thread."""
        return max(self._windows)

    def start(self) -> None:
        """Begin to measure the running loop."""
        self._window_ends = time.monotonic() + WINDOW_S
        self._arm(asyncio.get_running_loop())
        watch = threading.Thread(
            target=self._watch, args=(threading.get_ident(),), name="loop-watch", daemon=True
        )
        watch.start()

    def stop(self) -> None:
        """Measure no more."""
        self._over.set()
        if self._timer:
            self._timer.cancel()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = time.monotonic()  # the loop's own clock stands still while it works
        self._timer = loop.call_later(EVERY_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        lag = max(0.0, now - self._beat - EVERY_S)
        self.histogram.add(lag)
        if now > self._window_ends:
            self._windows = [0.0, self._windows[0]]
            self._window_ends = now + WINDOW_S
        self._windows[0] = max(lag, self._windows[0])
        self._arm(loop)

    def _watch(self, loop_thread: int) -> None:
        told = 0.0
        while not self._over.wait(STUCK_S / 2):
            beat = self._beat
            late = time.monotonic() - beat - EVERY_S
            if late < STUCK_S or beat == told:
                continue
            told = beat
            frame = sys._current_frames().get(loop_thread)
            stack = "".join(traceback.format_stack(frame)) if frame else "its thread is gone"
            log.warning(
                "the event loop has been stuck for %.1f s, and every stream with it:\n%s", late, stack
            )
