"""Requests as bytes, and the simplest applications behind a connection."""

from __future__ import annotations

from typing import Any

from llamaman.gateway.request import Request

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes, *headers: bytes) -> bytes:
    """A POST with a Content-Length."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n%b" % (len(body), lines, body)


def request_of(scope: dict[str, Any]) -> Request:
    """The native request object of a scope."""
    request = scope["extensions"]["llamaman.request"]
    assert isinstance(request, Request)
    return request


async def reply(send: Any, body: bytes = b"ok", status: int = 200, headers: Any = ()) -> None:
    """A complete answer."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the body."""
    await reply(send, await request_of(scope).read_body(1 << 20))


async def deaf(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer 401 without a look at the body."""
    await reply(send, b"no", 401)
