"""A small HTTP server on a unix socket that answers as a daemon of one's choice: one that cannot be had here."""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

#: What Docker 20.10 on a Debian machine says, as far as anybody here reads it.
VERSION: Mapping[str, Any] = {
    "Version": "20.10.24",
    "ApiVersion": "1.41",
    "MinAPIVersion": "1.12",
    "Components": [{"Name": "Engine"}, {"Name": "docker-init", "Version": "0.19.0"}],
}
INFO: Mapping[str, Any] = {
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
    "Architecture": "x86_64",
    "CgroupVersion": "2",
    "MemoryLimit": True,
    "SwapLimit": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
    "InitBinary": "docker-init",
    "InitCommit": {"ID": "de40ad0"},
    "LiveRestoreEnabled": True,
    "SecurityOptions": ["name=seccomp,profile=default"],
    "Runtimes": {"runc": {}},
    "Swarm": {"LocalNodeState": "inactive"},
}


@dataclass
class FakeDaemon:
    """Answers by path, without the version in front; what is not listed is not found.

    :ivar answers: path -> JSON, or an HTTP status with which the call is refused.
    :ivar held: set it to let answers go that are held back.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    held: threading.Event | None = None


@contextmanager
def fake_daemon(socket: Path, daemon: FakeDaemon) -> Iterator[None]:
    """Serve on a socket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if daemon.held is not None:
                daemon.held.wait(60)
            path = re.sub(r"^/v[0-9.]+", "", self.path.partition("?")[0])
            found = daemon.answers.get(path, 404)
            status = found if isinstance(found, int) else 200
            body = json.dumps({"message": "not for you"} if isinstance(found, int) else found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the test's output."""

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

    with Server(str(socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            if daemon.held is not None:
                daemon.held.set()
            server.shutdown()
            thread.join(10)


def healthy(**more: Any) -> FakeDaemon:
    """One with an internal network, the image and no containers."""
    image = {
        "Id": "sha256:" + "a" * 64,
        "Architecture": "amd64",
        "Config": {"Entrypoint": ["/app/llama-server"]},
    }
    return FakeDaemon(
        {
            "/version": VERSION,
            "/info": INFO,
            "/networks": [{"Name": "llamaman-net", "Id": "n" * 64, "Internal": True, "Labels": {}}],
            "/images/ghcr.io/ggml-org/llama.cpp:server/json": image,
            "/containers/json": [],
            **more,
        }
    )
