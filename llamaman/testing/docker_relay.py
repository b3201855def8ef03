"""A recording relay in front of a Docker socket: which calls are made, and when.

For tests of what LlamaMan asks of a Docker daemon (the list that a socket proxy must allow) and for benchmarks
that need the moment of a call. Bytes pass unchanged in both directions, so a daemon behind it is a real one.
"""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|DELETE) (?:/v[0-9.]+)?(/[^ ?]*)(?:\?[^ ]*)? HTTP/1\.1\r\n")
_ID = re.compile(
    r"(?<=/containers/)(?!create|json)[^/]+|(?<=/networks/)(?!create)[^/]+|(?<=/images/)(?!create|json).+?(?=/json$|$)"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``path`` has no version and no query; ``at`` is ``time.perf_counter()``."""

    method: str
    path: str
    at: float

    @property
    def shape(self) -> str:
        """The call without its object: ``POST /containers/{}/start``."""
        return f"{self.method} {_ID.sub('{}', self.path)}"


class DockerRelay:
    """``with DockerRelay(docker_host) as relay``: give ``relay.host`` to whoever is to be watched."""

    def __init__(self, docker_host: str) -> None:
        self._upstream = docker_host.removeprefix("unix://")
        self._folder = Path(tempfile.mkdtemp(prefix="llamaman-relay-"))
        self._path = self._folder / "docker.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.calls: list[Call] = []

    @property
    def host(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self._path}"

    def __enter__(self) -> DockerRelay:
        self._listener.bind(str(self._path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, name="docker-relay", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._path.unlink(missing_ok=True)
        self._folder.rmdir()

    def cut(self) -> None:
        """Break every connection that is open now."""
        with self._lock:
            broken, self._open = self._open, set()
        for each in broken:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def shapes(self) -> set[str]:
        """Every kind of call that was made."""
        return {call.shape for call in self.calls}

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            daemon = socket.socket(socket.AF_UNIX)
            try:
                daemon.connect(self._upstream)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, daemon}
            for source, target, record in ((client, daemon, True), (daemon, client, False)):
                threading.Thread(target=self._pump, args=(source, target, record), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, record: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if record and (found := _REQUEST.match(data)):
                    self.calls.append(Call(found[1].decode(), found[2].decode(), time.perf_counter()))
                target.sendall(data)
        # Each side is shut when its source has ended; the second one to end closes both for good.
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        with self._lock:
            self._open.discard(source)
            last = target not in self._open
        if last:
            source.close()
            target.close()
