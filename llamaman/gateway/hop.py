"""The hop from the event loop to Flask: one management request over the private unix socket and back.

Read by the front door's routing. What crosses to Flask: the sealed caller, the content headers and the
allow-list below, nothing else of the client's. Credentials stay on this side, where they were checked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from llamaman.errors import Unauthorized
from llamaman.gateway.caller import HEADER, Caller, seal
from llamaman.gateway.cross_site import READING, is_form_page
from llamaman.gateway.lanes import Lanes
from llamaman.gateway.limits import ClientGone
from llamaman.gateway.upstream import Upstream, UpstreamError
from llamaman.gateway.upstream_response import Response
from llamaman.limits import FORM_BODY, MANAGEMENT_BODY

if TYPE_CHECKING:
    from llamaman.gateway.request import Request

READY_S: Final = 5.0
#: A stop that drains, or a restart, answers when it is done.
SILENCE_S: Final = 900.0

CROSSING: Final = frozenset(
    {
        b"accept",
        b"accept-language",
        b"content-type",
        b"if-none-match",
        b"if-modified-since",
        b"referer",
        b"user-agent",
    }
)
FORM: Final = b"application/x-www-form-urlencoded"
_SEALED: Final = HEADER.lower().encode()
_DROPPED: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server", b"via"})

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Hop:
    """The other end, as the loop knows it.

    :ivar secret: seals the caller, see :mod:`llamaman.gateway.caller`.
    :ivar is_ready: whether Flask listens; it starts after the front door.
    :ivar is_public: (method, path) -> whether strangers may have it; form pages always are.
    :ivar lanes: how many of the requests that take long run at a time.
    """

    upstream: Upstream
    secret: bytes
    is_ready: Callable[[], bool] = lambda: True
    is_public: Callable[[str, str], bool] = lambda method, path: False
    lanes: Lanes = field(default_factory=Lanes)

    def is_open(self, method: str, path: str) -> bool:
        """Whether strangers' requests are for Flask to judge."""
        return is_form_page(path) or self.is_public(method, path)


async def forward_to_flask(
    scope: dict[str, Any],
    receive: Receive,
    send: Send,
    caller: Caller,
    hop: Hop,
    *,
    login_page: str | None = None,
) -> None:
    """Answer a management request by asking Flask.

    Refused here, before the body is read: strangers on anything but public paths (or sent to the ``login_page``
    where there is one), a body of the wrong type (415) or too large (413).

    :raises Unauthorized: a stranger. :raises TooManyRequests: too many that take long.
    """
    request: Request = scope["extensions"]["llamaman.request"]
    method, path, headers = scope["method"], scope["path"], scope["headers"]
    if caller.identity.kind == "none" and not hop.is_open(method, path):
        if login_page is not None:
            await _redirect(send, login_page)
            return
        raise Unauthorized("API key required")
    limit = FORM_BODY if is_form_page(path) else MANAGEMENT_BODY
    problem = _body_problem(method, path, headers, request, limit)
    if problem is not None:
        await reply(send, problem[0], {"error": problem[1]})
        return
    lane = hop.lanes.of(method, path)
    if lane:
        lane.check()
    body = await request.read_body(limit) if not request.body_complete or request.received else b""
    crossing = [header for header in headers if header[0] in CROSSING]
    crossing.append((_SEALED, seal(caller, hop.secret)))
    target = quote(path, safe="/:@!$&'()*+,;=~").encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    if not await _wait_ready(hop):
        await reply(send, 503, {"error": "the management API is starting"}, [(b"retry-after", b"2")])
        return
    async with lane.turn() if lane else nullcontext():
        if request.is_gone:
            raise ClientGone("the client left before its turn")
        try:
            answer = await hop.upstream.request(
                method, target, crossing, body, silence_s=SILENCE_S, host=b"llamaman"
            )
        except UpstreamError as error:
            await _broken(send, error)
            return
    await _pass_back(send, answer)


async def _pass_back(send: Send, answer: Response) -> None:
    started = False
    try:
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [header for header in answer.headers if header[0].lower() not in _DROPPED],
            }
        )
        while block := await answer.read_block():
            started = True
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except UpstreamError as error:
        if started:
            raise
        await _broken(send, error)
    finally:
        answer.close()


async def _redirect(send: Send, location: str) -> None:
    headers = [
        (b"location", location.encode("ascii")),
        (b"cache-control", b"no-store"),
        (b"content-type", b"text/plain"),
    ]
    await send({"type": "http.response.start", "status": 302, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def reply(send: Send, status: int, body: dict[str, Any], headers: Sequence[Header] = ()) -> None:
    """A short JSON answer of the loop's own."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *headers],
        }
    )
    await send({"type": "http.response.body", "body": json.dumps(body).encode(), "more_body": False})


def _body_problem(
    method: str, path: str, headers: Sequence[Header], request: Request, limit: int
) -> tuple[int, str] | None:
    head = request.head
    if not head.chunked and not head.content_length:
        return None
    if head.content_length is not None and head.content_length > limit:
        return 413, f"the request body is larger than {limit} bytes"
    kind = head.named.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if is_form_page(path):
        if kind != FORM:
            return 415, f"send the form as 'Content-Type: {FORM.decode()}' in UTF-8"
    elif method not in READING and kind != b"application/json":
        return 415, "send the body as 'Content-Type: application/json' in UTF-8"
    if any(name == b"content-encoding" and value.strip().lower() != b"identity" for name, value in headers):
        return 415, "a request body must not be compressed (Content-Encoding)"
    return None


async def _wait_ready(hop: Hop) -> bool:
    if hop.is_ready():
        return True
    deadline = asyncio.get_running_loop().time() + READY_S
    while not hop.is_ready():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def _broken(send: Send, error: UpstreamError) -> None:
    if error.kind == "silent":
        await reply(send, 504, {"error": f"the management API gave no answer within {SILENCE_S:g} seconds"})
        return
    sentence = "the management API is not reachable now; it is being restarted"
    await reply(send, 503, {"error": sentence}, [(b"retry-after", b"2")])
