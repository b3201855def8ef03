"""``GET /api/instances/{id}/logs/stream``: a log as server-sent events, on the event loop.

Frames are ``data: {"lines": [...]}``: first the last lines, then new ones; ``: keepalive`` every 15 s of
silence. A reader holds no thread while it waits. The stream ends when the client leaves (the server closes
the iterator), when the instance is removed, or when the caller's key is revoked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from llamaman.access import Access
from llamaman.core.redact import redact
from llamaman.errors import LlamaManError, NotFound
from llamaman.gateway.streams import StreamCount
from llamaman.records import Identity, StreamRoute
from llamaman.runtimes.logfiles import Follower, tail

PATTERN = "/api/instances/{id}/logs/stream"
KEEPALIVE = b": keepalive\n\n"
KEEPALIVE_S = 15.0
POLL_S = 0.25
LAST_LINES = 100


class LogStreams:
    """The open log streams; its owner is the event loop.

    :param log_path: instance id -> its log file; raises NotFound. Must not block.
    :param is_live: whether a caller still counts; the streams of a revoked key end.
    :param count: shared with other streams of the same callers.
    """

    def __init__(
        self,
        log_path: Callable[[str], Path],
        is_live: Callable[[Identity], bool] = lambda identity: True,
        count: StreamCount | None = None,
    ) -> None:
        self._log_path = log_path
        self._is_live = is_live
        self._count = count or StreamCount()

    def route(self) -> StreamRoute:
        """The route to be mounted on the loop."""
        return StreamRoute("GET", PATTERN, Access.MANAGE, self.open)

    def open(self, identity: Identity, values: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Start a stream.

        :raises NotFound: no such instance. :raises QueueFull: too many open streams.
        """
        path = self._log_path(values["id"])
        self._count.check(identity)
        return self._follow(values["id"], path, identity)

    async def _follow(self, instance_id: str, path: Path, identity: Identity) -> AsyncIterator[bytes]:
        with self._count.open(identity):
            follower = await asyncio.to_thread(Follower, path)
            yield frame(await asyncio.to_thread(last_lines, path))
            loop = asyncio.get_running_loop()
            last = loop.time()
            while True:
                await asyncio.sleep(POLL_S)
                if not self._is_live(identity):
                    return
                lines = await asyncio.to_thread(follower.read)
                now = loop.time()
                if lines:
                    last = now
                    yield frame(lines)
                elif self._removed(instance_id):
                    return
                elif now - last >= KEEPALIVE_S:
                    last = now
                    yield KEEPALIVE

    def _removed(self, instance_id: str) -> bool:
        try:
            self._log_path(instance_id)
        except NotFound:
            return True
        return False


def last_lines(path: Path, count: int = LAST_LINES) -> list[str]:
    """The end of a log, redacted; [] when there is none yet. Blocks.

    :raises LlamaManError: it cannot be read.
    """
    try:
        return [redact(line) for line in tail(path, count)]
    except OSError as error:
        raise LlamaManError(f"the log cannot be read: {error.strerror or error}", detail=str(path)) from error


def frame(lines: list[str]) -> bytes:
    """One event."""
    text = json.dumps([redact(line) for line in lines], ensure_ascii=False, separators=(",", ":"))
    return b'data: {"lines":%b}\n\n' % text.encode()
