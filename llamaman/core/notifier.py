"""Telling plugins without waiting for them: one thread, one bounded queue, order kept, drops counted."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("llamaman.notifier")

T = TypeVar("T")


class Notifier(Generic[T]):
    """Calls ``deliver`` with every record, on a thread of its own.

    :param limit: records that may wait; more are dropped and counted, never waited for.
    """

    def __init__(self, name: str, deliver: Callable[[T], None], limit: int = 10_000) -> None:
        self._name = name
        self._deliver = deliver
        self._queue: queue.Queue[T | None] = queue.Queue(limit)
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def put(self, record: T) -> None:
        """Hand over a record; never blocks. From one thread only."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = 5.0) -> None:
        """Deliver what waits, for at most ``timeout_s`` seconds."""
        if self._thread is None:
            return
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            log.warning("%s: %d records were not delivered", self._name, self._queue.qsize())
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("%s: %d records were not delivered in time", self._name, self._queue.qsize())

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            try:
                self._deliver(record)
            except Exception:
                log.exception("%s: a record could not be delivered", self._name)
