"""A stand-in for llama-server that costs next to nothing, so that a benchmark measures what stands before it.

Run as ``python -m benchmarks.standin <llama-server's flags>`` or through the script of
:func:`write_wrapper`, which fits LLAMA_SERVER_BIN. Guarantees llama-server's routes, shapes and framing for
/health, /props, /slots, /metrics, /v1/models, /v1/chat/completions and /v1/completions, Bearer keys from
LLAMA_API_KEY, and that a client that closes or half-closes its connection ends its request at once. It
never queues: slots are shown, not enforced.

A request's body chooses the behaviour: ``max_tokens`` (default 8) is the number of tokens, and a
``standin`` object (or, behind a translation that lets no such field through, the text of the last message after
:data:`WISH`) may hold ``pace_ms`` (time between tokens, default 0 = as fast as the socket takes them)
and ``burst`` (tokens handed to one ``send`` at full speed, default 4; each is its own HTTP chunk and event
whatever the burst).

One thread on bare epoll: it starts in less than half the time that importing an event loop takes, and one
``send`` here is one segment there, which a buffering transport would hide.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import select
import shlex
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import standin_flags, standin_shapes
from benchmarks.standin_shapes import Answers, StreamParts

DEFAULT_TOKENS = 8
#: What the last message begins with when it says how to answer; JSON follows.
WISH = "standin: "
DEFAULT_BURST = 4
_READ = select.EPOLLIN | select.EPOLLRDHUP
_PUBLIC = (b"/health", b"/v1/health")
_HEALTH = standin_shapes.reply(200, b'{"status":"ok"}')


def write_wrapper(path: Path) -> Path:
    """Write an executable script that runs the stand-in with this interpreter; for LLAMA_SERVER_BIN.

    The interpreter runs isolated and without site-packages: the stand-in is standard library only, and
    starting it is part of what the benchmark times.
    """
    root = Path(__file__).resolve().parent.parent
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from benchmarks import standin; standin.main()"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S -c {shlex.quote(code)} "$@"\n')
    path.chmod(0o755)
    return path


class Connection:
    """One client: bytes not yet parsed, bytes not yet sent and the answer that is under way."""

    __slots__ = ("burst", "busy", "deadline", "inbuf", "left", "out", "pace", "parts", "sock", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbuf = b""
        self.out = b""
        self.writable = True
        self.busy = False
        self.parts: StreamParts | None = None
        self.left = 0
        self.burst = DEFAULT_BURST
        self.pace = 0.0
        self.deadline = 0.0


class Server:
    """The loop. Counters are what /standin/stats shows: requests begun, now active,
    left by their client, and connections whose reader is behind."""

    def __init__(self, options: standin_flags.Options, keys: frozenset[bytes]) -> None:
        self._options = options
        self._keys = keys
        self._answers = Answers(options.model_id, options.ctx_size)
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._eager: dict[int, Connection] = {}
        self._timers: list[tuple[float, int, Connection, bytes]] = []
        self._serial = 0
        self.requests = self.active = self.cancelled = 0

    def run(self, listener: socket.socket) -> None:
        """Serve for ever; ended by a signal."""
        listener.setblocking(False)
        door = listener.fileno()
        self._poll.register(door, select.EPOLLIN)
        while True:
            for fd, mask in self._poll.poll(self._patience()):
                if fd == door:
                    self._accept(listener)
                    continue
                connection = self._connections.get(fd)
                if connection is None:
                    continue
                if mask & select.EPOLLOUT:
                    self._flush(connection)
                if mask & ~select.EPOLLOUT:
                    self._receive(connection)
            if self._timers:
                self._run_timers(time.monotonic())
            for connection in tuple(self._eager.values()):
                self._pump(connection)

    def _patience(self) -> float:
        if self._eager:
            return 0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[sock.fileno()] = Connection(sock)
                self._poll.register(sock.fileno(), _READ)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.inbuf = connection.inbuf + data if connection.inbuf else data
        if not connection.busy:
            self._next_request(connection)

    def _next_request(self, connection: Connection) -> None:
        """Take one whole request off the buffer, if it holds one, and answer it."""
        data = connection.inbuf
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        lowered = data[: end + 2].lower()
        at = lowered.find(b"\r\ncontent-length:")
        length = int(lowered[at + 17 : lowered.index(b"\r", at + 17)]) if at >= 0 else 0
        if len(data) < end + 4 + length:
            return
        connection.inbuf = data[end + 4 + length :]
        method, target, _ = data[: data.index(b"\r")].split(b" ")
        path = target.partition(b"?")[0]
        if self._keys and path not in _PUBLIC and _bearer(data, lowered) not in self._keys:
            self._send(connection, standin_shapes.error(401, "Invalid API Key"))
        elif b"\r\ntransfer-encoding:" in lowered:
            self._send(connection, standin_shapes.error(411, "the stand-in reads bodies with a length only"))
        elif method == b"POST":
            self._post(connection, path, data[end + 4 : end + 4 + length])
        else:
            self._send(connection, self._get(path))
        if connection.inbuf and not connection.busy:
            self._next_request(connection)

    def _get(self, path: bytes) -> bytes:
        options = self._options
        if path in _PUBLIC:
            return _HEALTH
        if path == b"/props":
            return self._answers.props(options.model, options.parallel)
        if path == b"/slots":
            return self._answers.slots(options.parallel, self.active)
        if path in (b"/v1/models", b"/models"):
            return self._answers.models()
        if path == b"/metrics":
            text = f"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing {self.active}\n"
            return standin_shapes.reply(200, text.encode(), "text/plain; version=0.0.4")
        if path == b"/standin/stats":
            stalled = sum(not connection.writable for connection in self._connections.values())
            stats = {"requests": self.requests, "active": self.active, "cancelled": self.cancelled}
            stats["stalled"] = stalled
            return standin_shapes.reply(200, standin_shapes.encode(stats))
        return standin_shapes.error(404, "File Not Found")

    def _post(self, connection: Connection, path: bytes, body: bytes) -> None:
        chat = path in (b"/v1/chat/completions", b"/chat/completions")
        if not chat and path != b"/v1/completions":
            self._send(connection, standin_shapes.error(404, "File Not Found"))
            return
        try:
            request = json.loads(body)
            tokens = _tokens(request)
            wish = request.get("standin") or _told(request)
            pace, burst = float(wish.get("pace_ms", 0)) / 1000, max(1, int(wish.get("burst", DEFAULT_BURST)))
        except (ValueError, TypeError, AttributeError) as problem:
            self._send(
                connection, standin_shapes.error(400, f"the body is not what the stand-in reads: {problem}")
            )
            return
        self.requests += 1
        if not request.get("stream"):
            whole = self._answers.whole(chat, tokens)
            if pace:
                self._begin(connection)
                self._at(time.monotonic() + pace * tokens, connection, whole)
            else:
                self._send(connection, whole)
            return
        usage = bool((request.get("stream_options") or {}).get("include_usage"))
        parts = self._answers.stream(chat, tokens, usage)
        self._begin(connection)
        connection.parts, connection.left, connection.burst, connection.pace = parts, tokens - 1, burst, pace
        if pace:
            connection.deadline = time.monotonic()
            self._send(connection, parts.first)
            self._pace(connection)
        else:
            self._eager[connection.sock.fileno()] = connection
            self._send(connection, parts.first)

    def _begin(self, connection: Connection) -> None:
        connection.busy = True
        self.active += 1

    def _finish(self, connection: Connection, data: bytes) -> None:
        """Send the last bytes of an answer that took time."""
        connection.busy = False
        connection.parts = None
        self.active -= 1
        self._eager.pop(connection.sock.fileno(), None)
        self._send(connection, data)
        if connection.inbuf and not connection.busy:
            self._next_request(connection)

    def _pump(self, connection: Connection) -> None:
        """One burst of a full-speed stream."""
        parts = connection.parts
        if parts is None or not connection.writable:
            return
        if not connection.left:
            self._finish(connection, parts.last)
            return
        count = min(connection.burst, connection.left)
        connection.left -= count
        self._send(connection, parts.token * count)

    def _at(self, when: float, connection: Connection, data: bytes) -> None:
        """Wake this connection's answer at ``when``; ``data`` ends it, empty data is a stream's next
        token."""
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, connection, data))

    def _pace(self, connection: Connection) -> None:
        connection.deadline += connection.pace
        self._at(connection.deadline, connection, b"")

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, _, connection, data = heapq.heappop(self._timers)
            if not connection.busy:
                continue  # its client left
            parts = connection.parts
            if parts is None:
                self._finish(connection, data)
            elif connection.left:
                connection.left -= 1
                self._send(connection, parts.token)
                self._pace(connection)
            else:
                self._finish(connection, parts.last)

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.out:
            connection.out += data
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if sent < len(data):
            connection.out = data[sent:]
            connection.writable = False
            fd = connection.sock.fileno()
            self._eager.pop(fd, None)
            self._poll.modify(fd, _READ | select.EPOLLOUT)

    def _flush(self, connection: Connection) -> None:
        data, connection.out = connection.out, b""
        connection.writable = True
        fd = connection.sock.fileno()
        self._poll.modify(fd, _READ)
        if connection.parts is not None and not connection.pace:
            self._eager[fd] = connection
        self._send(connection, data)

    def _close(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        if fd < 0:
            return
        if connection.busy:
            connection.busy = False
            connection.parts = None
            self.active -= 1
            self.cancelled += 1
        self._connections.pop(fd, None)
        self._eager.pop(fd, None)
        connection.sock.close()


def _tokens(request: dict[str, object]) -> int:
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        value = request.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_TOKENS


def _told(request: dict[str, Any]) -> dict[str, Any]:
    """What the last message asks of the stand-in; nothing where it is a message like any other."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return {}
    content = messages[-1].get("content")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        content = content[0].get("text")
    if not isinstance(content, str) or not content.startswith(WISH):
        return {}
    told: dict[str, Any] = json.loads(content.removeprefix(WISH))
    return told


