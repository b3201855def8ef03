"""What reaches a dialect, and through it an engine, of the body that a client sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.access import Scope
from llamaman.gateway.dialect import JSON_HEADERS, Call, Intent, Lease, Reply, Request, Serving
from llamaman.records import NOBODY, Identity, ModelView

from .small_pipeline import Scripted, house, whole

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Passing(Scripted):
    """A dialect that passes the client's text on and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(lambda: iter(()))  # type: ignore[arg-type, return-value] # never asked
        self.shown: list[dict[str, Any]] = []

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        request = intent.request
        assert isinstance(request, Request)
        self.shown.append(request.json)
        result: Any = yield Call("POST", "/completion", request.raw)
        yield Reply(result.status, JSON_HEADERS, result.body)


async def answers(path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    await writer.drain()


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", b"", 400, "missing request body"),
        (b'{"messages":' + b"[" * 200_000, b"", 400, "messages is nested deeper than 128 levels"),
        (b'{"n":129}', b"", 400, "n must be at most 128"),
        (b'{"model":"a","mod\\u0065l":"b"}', b"", 400, "model is given more than once"),
        (b'{"a":"%b","n":129}' % (b"x" * 200_000), b"", 400, "n must be at most 128"),
        (b"\x1f\x8b", b"Content-Encoding: gzip\r\n", 415, "without Content-Encoding"),
        (b"{}", b"Content-Encoding: identity\r\n", 200, ""),
    ],
)
def test_what_is_out_of_bounds_reaches_nobody(
    run: Run, body: bytes, headers: bytes, status: int, said: str
) -> None:
    async def main() -> None:
        async with house(dialect := Passing(), answers) as place:
            got, raw = await whole(place.port, body, headers)
            assert (got, said in raw.decode()) == (status, True)
            assert bool(dialect.shown) == bool(place.engine.seen) == (status == 200)

    run(main())


@pytest.mark.parametrize("scope", [None, *Scope])
def test_the_choice_of_a_slot_is_for_those_who_manage(run: Run, scope: Scope | None) -> None:
    who = Identity("key", "k", scope, "k1") if scope else NOBODY

    async def main() -> None:
        async with house(dialect := Passing(), answers, who=who) as place:
            status, _ = await whole(place.port, b'{"prompt":"a","id_slot":0}')
            assert status == 200
            (body,), (shown,) = place.engine.bodies, dialect.shown
            if scope in (Scope.MANAGE, Scope.ADMIN):
                assert body == shown == {"prompt": "a", "id_slot": 0}
            else:
                assert shown == {"prompt": "a"}
                assert body == {"prompt": "a", "id_slot": -1}

    run(main())
