"""A translated stream leaves in as few pieces as it came in, and nothing waits for what has not come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llamaman.errors import EngineDied
from llamaman.gateway import exchange as exchange_module
from llamaman.gateway.dialect import SSE_HEADERS, Call, Chunk, Emit, Next, Serving, Start

from .small_pipeline import HEAD, Scripted, ask, chunk, event, house, whole

Run = Callable[[Coroutine[Any, Any, Any]], Any]
DONE = b"0\r\n\r\n"


def payload(event_as_chunk: bytes) -> bytes:
    """An event without the chunk around it."""
    return event_as_chunk.partition(b"\r\n")[2].removesuffix(b"\r\n")


def translated() -> Serving:
    """Each token in angle brackets."""
    yield Start(200, SSE_HEADERS)
    got: Any = yield Call("POST", "/v1/chat/completions", b"{}", mode="stream")
    while isinstance(got, Chunk):
        yield Emit(b"<%b>" % got.data["choices"][0]["delta"]["content"].encode())
        got = yield Next()
    yield Emit(b"end")


def body_of(raw: bytes) -> tuple[bytes, int]:
    """The answer's text, and of how many chunks it is."""
    rest, pieces = raw.partition(b"\r\n\r\n")[2], []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16):
            pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(pieces), len(pieces)


def test_tokens_that_came_together_are_sent_together(run: Run) -> None:
    texts = [str(number) for number in range(300)]

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b"".join(payload(event(text)) for text in texts)) + DONE)

    async def main() -> None:
        async with house(Scripted(translated, stream=True), behave) as inside:
            body, pieces = body_of((await whole(inside.port))[1])
            assert body == b"".join(b"<%b>" % text.encode() for text in texts) + b"end"
            assert pieces <= 5, "one, a further one for the end, and what the network cut"

    run(main())


def test_a_token_does_not_wait_for_the_next_one(run: Run) -> None:
    go_on = asyncio.Event()

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + event("a") + event("b"))
        await go_on.wait()
        writer.write(event("c") + DONE)

    async def main() -> None:
        async with house(Scripted(translated, stream=True), behave) as inside:
            reader, writer = await ask(inside.port)
            seen = await asyncio.wait_for(reader.readuntil(b"<b>"), 60)
            assert b"<a>" in seen
            go_on.set()
            assert b"<c>" in await reader.read()
            writer.close()

    run(main())


def test_a_ping_behind_the_last_token_does_not_hold_it_back(run: Run) -> None:
    go_on = asyncio.Event()

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(payload(event("a")) + b":\n\n" + b"data: [DONE]\n\n"))
        await go_on.wait()
        writer.write(DONE)

    async def main() -> None:
        async with house(Scripted(translated, stream=True), behave) as inside:
            reader, writer = await ask(inside.port)
            await asyncio.wait_for(reader.readuntil(b"<a>"), 60)
            go_on.set()
            await reader.read()
            writer.close()

    run(main())


def test_what_was_translated_before_an_error_is_sent_before_it(run: Run) -> None:
    def breaks() -> Serving:
        yield Start(200, SSE_HEADERS)
        got: Any = yield Call("POST", "/v1/chat/completions", b"{}", mode="stream")
        assert isinstance(got, Chunk)
        yield Emit(b"<first>")
        yield Next()
        raise EngineDied("it makes no sense")

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(payload(event("a")) + payload(event("b"))) + DONE)

    async def main() -> None:
        async with house(Scripted(breaks, stream=True), behave) as inside:
            body, _ = body_of((await whole(inside.port))[1])
            assert body.startswith(b"<first>data: ")
            assert b"it makes no sense" in body

    run(main())


def test_what_is_held_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "HELD_BYTES", 100)

    async def behave(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(b"".join(payload(event("x" * 48)) for _ in range(20))) + DONE)

    async def main() -> None:
        async with house(Scripted(translated, stream=True), behave) as inside:
            body, pieces = body_of((await whole(inside.port))[1])
            assert body == b"<%b>" % (b"x" * 48) * 20 + b"end"
            assert pieces >= 10

    run(main())