def _bearer(data: bytes, lowered: bytes) -> bytes:
    at = lowered.find(b"\r\nauthorization:")
    if at < 0:
        return b""
    value = data[at + 16 : lowered.index(b"\r", at + 16)].strip()
    return value[7:].strip() if value[:7].lower() == b"bearer " else value


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: TCP, or a unix socket when ``host`` ends in ``.sock``, as llama-server reads it."""
    if host.endswith(".sock"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(host)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    sock.listen(4096)
    return sock


def main() -> None:
    """Serve until SIGTERM or SIGINT, then exit 0 as llama-server does."""
    options = standin_flags.parse(sys.argv[1:])
    if options.answer == "version":
        sys.stdout.write(standin_flags.VERSION_TEXT)
        return
    if options.answer:
        sys.stdout.write(standin_flags.help_text())
        return
    keys = os.environ.get("LLAMA_API_KEY", "").split(",")
    if options.api_key_file:
        keys += Path(options.api_key_file).read_text().split()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    with listen(options.host, options.port) as listener:
        sys.stderr.write(
            f"llama_server: model loaded\nllama_server: listening on {options.host}:{options.port}\n"
        )
        sys.stderr.flush()
        Server(options, frozenset(key.encode() for key in keys if key)).run(listener)


if __name__ == "__main__":
    main()
