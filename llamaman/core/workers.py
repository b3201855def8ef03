"""The pools on which blocking work for instances runs, so that none of it is ever done on the event loop.

Pools of their own, so that a stop never waits behind slow starts, nor a look behind either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from llamaman.errors import ModelUnavailable

T = TypeVar("T")


class Workers:
    """The pools. The writer has one thread: records are stored in the order in which they were given."""

    def __init__(self) -> None:
        self.starts = ThreadPoolExecutor(8, "start")
        self.stops = ThreadPoolExecutor(8, "stop")
        self.inspects = ThreadPoolExecutor(4, "inspect")
        self.writer = ThreadPoolExecutor(1, "instance-writer")
        self.closing = False

    async def run(self, pool: ThreadPoolExecutor, function: Callable[..., T], *args: Any) -> T:
        """What ``function`` returns or raises.

        :raises ModelUnavailable: the manager is ending and takes no more work.
        """
        try:
            running = asyncio.get_running_loop().run_in_executor(pool, lambda: function(*args))
        except RuntimeError:  # the pool was shut down
            self.refuse_if_closing()
            raise
        return await running

    def on(self, pool: ThreadPoolExecutor) -> Callable[..., Awaitable[Any]]:
        """``run`` on one pool."""

        async def run(function: Callable[..., Any], *args: Any) -> Any:
            return await self.run(pool, function, *args)

        return run

    def refuse_if_closing(self) -> None:
        """Nothing new is begun while the manager ends.

        :raises ModelUnavailable: it does.
        """
        if self.closing:
            raise ModelUnavailable("LlamaMan is ending; try again", retry_after=5)

    async def shutdown(self) -> None:
        """Wait for what runs."""
        for pool in (self.starts, self.stops, self.inspects, self.writer):
            await asyncio.to_thread(pool.shutdown)
