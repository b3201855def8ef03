"""What happens to a request whose engine has no context left: asked again alone, once, unless it was alone already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.gateway.dialect import Intent, Reply
from llamaman.gateway.dialect import Request as DialectRequest

from .small_pipeline import house
from .test_media import Through, send

pytestmark = pytest.mark.parametrize("run", ["uvloop"], indirect=True)  # nothing here depends on the loop

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Until = Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]
FULL = b'{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}'


class Several(Through):
    """Makes so many tasks of a request."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    def open(self, request: DialectRequest) -> Intent | Reply:
        return Intent("tiny", needs="chat", tasks=self.tasks, request=request)


async def full(path: str, writer: asyncio.StreamWriter) -> None:
    head = (
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    writer.write(head % len(FULL) + FULL)


@pytest.mark.parametrize(("tasks", "times"), [(1, 2), (2, 1), (9, 1)])
def test_it_is_asked_again_only_where_that_leaves_it_more_context(
    run: Run, until: Until, tasks: int, times: int
) -> None:
    async def main() -> None:
        async with house(Several(tasks), full, slots=2) as home:
            status, answer = await send(home, {})
            assert (status, len(home.engine.seen)) == (400, times)
            assert "ask for fewer at once" in answer["error"]
            await until(home.at_rest)

    run(main())
