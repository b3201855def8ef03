"""One answer on its way: what has left, in which order, and how it is ended from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from llamaman.errors import ModelUnavailable, QueueFull, Unauthorized
from llamaman.gateway import exchange as module
from llamaman.gateway.dialect import JSON_HEADERS, SSE_HEADERS, Reply
from llamaman.gateway.exchange import Exchange, Exchanges, OpenStream
from llamaman.gateway.limits import ClientGone, Surface
from llamaman.gateway.native import Native
from llamaman.records import NOBODY, Identity

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Wire:
    """Keeps what is sent; refuses what the server would refuse."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.body = b""
        self.ended = False
        self.lost = False
        self.request: Any = SimpleNamespace(surface=Surface("proxy"), answered=False, is_gone=False)

    async def send(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if self.lost:
            raise ClientGone("the client closed the connection")
        assert not self.ended, f"{message} after the end"
        if message["type"] == "http.response.start":
            assert not self.started, "two heads"
            self.started.append(message["status"])
            self.headers = dict(message["headers"])
            return
        assert self.started, "a body before its head"
        self.body += message["body"]
        self.ended = self.request.answered = not message["more_body"]

    def exchange(self, identity: Identity = NOBODY) -> Exchange:
        self.request.task = asyncio.current_task()
        return Exchange(self.request, self.send, Native(), identity, "/completion")


def test_a_refusal_shows_the_figures_it_rests_on(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        await wire.exchange().fail(ModelUnavailable("no room", inputs={"max_models": 2, "running": 2}))
        assert wire.headers[b"x-llamaman-reason"] == b"max_models=2; running=2"
        other = Wire()
        await other.exchange().fail(QueueFull("full"))
        assert b"x-llamaman-reason" not in other.headers

    run(main())


def test_a_reply_is_head_and_body_once(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        exchange = wire.exchange()
        await exchange.reply(Reply(404, JSON_HEADERS, b"{}"))
        assert (wire.started, wire.body, wire.ended, exchange.status) == ([404], b"{}", True, 404)

    run(main())


def test_a_stream_starts_once_however_often_it_is_started(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        exchange = wire.exchange()
        await exchange.start(200, SSE_HEADERS)
        await exchange.start(500, SSE_HEADERS)
        await exchange.write(b"a")
        await exchange.write(b"b")
        await exchange.finish()
        assert (wire.started, wire.body, wire.ended, exchange.status) == ([200], b"ab", True, 200)

    run(main())


def test_an_error_before_the_start_has_its_own_status(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        await wire.exchange().fail(QueueFull("full"))
        assert (wire.started, wire.body) == ([429], b'{"error": "full"}')

    run(main())


def test_an_error_after_the_start_is_the_last_event(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        exchange = wire.exchange()
        await exchange.start(200, SSE_HEADERS)
        await exchange.write(b"data: a\n\n")
        await exchange.fail(QueueFull("full"))
        assert (wire.started, wire.ended) == ([200], True)
        assert wire.body == b'data: a\n\ndata: {"error": "full"}\n\n'

    run(main())


def test_a_reply_after_a_heartbeat_is_the_last_event(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        exchange = wire.exchange()
        await exchange.start(200, SSE_HEADERS)
        await exchange.reply(Reply(400, JSON_HEADERS, b'{"error":"too long"}'))
        assert (wire.started, wire.body, wire.ended) == ([200], b'data: {"error":"too long"}\n\n', True)
        assert exchange.status == 400

    run(main())


def test_a_reply_after_a_heartbeat_takes_the_form_that_the_dialect_gave_it(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        exchange = wire.exchange()
        await exchange.start(200, SSE_HEADERS)
        await exchange.reply(Reply(400, JSON_HEADERS, b"{}", late=b"event: error\ndata: {}\n\n"))
        assert (wire.body, wire.ended) == (b"event: error\ndata: {}\n\n", True)

    run(main())


@pytest.mark.parametrize("how", ["reply", "fail", "write"])
def test_after_the_first_real_byte_there_are_no_heartbeats(
    run: Run, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)

    async def main() -> None:
        wire = Wire()
        exchange = wire.exchange()
        exchange.keep_alive()
        if how == "write":
            await exchange.start(200, SSE_HEADERS)
            await exchange.write(b"data: a\n\n")
        elif how == "reply":
            await exchange.reply(Reply(200, JSON_HEADERS, b"{}"))
        else:
            await exchange.fail(QueueFull("full"))
        before = wire.body
        await asyncio.sleep(0.08)
        assert wire.body == before
        exchange.quiet()

    run(main())


def test_heartbeats_to_a_client_that_left_disturb_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.005)

    async def main() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        wire = Wire()
        wire.lost = True
        exchange = wire.exchange()
        exchange.keep_alive()
        await asyncio.sleep(0.05)
        exchange.quiet()
        await asyncio.sleep(0.02)
        assert (wire.body, reported) == (b"", [])

    run(main())


def test_ending_it_cancels_its_task_with_the_reason(run: Run) -> None:
    async def main() -> None:
        wires = Wire()
        made: list[Exchange] = []

        async def handle() -> None:
            made.append(wires.exchange())
            await asyncio.sleep(20)

        task = asyncio.create_task(handle())
        await asyncio.sleep(0)
        made[0].end(Unauthorized("Invalid API key"))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(made[0].ended_by, Unauthorized)
        made[0].end()  # ending what is over is no error

    run(main())


def test_a_client_that_leaves_after_its_answer_ends_nothing(run: Run) -> None:
    async def main() -> None:
        wire = Wire()
        exchange = wire.exchange()
        await exchange.reply(Reply(200, JSON_HEADERS, b"{}"))
        exchange.client_left()
        await asyncio.sleep(0.01)  # would be cancelled here

    run(main())


def test_revoking_a_key_ends_its_exchanges_and_no_others(run: Run) -> None:
    async def main() -> None:
        exchanges = Exchanges()
        over: list[str] = []

        async def handle(key_id: str | None, stream: bool) -> None:
            identity = Identity("key", "name", key_id=key_id)
            mine = OpenStream(identity) if stream else Wire().exchange(identity)
            exchanges.add(mine)
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                over.append(key_id or "")
            finally:
                exchanges.remove(mine)

        asked = (("a", False), ("b", False), ("a", True), (None, False))
        tasks = [asyncio.create_task(handle(*who)) for who in asked]
        await asyncio.sleep(0.01)
        assert len({exchange.id for exchange in exchanges.all()}) == 4
        assert exchanges.revoke("a") == 2
        await asyncio.sleep(0.01)
        assert (over, len(exchanges.all())) == (["a", "a"], 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert exchanges.all() == []

    run(main())
