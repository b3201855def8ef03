"""Pulls of images: one per image for all who wait for it, each on a thread of its own. Read by :mod:`images`.

A pull that has begun is finished even when nobody waits any more: the layers that came are of use, and whoever
launches the model again would begin anew. One that still stands in the queue is dropped then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from llamaman.errors import LaunchError, LlamaManError
from llamaman.runtimes.docker import pull_progress
from llamaman.runtimes.docker.image_names import ImageName
from llamaman.runtimes.docker.pull_progress import Progress

#: Pulls at a time; each uses several connections of the daemon.
AT_ONCE: Final = 3
#: Ended pulls that are still shown.
KEPT: Final = 20
_REPORT_S: Final = 1.0
_WAITING: Final = "waiting to pull image"

State = Literal["queued", "pulling", "extracting", "done", "error"]
Report = Callable[[str], None]

log = logging.getLogger(__name__)


class Events(Protocol):
    """What the daemon says of one pull. ``close`` ends it from any thread."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...

    def close(self) -> None:
        """Nobody reads any more; the daemon gives the pull up."""


@dataclass(frozen=True, slots=True)
class Pull:
    """One pull at one moment.

    :ivar percent: of the phase that ``state`` names; None when unknown.
    :ivar error: why it failed, in words that say what to do; None unless it did.
    :ivar detail: Docker's own words then, which may hold addresses.
    :ivar started: epoch seconds at which it was asked for.
    """

    image: str
    state: State
    percent: int | None
    message: str
    error: str | None
    started: float
    finished: float | None = None
    detail: str | None = None


@dataclass(slots=True)
class _Job:
    """A pull that is not over, and who waits for it."""

    name: ImageName
    pull: Pull
    waiting: list[tuple[Future[None], Report]] = field(default_factory=list)
    said: str = ""
    said_at: float = 0.0
    events: Events | None = None

    def wanted(self) -> bool:
        return any(not future.cancelled() for future, _ in self.waiting)


class Pulls:
    """Every pull of one daemon. Thread-safe; no method waits for a pull.

    :param pull: begins one pull; raises as :meth:`Daemon.pull` does, then or while its events are read.
    :param finish: called in the pull's thread when it is over, before anybody is told; what it raises is the
        pull's failure.
    :param failed: an exception of ``pull`` or ``finish`` -> the error for those who wait.
    """

    def __init__(
        self,
        pull: Callable[[ImageName], Events],
        *,
        finish: Callable[[ImageName], None],
        failed: Callable[[ImageName, Exception], LlamaManError],
    ) -> None:
        self._pull = pull
        self._finish = finish
        self._failed = failed
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[_Job] = deque()
        self._threads = 0
        self._ended: deque[Pull] = deque(maxlen=KEPT)
        self._closed = False

    def start(self, name: ImageName, report: Report) -> Future[None]:
        """Begin this pull, or join the one that runs.

        :param report: called from any thread, on a change and at most once a second within a phase.
        """
        future: Future[None] = Future()
        with self._lock:
            running = self._jobs.get(name.canonical)
        # Told before it can be told of what comes next, and without a lock that the listener might wait for.
        _tell(report, running.pull.message if running else _WAITING)
        with self._lock:
            if self._closed:
                raise _stopped(name)
            job = self._jobs.get(name.canonical)
            if job is None:
                job = _Job(name, Pull(str(name), "queued", None, _WAITING, None, time.time()))
                self._jobs[name.canonical] = job
                self._queue.append(job)
                if self._threads < AT_ONCE:
                    self._threads += 1
                    threading.Thread(target=self._work, name="image-pull", daemon=True).start()
            job.waiting.append((future, report))
        return future

    def views(self) -> tuple[Pull, ...]:
        """Those that are not over, then the last ones that are, each newest first."""
        with self._lock:
            running = [job.pull for job in self._jobs.values()]
            return (*reversed(running), *reversed(self._ended))

    def close(self) -> None:
        """End everything and tell those who wait; the daemon gives up what nobody listens to."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            jobs = list(self._jobs.values())
            streams = [job.events for job in jobs if job.events is not None]
        for job in jobs:
            self._end(job, _stopped(job.name))
        for events in streams:
            events.close()

    # --- the threads ---------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)

    def _next(self) -> _Job | None:
        """The next pull that somebody still wants; without one the thread ends, and says so first."""
        with self._lock:
            while self._queue:
                job = self._queue.popleft()
                if job.wanted():
                    return job
                del self._jobs[job.name.canonical]
            self._threads -= 1
            return None

    def _run(self, job: _Job) -> None:
        error: LlamaManError | None = None
        try:
            self._follow(job)
            self._finish(job.name)
        except LlamaManError as refusal:
            error = refusal
        except Exception as failure:  # noqa: BLE001 - whatever it was, somebody waits to hear of it
            error = self._failed(job.name, failure)
        self._end(job, error)

    def _follow(self, job: _Job) -> None:
        progress = Progress()
        self._show(job, progress)
        events = self._pull(job.name)
        try:
            with self._lock:
                if self._closed:
                    raise _stopped(job.name)
                job.events = events
            for event in events:
                progress = pull_progress.after(progress, event)
                self._show(job, progress)
        finally:
            events.close()
        if not progress.is_whole:
            raise LaunchError(
                f"the pull of '{job.name}' broke off before it was complete; the Docker daemon may have been "
                "restarted, so try again"
            )

    def _show(self, job: _Job, progress: Progress) -> None:
        now, message = time.monotonic(), progress.message
        with self._lock:
            is_new_phase = progress.phase != job.pull.state
            job.pull = replace(job.pull, state=progress.phase, percent=progress.percent, message=message)
            if message == job.said or not (is_new_phase or now - job.said_at >= _REPORT_S):
                return
            job.said, job.said_at = message, now
            reports = [report for future, report in job.waiting if not future.done()]
        for report in reports:
            _tell(report, message)

    def _end(self, job: _Job, error: LlamaManError | None) -> None:
        with self._lock:
            if self._jobs.get(job.name.canonical) is not job:
                return
            del self._jobs[job.name.canonical]
            self._ended.append(
                replace(
                    job.pull,
                    state="error" if error else "done",
                    percent=None if error else 100,
                    message="the pull failed" if error else "pulled",
                    error=error.message if error else None,
                    detail=error.detail if error else None,
                    finished=time.time(),
                )
            )
        if error:
            log.warning("image %s could not be pulled: %s", job.name, error.message)
        for future, _ in job.waiting:
            if not future.set_running_or_notify_cancel():
                continue
            if error:
                future.set_exception(error)
            else:
                future.set_result(None)


def _stopped(name: ImageName) -> LaunchError:
    return LaunchError(f"'{name}' is not pulled any more: LlamaMan is being stopped")


def _tell(report: Report, message: str) -> None:
    try:
        report(message)
    except Exception:  # the pull serves others too
        log.exception("a listener failed on the progress of a pull")
