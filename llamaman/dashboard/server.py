"""waitress on a private unix socket, in a supervised thread. Read by the kernel.

Flask and waitress are imported in that thread, so that the front door answers before they are there. A server
that ends by itself is started again with a growing pause; the front door says 503 meanwhile.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaman.gateway.caller import new_secret
from llamaman.limits import DRAINS_AT_ONCE, HASHES_AT_ONCE

if TYPE_CHECKING:
    from flask import Flask

log = logging.getLogger(__name__)

#: More than the lanes of passwords and of stops let in together, so that quick answers find one.
THREADS = HASHES_AT_ONCE + DRAINS_AT_ONCE + 2
_FIRST_PAUSE_S = 0.2
_LOOK_EVERY_S = 0.05
_LONGEST_PAUSE_S = 10.0
_TASKS_END_S = 3.0


class DashboardServer:
    """Runs the app that ``make_app(secret)`` returns; the app is made once, the server as often as needed.

    :param runtime_dir: where the private folder of the socket is made; the temporary folder when None.
    """

    def __init__(self, make_app: Callable[[bytes], Flask], runtime_dir: Path | None = None) -> None:
        self.secret = new_secret()
        self._make_app = make_app
        self._folder = Path(tempfile.mkdtemp(prefix="hop-", dir=runtime_dir))  # mkdtemp makes it 0700
        self.socket_path = self._folder / "flask.sock"
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._server: Any = None
        self._changing = threading.Lock()
        self._public: tuple[tuple[str, re.Pattern[str]], ...] = ()
        self.app: Flask | None = None
        self.failure: str | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the socket is served now."""
        return self._ready.is_set()

    def is_public(self, method: str, path: str) -> bool:
        """Whether the app serves this to strangers; nothing before it is assembled."""
        asked = "GET" if method == "HEAD" else method
        return any(asked == known and pattern.fullmatch(path) for known, pattern in self._public)

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread = threading.Thread(target=self._supervise, name="dashboard", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Block until the socket is served; False when it is not in time, or :meth:`stop` was called.

        Whoever waits here while the program ends would hold it up: a pool's threads are waited for.
        """
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(_LOOK_EVERY_S):
            if self._stopping.is_set() or time.monotonic() > deadline:
                return False
        return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close the socket and end the threads; running requests get ``timeout_s`` seconds."""
        self._stopping.set()
        with self._changing:
            self._close_soon()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("the management API did not end within %g seconds", timeout_s)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _supervise(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                if self.app is None:
                    self.app = self._assemble()
                self._serve(self.app)
                pause = _FIRST_PAUSE_S
            except Exception as error:  # the supervisor outlives whatever the server dies of
                self.failure = f"{type(error).__name__}: {error}"
                log.exception("the management API ended; it is started again in %g s", pause)
            finally:
                self._ready.clear()
            if self._stopping.wait(pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _assemble(self) -> Flask:
        app = self._make_app(self.secret)
        from llamaman.dashboard.app import app_routes

        rows = app_routes(app)
        self._public = tuple(
            (row["method"], _pattern(row["path"])) for row in rows if row["level"] == "public"
        )
        return app

    def _serve(self, app: Flask) -> None:
        import waitress

        server = waitress.create_server(
            app,
            unix_socket=str(self.socket_path),
            unix_socket_perms="600",
            threads=THREADS,
            asyncore_use_poll=True,
            ident=None,
            expose_tracebacks=False,
            clear_untrusted_proxy_headers=True,
            max_request_body_size=2 << 20,
            connection_limit=256,
            channel_timeout=120,
        )
        with self._changing:
            self._server = server
            if self._stopping.is_set():
                self._close_soon()
        self.failure = None
        self._ready.set()
        try:
            server.run()
        finally:
            self._ready.clear()
            with self._changing:
                self._server = None
            _close_doors(server)
            server.task_dispatcher.shutdown(cancel_pending=True, timeout=_TASKS_END_S)
            if not server.task_dispatcher.threads:
                server.trigger.close()

    def _close_soon(self) -> None:
        server = self._server
        if server is not None:
            # Closed in the server's own thread: waitress keeps its sockets without a lock.
            server.trigger.pull_trigger(lambda: _close_doors(server))


def _pattern(path: str) -> re.Pattern[str]:
    """A path of the route table, in which ``{name}`` stands for one segment."""
    return re.compile("[^/]+".join(re.escape(part) for part in re.split(r"\{[a-z_]+\}", path)))


def _close_doors(server: Any) -> None:
    """Close listener and connections, after which waitress's loop has nothing left and returns.

    A connection is closed under its lock, so that no task is writing to it. The trigger stays open: a task that ends
    later still writes to it, and its number may be another file's by then.
    """
    from waitress import wasyncore

    for dispatcher in list(server._map.values()):
        if dispatcher is server:
            wasyncore.dispatcher.close(server)  # its own close() would take the trigger along
        elif dispatcher is not server.trigger:
            dispatcher.handle_close()
    server._map.clear()
