"""Waiting for an engine that is not here yet, such as a container image. On the event loop.

The runtime does the fetching, once for all who want the same engine. Whoever waits here may leave at any time:
cancelling lets go of the fetch and never ends it for others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future

from llamaman.core.services import Report, Run
from llamaman.errors import LaunchError, LlamaManError, RuntimeLost
from llamaman.records import Engine
from llamaman.runtime import FetchesEngines, Runtime

#: Seconds for which a failed fetch is not tried again by requests, where the runtime does not say how long.
HOLD_S = 30.0
#: Seconds between two events about the progress of one fetch.
NEWS_EVERY_S = 1.0
#: Seconds after which a request may ask again while its engine is fetched.
RETRY_S = 10

_FIRST_WORDS = "fetching its engine"


class FetchFailed(LaunchError):
    """The engine could not be fetched; nothing has died."""


async def fetch(runtime: Runtime, engine: Engine, run: Run, report: Report) -> bool:
    """See that an engine is here; whether it had to be fetched for that.

    :param report: told what is happening while it is fetched, and None when that is over, however it ends.
    :raises FetchFailed: it cannot be had. :raises RuntimeLost: nobody knows now.
    """
    if not isinstance(runtime, FetchesEngines):
        return False
    loop = asyncio.get_running_loop()
    reports: list[str] = []

    def told(text: str) -> None:
        reports.append(text)
        report(text)

    def from_any_thread(text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody wants to know any more
            loop.call_soon_threadsafe(told, text)

    future = await _begin(runtime, engine, run, from_any_thread)
    if future is None:
        return False
    try:
        if not reports:
            report(_FIRST_WORDS)
        await _outcome(future)
    finally:
        report(None)
    return True


async def _begin(
    runtime: FetchesEngines, engine: Engine, run: Run, report: Callable[[str], None]
) -> Future[None] | None:
    beginning = asyncio.ensure_future(run(runtime.fetch, engine, report))
    try:
        future: Future[None] | None = await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(_let_go)
        raise
    return future


def _let_go(beginning: asyncio.Future[Future[None] | None]) -> None:
    """Nobody waits any more for what has only now begun."""
    if beginning.cancelled() or beginning.exception() is not None:
        return
    if future := beginning.result():
        future.cancel()


async def _outcome(future: Future[None]) -> None:
    try:
        await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise FetchFailed("fetching its engine was given up; try again", retry_after=1) from None
    except RuntimeLost:
        raise
    except LlamaManError as error:
        raise FetchFailed(
            error.message, detail=error.detail, retry_after=error.retry_after, field=error.field
        ) from error
