"""A manager made of prepared answers, for what a real one shows only in rare moments."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class StandIn:
    """Answers by method and path; what was asked is in :attr:`asked`.

    :ivar answers: "GET /api/x" -> JSON, or a function of the query that makes it; bytes are an event stream.
    :ivar asked: (method and path, query, body).
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    def answer(self, what: str, query: Mapping[str, str]) -> tuple[int, bytes, str]:
        if what not in self.answers:
            return 404, b'{"error": "no such thing"}', "application/json"
        found = self.answers[what]
        value = found(query) if callable(found) else found
        if isinstance(value, bytes):
            return 200, value, "text/event-stream"
        return 200, json.dumps(value).encode(), "application/json"


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """Serve on a free port of 127.0.0.1."""
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query))
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            what = f"{self.command} {parts.path}"
            state.asked.append((what, query, json.loads(data) if data else None))
            status, body, kind = state.answer(what, query)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - the names that the base class calls

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
