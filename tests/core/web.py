"""Small web servers for tests of fetching: what each path answers is the test's, and every request is kept."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Page:
    """An answer. ``length``: what is declared instead of the body's; ``pause_s``: before each of its bytes."""

    body: bytes = b""
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    length: int | None = None
    chunked: bool = False
    pause_s: float = 0.0


def redirect(to: str, status: int = 302) -> Page:
    return Page(b"", status, (("Location", to),))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]


@dataclass(slots=True)
class Web:
    """A server. ``connections`` counts what was accepted, be it HTTP or not."""

    port: int
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


def certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate that signs itself, for these names, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    said = ",".join(f"DNS:{name}" for name in names)
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    )
    files = ["-addext", f"subjectAltName={said}", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return cert, key


@contextmanager
def serve(address: str, tls: tuple[Path, Path] | None = None, port: int = 0) -> Iterator[Web]:
    """A web server on one address."""
    kept = Web(0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kept.asked.append(Asked(self.path, {name.lower(): value for name, value in self.headers.items()}))
            page = kept.pages.get(self.path, Page(b"no such page", 404))
            self.send_response(page.status)
            for name, value in page.headers:
                self.send_header(name, value)
            if page.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header(
                    "Content-Length", str(len(page.body) if page.length is None else page.length)
                )
            self.end_headers()
            try:
                for piece in [page.body] if not page.pause_s else [bytes([byte]) for byte in page.body]:
                    time.sleep(page.pause_s)
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if page.chunked else piece)
                if page.chunked:
                    self.wfile.write(b"0\r\n\r\n")
            except OSError:
                pass  # whoever asked has left
            self.close_connection = True

        do_CONNECT = do_GET  # noqa: N815 - the name is the base class's

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def get_request(self) -> tuple[socket.socket, object]:
            sock, peer = super().get_request()
            kept.connections += 1
            return sock, peer

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server = Server((address, port), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    kept.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="web", daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
