"""HTTP as tests need it: one request per connection, with the socket in hand.

For tests and benchmarks that ask a manager or an engine something. Guarantees that nothing is retried or
followed, that an answer that breaks off raises instead of looking complete, and that a caller can leave at
any byte.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A TCP port of 127.0.0.1, an address and a port, or the path of a unix socket.
Where = int | tuple[str, int] | Path


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body parsed.

        :raises ValueError: it is not JSON.
        """
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error answer, in our flat shape or in OpenAI's; "" when there is none."""
        found = self.json().get("error", "")
        return str(found["message"] if isinstance(found, dict) else found)


class Request:
    """A request that has been sent and whose answer has not been read yet.

    Use it as a context manager, or end it with :meth:`disconnect`.
    """

    def __init__(
        self,
        where: Where,
        method: str,
        path: str,
        *,
        key: str = "",
        body: object = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 180,
    ) -> None:
        self.sock = _connect(where, seconds)
        lines = {"Host": "localhost", "Connection": "close", **(headers or {})}
        if key:
            lines["Authorization"] = f"Bearer {key}"
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            lines.setdefault("Content-Type", "application/json")
        if data or method in ("POST", "PUT", "PATCH"):
            lines["Content-Length"] = str(len(data))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        self._method = method
        self._answer: http.client.HTTPResponse | None = None

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    @property
    def begun(self) -> http.client.HTTPResponse:
        """The answer from its head on; waits for the head.

        :raises OSError, http.client.HTTPException: no head came.
        """
        if self._answer is None:
            answer = http.client.HTTPResponse(self.sock, method=self._method)
            answer.begin()
            self._answer = answer
        return self._answer

    def answer(self) -> Answer:
        """The whole answer; ends the request.

        :raises OSError, http.client.HTTPException: it broke off.
        """
        begun = self.begun
        body = begun.read()
        self.disconnect()
        return Answer(begun.status, {name.lower(): value for name, value in begun.getheaders()}, body)

    def has_begun(self) -> bool:
        """Whether something was generated for it, which is left unread; comments of a stream do not count.

        For one whose answer has not been touched otherwise.
        """
        if not select.select([self.sock], [], [], 0)[0]:  # recv itself would wait, a flag or not
            return False
        return b"data: {" in self.sock.recv(1 << 16, socket.MSG_PEEK)

    def events(self) -> Iterator[str]:
        """The ``data:`` texts of a server-sent event stream until it ends.

        :raises http.client.HTTPException: it ended without HTTP's own end.
        """
        rest = b""
        while block := self.begun.read1():
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    yield line[6:].strip().decode()

    def disconnect(self) -> None:
        """Leave, whatever is still to come."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        if self._answer is not None:
            self._answer.close()
        self.sock.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)


def call(where: Where, method: str, path: str, **options: Any) -> Answer:
    """One request and its answer; options as for :class:`Request`.

    :raises OSError, http.client.HTTPException: no complete answer came.
    """
    return Request(where, method, path, **options).answer()


def is_overloaded(answer: Answer) -> bool:
    """Whether nothing has been done, because the process that hashes passwords, which has the lowest priority, got
    no processor in time."""
    return answer.status == 503 and "this machine is overloaded" in answer.text


def refuses(port: int) -> bool:
    """Whether nobody listens on a port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.settimeout(5)
        return sock.connect_ex(("127.0.0.1", port)) != 0


def lan_address() -> str | None:
    """An address of this machine that is not loopback, None where it has none. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address = str(sock.getsockname()[0])
    return None if address.startswith("127.") else address


def _connect(where: Where, seconds: float) -> socket.socket:
    if isinstance(where, Path):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(seconds)
        sock.connect(str(where))
    else:
        address = where if isinstance(where, tuple) else ("127.0.0.1", where)
        sock = socket.create_connection(address, timeout=seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
