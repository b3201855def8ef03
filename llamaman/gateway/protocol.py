"""The server side of one client connection: bytes in, one ASGI call per request, bytes out.

Read by: whoever doubts what happens to a connection. Guarantees, for every client: one request at a time
(nothing is pipelined: bytes after an unanswered request are dropped and end the connection), a socket that
stays readable while an answer runs, so that a client that leaves is noticed at once, one write per answer
where possible, and an answer that breaks off is never mistaken for a complete one.

The head's end is found here and the parser gets whole heads only: so a head means the same however it was cut
into packets. Bodies of known length do not pass the parser at all; chunked ones do. How bytes leave and how a
connection ends lies below, in `wire.py`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools

from llamaman.gateway.connections import Connections
from llamaman.gateway.heads import BadHead, Head, Header, check_head, check_partial_head, version_of
from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull, ClientGone, Surface
from llamaman.gateway.request import Request
from llamaman.gateway.wire import NEVER, Wire

log = logging.getLogger("llamaman.gateway")

_ASGI = {"version": "3.0", "spec_version": "2.4"}


class Connection(Wire):
    """One client connection."""

    __slots__ = (
        "_headers",
        "_last_head",
        "_last_raw_head",
        "_need",
        "_overhead",
        "_parser",
        "_target",
    )

    def __init__(self, registry: Connections, surface: Surface, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(registry, surface, loop)
        self._parser: httptools.HttpRequestParser | None = None
        self._target = b""
        self._headers: list[Header] = []
        self._last_raw_head = b""
        self._last_head: Head | None = None
        self._need = 0  # body bytes still to come; -1 while a chunked body runs
        self._overhead = 0  # chunked framing bytes since the last piece of body

    # --- transport callbacks

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.registry.remove(self)
        self._parser = None  # it holds bound methods of this object
        request = self.request
        if request is not None:
            self.request = None
            request.lose()
        self._release_drain()

    def eof_received(self) -> bool:
        self._eof = True
        request = self.request
        if request is None or self._closing:
            return False
        # Half-closed counts as gone, as it does for llama-server; the answer may still be written.
        request.lose()
        return True

    def data_received(self, data: bytes) -> None:
        if self.request is not None:
            self._body_bytes(data)
            return
        if self._lingering or self._closing:
            self._drop(len(data))
            return
        part = self._part
        if part:
            searched = max(0, len(part) - 3)
            part += data
            end = part.find(b"\r\n\r\n", searched)
            if end >= 0 or len(part) > self.registry.limits.head_bytes:
                data = bytes(part)
                part.clear()
        else:
            if data[:1] in b"\r\n":  # some clients end a body with an extra line break
                data = data.lstrip(b"\r\n")
                if not data:
                    return
            end = data.find(b"\r\n\r\n")
            if end < 0:
                part += data
                self.deadline = self.loop.time() + self.registry.limits.head_s
        if end >= 0 and end + 4 <= self.registry.limits.head_bytes:
            self._begin(data, end + 4)
        elif end >= 0 or len(data) > self.registry.limits.head_bytes:
            self._refuse(431, f"the request head is larger than {self.registry.limits.head_bytes} bytes")
        else:
            try:
                check_partial_head(bytes(part))
            except BadHead as bad:
                self._refuse(400, bad.reason)

    # --- parser callbacks

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) > self.registry.limits.max_headers:
            raise BadHead(f"the request has more than {self.registry.limits.max_headers} headers")
        self._headers.append((name, value))

    def on_body(self, data: bytes) -> None:
        self._overhead = 0
        if self.request is not None:
            self.request.feed(data)

    def on_message_complete(self) -> None:
        if self.request is not None and not self.request.body_complete:
            self.request.end_body()

    # --- a request

    def _begin(self, data: bytes, end: int) -> None:
        """A whole head arrived: check it and start its handler."""
        raw_head = data[:end]
        if raw_head == self._last_raw_head and self._last_head is not None:
            self._need = self._last_head.content_length or 0
            self._start(self._last_head, data, end)
            return
        limits = self.registry.limits
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers = []
        upgrade = False
        try:
            try:
                parser.feed_data(raw_head)
            except httptools.HttpParserUpgrade:
                upgrade = True
            head = check_head(
                parser.get_method(),
                self._target,
                version_of(raw_head),
                self._headers,
                max_headers=limits.max_headers,
                max_target_bytes=limits.target_bytes,
            )
        except BadHead as bad:
            self._refuse(400, bad.reason)
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(
                400, cause.reason if isinstance(cause, BadHead) else f"not a valid HTTP head: {error}"
            )
            return
        length = head.content_length
        self._need = length or 0
        if head.chunked:
            self._need = -1
            if upgrade:
                # The parser takes an upgrade offer for the end of HTTP; a fresh one goes on with the body.
                parser = self._parser = httptools.HttpRequestParser(self)
                parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            if length or upgrade:
                self._parser = None  # it would wait for a body that it never sees
            # Clients repeat their heads; this one means the same when the next request begins with it.
            self._last_raw_head = raw_head
            self._last_head = head
        self._start(head, data, end)

    def _start(self, head: Head, data: bytes, end: int) -> None:
        """Hand a checked request to the application; its body starts at `end`."""
        self._overhead = 0
        self._headers = []  # from here on it counts trailers
        self._target = b""
        self._continued = False
        request = self.request = Request(self, head, body_complete=self._need == 0)
        self.deadline = NEVER
        if len(data) > end:
            self._body_bytes(data[end:])
            if request.is_gone:
                return
        # A name of its own saves asyncio the making of one, and says more.
        task = asyncio.Task(self._run(request), loop=self.loop, name=head.path)
        request.task = task
        self.registry.tasks.add(task)

    def _body_bytes(self, data: bytes) -> None:
        """Bytes that arrived while a request runs: its body, or something that nobody asked for."""
        request = self.request
        assert request is not None
        need = self._need
        if request.body_complete:
            self._drop(len(data))
        elif need > 0:
            if len(data) > need:
                self._drop(len(data) - need)
                data = data[:need]
            self._need = need - len(data)
            request.feed(data)
            if not self._need:
                request.end_body()
        else:
            self._chunked_bytes(request, data)

    def _chunked_bytes(self, request: Request, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            self._drop(len(data))
            return
        self._overhead += len(data)
        failure = "the chunked body carries too much besides its content"
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            failure = f"not a valid chunked body: {error}"
            self._parser = None
        if request.body_complete:
            if self._parser is None or self._target:  # something followed the last chunk
                self._parser = None
                self._drop(0)
        elif self._parser is None or self._overhead > self.registry.limits.head_bytes:
            self._parser = None
            self.request = None
            request.lose()
            if request.started:
                self._transport.abort()
            else:
                self._refuse(400, failure)

    async def _run(self, request: Request) -> None:
        """Call the application, and see to it that the client gets an end in any case."""
        head = request.head
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": head.http_version,
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers.copy(),
            "client": self.peer,
            "server": self.local,
            "extensions": {"llamaman.request": request},
        }
        try:
            await self.registry.app(scope, request.receive, request.send)
            if not request.answered and request.is_gone:
                self._fail(request, 0, "")
            elif not request.answered and not self.is_lost:
                log.error("the handler of %s %s returned without a complete answer", head.method, head.path)
                self._fail(request, 500, "internal error")
        except ClientGone:
            self._fail(request, 0, "")
        except BodyTooLarge as error:
            self._fail(request, 413, str(error))
        except BodyTooSlow as error:
            self._fail(request, 408, str(error))
        except BufferFull as error:
            self._fail(request, 503, str(error), b"retry-after: 1\r\n")
        except asyncio.CancelledError:
            self._fail(request, 503, "the server is shutting down")
            raise
        except Exception:
            log.exception("the handler of %s %s failed", head.method, head.path)
            self._fail(request, 500, "internal error")
        finally:
            request.release()
            task = request.task
            if task is not None:
                self.registry.tasks.discard(task)
                request.task = None

    def _fail(self, request: Request, status: int, sentence: str, extra: bytes = b"") -> None:
        """End a request whose handler did not: an error before the answer began, an abort after."""
        if self.is_lost or request.answered or self.request is not request:
            return
        if request.started or not status:
            self._transport.abort()
            return
        request.answered = True
        self.request = None
        self._refuse(status, sentence, extra, headers=request.extra_headers, unread=not request.body_complete)

    def answer_done(self, request: Request) -> None:
        """The answer is written: wait for the next request, or end the connection."""
        self.request = None
        self._served = True
        if self._extra or not request.body_complete:
            self._linger()
        elif self.close_after or self._eof:
            self._close()
        else:
            self.deadline = self.loop.time() + self.registry.limits.keepalive_s

    def keeps_alive(self, request: Request) -> bool:
        """Whether the connection may carry another request after this answer."""
        return (
            request.head.keep_alive
            and request.body_complete
            and not (self._extra or self._eof or self.close_after)
        )
