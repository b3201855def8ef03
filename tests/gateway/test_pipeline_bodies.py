"""What reaches a dialect, and through it an engine, of the body that a client sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.access import Scope
from llamaman.gateway.dialect import JSON_HEADERS, Call, Intent, Lease, Reply, Request, Serving
from llamaman.gateway.exchange import Exchange
from llamaman.records import NOBODY, Identity, ModelView

from .small_pipeline import Scripted, ask, house, whole

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Until = Callable[..., Coroutine[Any, Any, None]]


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


class Translating(Passing):
    """Keeps on which threads it was asked, in order; waits in its first step until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[bool] = []
        self.reached, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def _note(self) -> None:
        self.threads.append(threading.current_thread() is threading.main_thread())

    def open(self, request: Request) -> Intent | Reply:
        self._note()
        return super().open(request)

    def serve(self, intent: Intent, model: ModelView, lease: Lease) -> Serving:
        self._note()
        self.reached.set()
        assert self.may_go_on.wait(60), "nobody let it go on"
        yield from super().serve(intent, model, lease)


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_a_large_body_is_translated_beside_the_event_loop(run: Run, size: int) -> None:
    async def main() -> None:
        async with house(dialect := Translating(), answers) as place:
            status, _ = await whole(place.port, b'{"prompt":"%b"}' % (b"x" * size))
            assert status == 200
            assert dialect.threads == [size < 10_000] * 2

    run(main())


def test_a_client_may_leave_while_its_body_is_translated(
    run: Run, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with house(dialect := Translating(), answers) as place:
            dialect.may_go_on.clear()
            _, writer = await ask(place.port, b'{"prompt":"%b"}' % (b"x" * 100_000))
            await asyncio.to_thread(dialect.reached.wait, 60)
            writer.transport.abort()
            (exchange,) = place.pipeline.exchanges.all()
            assert isinstance(exchange, Exchange)
            await until(lambda: exchange.request.is_gone)
            assert place.instance.active == 1  # its slot is its own until the thread has ended
            dialect.may_go_on.set()
            await until(place.at_rest)
            assert place.engine.seen == []

    run(main())
    assert caplog.records == []
