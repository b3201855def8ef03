"""An engine that does exactly what a test tells it, byte by byte, and a client to it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from llamaman.gateway.upstream import Address, Response, Upstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """The engine's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """One request, head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        return head + await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        """Bytes that leave at once."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with a reset instead of an end of file."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def engine(script: Callable[[Peer, int], Awaitable[None]], **options: Any) -> AsyncIterator[Upstream]:
    """An engine that runs `script(peer, number)` for each connection, and a client to it."""
    number = 0
    tasks: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Peer(reader, writer), number)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    upstream = Upstream(Address("127.0.0.1", server.sockets[0].getsockname()[1]), **options)
    try:
        yield upstream
    finally:
        upstream.abort()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def get(upstream: Upstream, **options: Any) -> Response:
    options.setdefault("silence_s", 20.0)
    return await upstream.request("GET", b"/x", [(b"accept", b"*/*")], **options)


async def read_to_end(response: Response) -> bytes:
    parts = []
    while block := await response.read_block():
        parts.append(block)
    return b"".join(parts)
