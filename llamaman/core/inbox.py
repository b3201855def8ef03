"""The loop of one supervisor: its messages, one after the other, and the tasks that it has begun. On the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from llamaman.core import messages as m

log = logging.getLogger("llamaman.supervisor")


class Inbox:
    """See the module's docstring.

    :param of: the id of the instance.
    :param on: handles one message; the next one waits for that.
    :param failed: told of a message whose handling raised, and what it raised.
    """

    def __init__(
        self,
        of: str,
        on: Callable[[m.Message], Awaitable[None]],
        failed: Callable[[m.Message, Exception], None],
    ) -> None:
        self._of = of
        self._on = on
        self._failed = failed
        self._queue: asyncio.Queue[tuple[m.Message, asyncio.Future[None] | None]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self._handling = False
        self._closed = False

    def run(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._loop(), name=f"supervisor {self._of}")

    def post(self, message: m.Message) -> None:
        """Put a message in; from the event loop only."""
        if self._closed:
            m.answer(message)
        else:
            self._queue.put_nowait((message, None))

    async def tell(self, message: m.Message) -> None:
        """Put a message in and return when it has been handled."""
        if self._closed:
            return
        handled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((message, handled))
        await handled

    @property
    def is_busy(self) -> bool:
        """Whether a message is being handled or waits."""
        return self._handling or not self._queue.empty()

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task that ends with the inbox; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def close(self) -> None:
        """Cancel everything; nobody is left waiting for an answer."""
        self._closed = True
        tasks = [task for task in (self._task, *self._tasks) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while not self._queue.empty():
            message, handled = self._queue.get_nowait()
            m.answer(message)
            _done(handled)

    async def _loop(self) -> None:
        while True:
            message, handled = await self._queue.get()
            self._handling = True
            try:
                await self._on(message)
            except Exception as error:
                log.exception("instance %s: %s failed", self._of, type(message).__name__)
                self._failed(message, error)
            finally:
                self._handling = False
                _done(handled)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("instance %s: %s", self._of, error, exc_info=error)


def _done(handled: asyncio.Future[None] | None) -> None:
    if handled and not handled.done():
        handled.set_result(None)
