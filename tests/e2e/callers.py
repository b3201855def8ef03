"""The callers of the access matrix: who they are on the wire, and a kept connection for their calls.

For ``test_access_matrix``. Guarantees that a caller sends nothing but its own credential, and that a session's calls
look as our own pages make them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamaman.testing.manager import Manager
from llamaman.testing.visitor import Visitor

PASSWORD = "correct horse battery"
USERS = {"viewer": "viewer", "manager": "manager", "admin": "admin"}

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and type of an answer; the rest does not matter here."""

    status: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Caller:
    """One identity.

    :ivar headers: what it sends with a GET, by method where that makes a difference.
    :ivar is_session: it counts on the management port only.
    """

    name: str
    headers: Callable[[str, int], Headers]
    is_session: bool = False
    socket: Path | None = None


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


@dataclass(slots=True)
class Lines:
    """Kept connections, one for each caller and port; an answer that does not end is cut off after its head."""

    open: dict[tuple[str, int], http.client.HTTPConnection] = field(default_factory=dict)

    def call(self, caller: Caller, port: int, method: str, path: str, body: object = None) -> Reply:
        """One call."""
        headers = dict(caller.headers(method, port))
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        for attempt in (1, 2):
            line = self.open.get((caller.name, port)) or self._connect(caller, port)
            try:
                line.request(method, path, data, headers)
                answer = line.getresponse()
                break
            except (http.client.RemoteDisconnected, ConnectionError):
                self._drop(caller, port)  # closed after the answer before, which is the server's right
                if attempt == 2:
                    raise
        kind = answer.headers.get("Content-Type", "")
        if kind.startswith("text/event-stream"):
            self._drop(caller, port)
            return Reply(answer.status, kind, "")
        text = answer.read().decode(errors="replace")
        if answer.will_close:
            self._drop(caller, port)
        return Reply(answer.status, kind, text)

    def _connect(self, caller: Caller, port: int) -> http.client.HTTPConnection:
        line = (
            _Unix(caller.socket)
            if caller.socket
            else http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        )
        line.connect()
        if not caller.socket:
            line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.open[caller.name, port] = line
        return line

    def _drop(self, caller: Caller, port: int) -> None:
        line = self.open.pop((caller.name, port), None)
        if line is not None:
            with contextlib.suppress(OSError):
                line.close()

    def close(self) -> None:
        """Close every connection."""
        for line in self.open.values():
            line.close()
        self.open.clear()


def stranger() -> Caller:
    """Nobody."""
    return Caller("stranger", lambda method, port: {})


def with_key(name: str, secret: str) -> Caller:
    """A caller with an API key."""
    return Caller(name, lambda method, port: {"Authorization": f"Bearer {secret}"})


def local(manager: Manager) -> Caller:
    """The local admin socket."""
    return Caller("local", lambda method, port: {}, socket=manager.admin_socket)


def logged_in(manager: Manager, role: str) -> Visitor:
    """A browser in which the user of a role has logged in."""
    visitor = Visitor(manager.port)
    answer = visitor.log_in(USERS[role], PASSWORD)
    assert answer.status in (302, 303), f"{answer.status}: {answer.text[:300]}"
    return visitor


def with_session(name: str, visitor: Visitor, *, csrf: bool = True) -> Caller:
    """A logged-in browser on any port; ``csrf`` False: a page that does not know the token."""
    token = visitor.call("GET", "/api/me").json()["csrf_token"]
    cookie = "; ".join(f"{each}={value}" for each, value in visitor.cookies.items())

    def headers(method: str, port: int) -> Headers:
        lines = {"Cookie": cookie}
        if method not in ("GET", "HEAD"):
            lines["Origin"] = f"http://127.0.0.1:{port}"
            if csrf:
                lines["X-CSRF-Token"] = token
        return lines

    return Caller(name, headers, is_session=True)
