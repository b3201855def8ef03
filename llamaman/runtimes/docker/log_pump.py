"""Bringing the output of containers into their log files: a thread for each container that runs.

For the Docker runtime. Guarantees: output is taken from the daemon at once, also while it cannot be written; the
newest lines are there from memory in any case; after the daemon was away, and in the next manager, the file goes on
where it was, nothing lost and nothing twice, as far as the daemon still has it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from llamaman.runtimes import logfiles
from llamaman.runtimes.causes import START_MARK
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Piece, Stream
from llamaman.runtimes.docker.ends import has_ended
from llamaman.runtimes.docker.line_ring import LINES, LineRing
from llamaman.runtimes.docker.log_file import LogFile
from llamaman.runtimes.docker.log_place import place_in_log
from llamaman.runtimes.docker.stream import newest

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_REMEMBERED: Final = 32  # ended containers whose last lines are kept

log = logging.getLogger(__name__)


class LogPumps:
    """The pumps of all containers. Any thread may call any method."""

    def __init__(self, daemon: Daemon, *, rotate_at: int = logfiles.ROTATE_AT_BYTES) -> None:
        """:param rotate_at: bytes at which a log file is rotated."""
        self._daemon = daemon
        self._rotate_at = rotate_at
        self._lock = threading.Lock()
        self._pumps: dict[str, _Pump] = {}
        self._finished: OrderedDict[str, LineRing] = OrderedDict()
        self._closed = False

    def start(self, container_id: str, log_path: Path, first_line: bytes | None) -> None:
        """Begin; nothing happens for a container that has its pump, or had it and was finished.

        :param first_line: written before the container's output. None: an earlier manager started it and wrote
            that; the file goes on where that manager left it.
        """
        with self._lock:
            if self._closed or container_id in self._pumps or container_id in self._finished:
                return
            file = LogFile(log_path, rotate_at=self._rotate_at)
            pump = self._pumps[container_id] = _Pump(self._daemon, container_id, log_path, file, first_line)
            pump.start()

    def last_lines(self, container_id: str, count: int) -> list[str]:
        """The newest lines, at most 400, made safe to show; also of the last few containers that were finished."""
        with self._lock:
            pump = self._pumps.get(container_id)
            ring = pump.ring if pump else self._finished.get(container_id)
        return ring.last(count) if ring else []

    def finish(self, container_id: str, timeout_s: float) -> None:
        """Wait until all output of a container that has ended is written, at most ``timeout_s``, and end its pump."""
        with self._lock:
            pump = self._pumps.get(container_id)
        if pump is None:
            return
        if not pump.finish(timeout_s):
            log.warning("the last lines of container %s could not be had in time", container_id[:12])
        with self._lock:
            if self._pumps.pop(container_id, None) is not None:
                self._finished[container_id] = pump.ring
                while len(self._finished) > _REMEMBERED:
                    self._finished.popitem(last=False)

    def close(self) -> None:
        """End all pumps. The containers go on, and so do their logs with the next manager."""
        with self._lock:
            self._closed = True
            pumps = list(self._pumps.values())
            self._pumps.clear()
        for pump in pumps:
            pump.stop()
        deadline = time.monotonic() + 5
        for pump in pumps:
            pump.join(max(0.0, deadline - time.monotonic()))


class _Pump(threading.Thread):
    """The pump of one container: this thread alone writes its file."""

    def __init__(
        self, daemon: Daemon, container_id: str, path: Path, file: LogFile, first_line: bytes | None
    ) -> None:
        super().__init__(name=f"docker-log-{container_id[:12]}", daemon=True)
        self.ring = LineRing()
        self._daemon, self._id, self._path, self._file = daemon, container_id, path, file
        self._first_line = first_line
        self._since: str | None = None
        self._lock = threading.Lock()
        self._stream: Stream[Piece] | None = None
        self._stopped = False
        self._hurry = threading.Event()

    def finish(self, timeout_s: float) -> bool:
        """Wait for the end of the output, then end the thread in any case; whether all was had."""
        self._hurry.set()
        self.join(timeout_s)
        if not self.is_alive():
            return True
        self.stop()
        self.join(1)
        return False

    def stop(self) -> None:
        """End the thread soon, wherever it is."""
        with self._lock:
            self._stopped = True
            if self._stream is not None:
                self._stream.close()
        self._hurry.set()

    def run(self) -> None:
        """Until the container has ended, is gone, or somebody says stop."""
        try:
            self._run()
        except Exception:
            log.exception("the log of container %s ends here", self._id[:12])
        finally:
            self._file.close()

    def _run(self) -> None:
        known_place = self._first_line is not None
        if self._first_line is not None:
            self._file.write(self._first_line, source="", moment=None)
        else:
            self.ring.fill(_lines_of_this_run(self._path))
        pause, complained = _FIRST_PAUSE_S, False
        while not self._stopped:
            begun = time.monotonic()
            try:
                if not known_place:
                    self._since = place_in_log(self._daemon, self._id, self._path)
                    known_place = True
                self._take_all(follow=True)
                if not self._stopped and self._has_ended():
                    # What was written between the end of the stream and the end of the container: a daemon that
                    # is shut down ends the stream first.
                    self._take_all(follow=False)
                    return
            except DaemonGone:
                pass  # whether the daemon is away is told by the events; here it only means to try again
            except DaemonError as error:
                if error.status == 404:
                    return
                if not complained:
                    log.warning("the output of container %s cannot be read: %s", self._id[:12], error)
                complained = True
                if self._hurry.is_set():
                    return
            if time.monotonic() - begun > 1:
                pause = _FIRST_PAUSE_S
            if self._hurry.wait(pause) and not self._stopped:
                time.sleep(_FIRST_PAUSE_S)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _take_all(self, *, follow: bool) -> None:
        stream = self._daemon.logs(self._id, since=self._since, follow=follow)
        with self._lock:
            self._stream = stream
            if self._stopped:
                stream.close()
        try:
            for source, data, since in stream:
                self.ring.add(source, data)
                self._file.write(data, source=source, moment=newest(since))
                self._since = since
        finally:
            stream.close()

    def _has_ended(self) -> bool:
        inspected = self._daemon.inspect(self._id)
        return inspected is None or has_ended(inspected, time.time())


def _lines_of_this_run(path: Path) -> list[str]:
    try:
        lines = logfiles.tail(path, LINES)
    except OSError as error:
        log.warning("%s cannot be read: %s", path.name, error.strerror)
        return []
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith(START_MARK):
            return lines[number:]
    return lines
