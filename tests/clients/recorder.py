"""A relay that hands every byte on and keeps what the client sent, request by request.

For recording what a real program asks. Requests are told apart by ``Content-Length``, as that is what the
recorded program sends.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass
class Recorder:
    """Listens on a port of its own and talks to ``target``, a port of 127.0.0.1."""

    target: int
    _taken: list[bytearray] = field(default_factory=list)
    _sockets: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def requests(self) -> list[bytes]:
        """Every complete request so far; those of one connection in their order."""
        return [request for taken in self._taken for request in split_requests(bytes(taken))]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [client, server]
                taken = bytearray()
                self._taken.append(taken)
                threading.Thread(target=_pass_on, args=(client, server, taken), daemon=True).start()
                threading.Thread(target=_pass_on, args=(server, client, None), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, taken: bytearray | None) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            if taken is not None:
                taken += block
            sink.sendall(block)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def split_requests(sent: bytes) -> list[bytes]:
    """The complete requests in what was sent over one connection."""
    found = []
    while b"\r\n\r\n" in sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            break
        found.append(head + b"\r\n\r\n" + rest[:length])
        sent = rest[length:]
    return found
