"""Carrying out on a thread what would hold the event loop up. Read by the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def beside_the_loop(work: Callable[[], T]) -> T:
    """The result of work on a thread. Whoever is cancelled meanwhile goes on only when the work has ended.

    So nobody closes what a thread still works with; a generator, say, cannot be closed while it runs.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait((running,))
            except asyncio.CancelledError:
                continue  # the one that came first is raised below
        if not running.cancelled():
            running.exception()  # which nobody is left to be told
        raise
