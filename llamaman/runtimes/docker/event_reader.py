"""Reading a stream of events in a thread of its own, so that who follows it can wait for other things too.

For events.py alone.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Stream

log = logging.getLogger(__name__)

OPEN: Final = object()
"""Put when the stream is open: from then on nothing is missed."""

Heard = queue.SimpleQueue[tuple["EventReader | None", Any]]


class EventReader(threading.Thread):
    """Reads one stream of events."""

    def __init__(
        self, daemon: Daemon, labels: Sequence[str], network: str, since: float, heard: Heard
    ) -> None:
        super().__init__(name="docker-events-reader", daemon=True)
        self._open_stream = partial(daemon.events, since, labels, network=network)
        self._heard = heard
        self._lock = threading.Lock()
        self._stream: Stream[dict[str, Any]] | None = None
        self._closed = False

    def run(self) -> None:
        """Put (self, OPEN), then each event, and at the end None or the DaemonGone that ended it."""
        try:
            stream = self._open_stream()
            with self._lock:
                self._stream = stream
                if self._closed:
                    stream.close()
            self._heard.put((self, OPEN))
            for event in stream:
                self._heard.put((self, event))
            self._heard.put((self, None))
        except DaemonGone as gone:
            self._heard.put((self, gone))
        except DaemonError as error:
            self._heard.put((self, DaemonGone(error.text)))
        except Exception as error:
            log.exception("reading the events of Docker failed")
            self._heard.put((self, DaemonGone(type(error).__name__)))

    def close(self) -> None:
        """End it; what it still puts is of no interest."""
        with self._lock:
            self._closed = True
            if self._stream is not None:
                self._stream.close()
