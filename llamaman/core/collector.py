"""When the garbage collector runs: not while streams wait for their next token.

Under 400 streams a collection of the second generation took 12 ms and a full one 31 ms, during which no
stream moved: they were the p99 of the time to the first token. So what the boot left is set aside for good,
collections by count come only after 50,000 more objects were made than dropped, and the cycles that requests
leave behind are collected when there is little to disturb.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

COLLECT_AT = (50_000, 1_000, 1_000)
LOOK_EVERY_S = 15.0
FEW = 2
#: A house that is never quiet is collected all the same after this many looks.
MOST_LOOKS = 40


async def run(loaded: Callable[[], bool], busy: Callable[[], int]) -> None:
    """Calm the collector once everything is loaded, then collect in quiet moments, for ever.

    :param loaded: whether the last imports are done.
    :param busy: how many requests are in progress.
    """
    while not loaded():  # noqa: ASYNC110 - told by a thread, and nobody waits for this
        await asyncio.sleep(0.5)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)
    looks = 0
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        looks += 1
        if busy() <= FEW or looks >= MOST_LOOKS:
            gc.collect()
            looks = 0
