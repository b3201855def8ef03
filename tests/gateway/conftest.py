"""What the front door's own tests share: both event loops, a served app, a raw client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop

from llamaman.gateway.connections import AsgiApp
from llamaman.gateway.limits import BodyBudget, Limits, Surface
from llamaman.gateway.listeners import Listeners

PROXY = Surface("proxy")


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run a coroutine to its end on each kind of loop, at most two minutes."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def run_on_loop(main: Coroutine[Any, Any, Any]) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(main, 120)

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(bounded())

    return run_on_loop


@dataclass
class Door:
    """A front door that serves one app on a loopback port."""

    listeners: Listeners
    port: int

    async def connect(self) -> Client:
        """A raw connection to it."""
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24))


@dataclass
class Answer:
    """One parsed answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Client:
    """A raw HTTP client: it sends what it is told and parses answers strictly."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].split(b"\r\n")
        pairs = [tuple(line.decode().split(": ", 1)) for line in lines]
        assert len({name for name, _ in pairs}) == len(pairs), f"a header was sent twice: {raw!r}"
        return int(first.split(b" ")[1]), dict(pairs)

    async def answer(self, *, bodyless: bool = False) -> Answer:
        """The next answer, whatever frames it."""
        status, headers = await self.head()
        if bodyless or status in (204, 304):
            return Answer(status, headers, b"")
        if "content-length" in headers:
            return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return Answer(status, headers, body)
        return Answer(status, headers, await self.reader.read())

    async def at_end(self) -> bool:
        """Wait for the server to end the connection; anything else it sends fails the test."""
        try:
            rest = await self.reader.read()
        except ConnectionResetError:
            return True
        assert rest == b"", f"unexpected bytes before the end: {rest[:200]!r}"
        return True

    def close(self) -> None:
        """Close at once."""
        self.writer.transport.abort()


Serve = Callable[..., AbstractAsyncContextManager[Door]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(app, head_s=0.2) as door`: limits by keyword, `budget_bytes` for the body budget."""

    @asynccontextmanager
    async def serving(app: AsgiApp, *, budget_bytes: int = 1 << 30, **limits: Any) -> AsyncIterator[Door]:
        listeners = Listeners(app, limits=Limits(**limits), budget=BodyBudget(budget_bytes))
        await listeners.open(PROXY, host="127.0.0.1", port=0)
        try:
            yield Door(listeners, listeners.ports()[PROXY][1])
        finally:
            await listeners.shutdown(0.1)

    return serving


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll until `condition` holds; fails the test after a generous deadline."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition did not come true"
        await asyncio.sleep(0.005)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Coroutine[Any, Any, None]]:
    """`await until(lambda: ...)`."""
    return until
