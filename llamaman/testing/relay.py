"""A relay for tests: passes bytes on unchanged, and can slow them, write down who asks for what, and cut connections.

Guarantees that what is behind it is the real thing, that a connection's end is passed on, and that after
:meth:`Relay.cut` no connection through it is left.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_REQUEST = re.compile(rb"^(GET|HEAD|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.[01]\r\n", re.MULTILINE)
_CHUNK = 16 << 10


@dataclass
class Relay:
    """Passes bytes on from where it listens to ``upstream``; both TCP addresses or paths of unix sockets.

    Without an ``upstream`` it takes every connection and never answers.

    :ivar rate: bytes per second towards the client, None for as fast as it goes.
    :ivar requests: method and path of what came, such as ``("GET", "/v2/")``.
    :ivar on_request: called with both before a request is passed on.
    """

    upstream: tuple[str, int] | str | None
    path: Path | None = None
    rate: float | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    on_request: Callable[[str, str], None] = lambda method, path: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._port = 0
        self.open()

    @property
    def address(self) -> str:
        """``host:port``, or a URL for DOCKER_HOST."""
        return f"unix://{self.path}" if self.path else f"127.0.0.1:{self._port}"

    def open(self) -> None:
        """Listen (again, after a cut)."""
        if self.path:
            self.path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self.path))
        else:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._port = self._listener.getsockname()[1]
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), name="relay", daemon=True).start()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        with contextlib.suppress(OSError):  # ends the accept; not connected, as Linux says
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def count(self, method: str, pattern: str) -> int:
        """How many requests of this kind came."""
        return sum(1 for said, path in list(self.requests) if said == method and re.search(pattern, path))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self.upstream is None:
                self._keep(listener, client)
                continue
            try:
                other = _connect(self.upstream)
            except OSError:
                client.close()
                continue
            if not self._keep(listener, client, other):
                return
            for source, target, is_answer in ((client, other, False), (other, client, True)):
                threading.Thread(target=self._pass, args=(source, target, is_answer), daemon=True).start()

    def _keep(self, listener: socket.socket, *connections: socket.socket) -> bool:
        """Take note of connections, to be cut; False: that has happened while they were made."""
        with self._lock:
            if listener.fileno() >= 0:
                self._open.update(connections)
                return True
        for connection in connections:
            connection.close()
        return False

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if not is_answer:
                    self._note(data)
                elif self.rate:
                    time.sleep(len(data) / self.rate)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(
                source
            )  # its descriptor is free as soon as the other direction has ended as well

    def _note(self, data: bytes) -> None:
        for method, path in _REQUEST.findall(data):
            self.requests.append((method.decode(), path.decode()))
            self.on_request(method.decode(), path.decode())


def _connect(upstream: tuple[str, int] | str) -> socket.socket:
    if not isinstance(upstream, str):
        return socket.create_connection(upstream)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(upstream)
    except OSError:
        connection.close()
        raise
    return connection
