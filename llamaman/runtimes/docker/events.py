"""Noticing the end of containers, and that the daemon is away: one place for all containers of this manager.

For the Docker runtime. Guarantees: whoever watches a container hears of its end once, however it came, also when it
came while the daemon could not be reached, and in that case before anybody hears that the daemon is back. A stream
of events that merely ends is opened anew without a word. The daemon counts as lost when it refuses a new connection
or does not answer; a hung one is found out within a minute.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llamaman.records import Exit
from llamaman.runtimes.causes import CONTAINER_STOPPED
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Json
from llamaman.runtimes.docker.ends import (
    Story,
    cut_off,
    exit_from,
    has_ended,
    moment,
    read_event,
    restarted_since,
)
from llamaman.runtimes.docker.event_reader import OPEN, EventReader, Heard
from llamaman.runtimes.docker.faults import TIMED_OUT

_PING_EVERY_S: Final = 15.0
_PATIENCE_S: Final = 5.0  # with a daemon that does not answer, until it counts as lost
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_HISTORY_S: Final = 600.0  # events that are asked for again: longer than anybody's `docker stop` waits
_REPLAY_S: Final = 0.5  # in which the daemon has sent them
_FRESH_S: Final = 2.0
_REMEMBERED: Final = 1024

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Watched:
    since: float
    is_at_its_place: Callable[[Json], bool]
    callbacks: list[Callable[[Exit], None]] = field(default_factory=list)


class Deaths:
    """Owns every wait for the end of a container. Any thread may call any method."""

    def __init__(
        self,
        daemon: Daemon,
        labels: Sequence[str],
        *,
        network: str,
        on_reach: Callable[[str | None], None],
        describe: Callable[[DaemonGone], str],
        on_leave: Callable[[str], None] = lambda container_id: None,
    ) -> None:
        """
        :param labels: ``key=value`` of the containers whose events are followed.
        :param network: the name of the network that they are on.
        :param on_reach: called in the thread of this class: the reason when the daemon is lost, None when it is back.
        :param describe: makes a sentence of that reason.
        :param on_leave: called in that thread with the id of any container that is taken off the network.
        """
        self._daemon = daemon
        self._labels, self._network = tuple(labels), network
        self._on_reach, self._describe, self._on_leave = on_reach, describe, on_leave
        self._changed = threading.Condition()
        self._watched: dict[str, _Watched] = {}
        self._ended: OrderedDict[str, Exit] = OrderedDict()
        self._expected: OrderedDict[str, None] = OrderedDict()
        self._stories: OrderedDict[str, Story] = OrderedDict()
        self._lost: str | None = None
        self._broke_at: float | None = None
        self._newest: float | None = None  # event that was ever heard, by the daemon's clock
        self._known: float | None = None  # the newest event before this connection
        self._same = False  # the daemon knows of events before this connection: it was not restarted
        self._closed = threading.Event()
        self._heard: Heard = queue.SimpleQueue()
        self._reader: EventReader | None = None
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)

    def start(self) -> None:
        """Begin to follow events; does not wait for the daemon."""
        self._thread.start()

    def watch(
        self,
        container_id: str,
        callback: Callable[[Exit], None],
        is_at_its_place: Callable[[Json], bool] = lambda inspected: True,
    ) -> Callable[[], None]:
        """Call ``callback`` once when the container ends; returns a function that cancels.

        It is called now, in this thread, when the container has ended or is gone; later in the thread of this
        class, where it must not take long: the end of others waits for it.

        :param is_at_its_place: whether a running container, as the daemon describes it, can still be talked to where
            its callers do; one that cannot has ended for them, too.
        """
        with self._changed:
            ended = self._ended.get(container_id)
            if ended is None:
                watched = self._watched.setdefault(container_id, _Watched(time.time(), is_at_its_place))
                watched.callbacks.append(callback)
        if ended is not None:
            _call(callback, ended)
            return lambda: None
        # It may have ended before, unheard. While the daemon is away nobody knows; its return is looked at.
        with contextlib.suppress(DaemonGone, DaemonError):
            inspected = self._daemon.inspect(container_id)
            if inspected is None or has_ended(inspected, time.time()):
                self._hear_more(container_id, inspected)
                self._report(container_id, self._exit(container_id, inspected))
            elif self._is_cut_off(container_id, inspected):
                self._report(container_id, cut_off(time.time()))
        return lambda: self._cancel(container_id, callback)

    def exit_of(self, container_id: str) -> Exit | None:
        """How it ended, None while it runs. Known also after it was removed, for the last thousand of them.

        :raises DaemonGone: the daemon cannot be reached.
        :raises DaemonError: the daemon cannot say.
        """
        with self._changed:
            if container_id in self._ended:
                return self._ended[container_id]
        inspected = self._daemon.inspect(container_id)
        if inspected is not None and not has_ended(inspected, time.time()):
            return None
        self._hear_more(container_id, inspected)
        found = self._exit(container_id, inspected)
        with self._changed:
            if container_id in self._watched and container_id not in self._expected:
                return found  # what the thread finds out counts
            return self._remember(container_id, found)

    def _hear_more(self, container_id: str, inspected: Json | None) -> None:
        """Let the thread hear of an end that has just been, and of who did it."""
        ended = moment(inspected["State"].get("FinishedAt")) if inspected else None
        if ended is None or abs(time.time() - ended) > _FRESH_S or not self._thread.is_alive():
            return
        with self._changed:
            if container_id in self._expected or self._lost is not None:
                return
            self._changed.wait_for(
                lambda: container_id in self._ended or self._stories.get(container_id, Story()).tells_end,
                _REPLAY_S,
            )

    def expect(self, container_id: str) -> None:
        """We end it ourselves from now on: whatever happens to it was not somebody else's doing."""
        with self._changed:
            self._expected[container_id] = None
            while len(self._expected) > _REMEMBERED:
                self._expected.popitem(last=False)

    def lost(self) -> str | None:
        """Why the daemon cannot be reached now; None when it can. Does not block."""
        return self._lost

    def close(self) -> None:
        """Stop; nobody is called any more. The containers go on."""
        self._closed.set()
        with self._changed:
            self._watched.clear()
            reader = self._reader
        self._heard.put((None, None))
        if reader is not None:
            reader.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5)

    # --- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._closed.is_set():
            reader = self._connect()
            connected = time.monotonic()
            if reader is not None:
                try:
                    self._serve(reader)
                except Exception:
                    log.exception("following the events of Docker failed; it is begun anew")
                reader.close()
                self._broke_at = time.time()
            if reader is not None and time.monotonic() - connected > 1:
                pause = _FIRST_PAUSE_S
            else:
                self._closed.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _serve(self, reader: EventReader) -> None:
        """Report what ended meanwhile, say that the daemon is back, and follow events until they end."""
        try:
            self._look(reader, again=self._broke_at is not None)
        except DaemonGone as gone:
            self._gone(gone)
            return
        self._back()
        try:
            self._follow(reader)
        except DaemonGone as gone:  # whether it is lost turns out when it is connected to anew
            log.info("Docker did not answer: %s", gone.reason)

    def _connect(self) -> EventReader | None:
        """Open the events; None when the daemon is lost, which has been told then."""
        with self._changed:
            self._stories.clear()  # they are told anew, unless their daemon is gone
            self._known, self._same = self._newest, False
            since = (self._broke_at or time.time()) - _HISTORY_S
            reader = self._reader = EventReader(self._daemon, self._labels, self._network, since, self._heard)
        reader.start()
        patience: float | None = _PATIENCE_S
        while not self._closed.is_set():
            try:
                source, what = self._heard.get(timeout=patience)
            except queue.Empty:
                # A hung daemon, or a socket that systemd keeps for one that starts: then this one is answered.
                self._gone(DaemonGone(TIMED_OUT))
                patience = None
                continue
            if source is not reader:
                continue
            if what is OPEN:
                return reader
            if isinstance(what, DaemonGone):
                self._gone(what)
            return None
        reader.close()
        return None

    def _follow(self, reader: EventReader) -> None:
        """Until the stream ends or is not to be believed.

        :raises DaemonGone: the daemon does not answer.
        """
        while not self._closed.is_set():
            try:
                source, what = self._heard.get(timeout=_PING_EVERY_S)
            except queue.Empty:
                if not self._look(reader, again=False):
                    self._daemon.version()
                continue
            if source is not reader:
                continue
            if not isinstance(what, dict):
                return
            container_id = self._note(what)
            if what.get("Type") == "network":
                _call(self._on_leave, container_id)
            if container_id is not None and not self._ended_now(container_id):
                return

    def _ended_now(self, container_id: str) -> bool:
        """Report a container whose end was told of; False: ask the daemon anew before anything is said.

        :raises DaemonGone: it cannot be asked.
        """
        with self._changed:
            watched = self._watched.get(container_id)
            story = self._stories.get(container_id, Story())
        if watched is None:
            return True
        inspected = self._inspect(container_id)
        runs = inspected is not None and not has_ended(inspected, time.time())
        if inspected is not None and runs:
            ran_then = story.at is not None and story.at >= watched.since
            if not (ran_then and restarted_since(inspected, story)):
                if self._is_cut_off(container_id, inspected):
                    self._report(container_id, cut_off(time.time()))
                return True
        exit_ = self._exit(container_id, inspected)
        # A daemon that is being shut down stops its containers just as `docker stop` does and still tells of it,
        # but takes no new connections.
        if exit_.cause == CONTAINER_STOPPED and not runs:
            return False
        self._report(container_id, exit_)
        return True

    def _look(self, reader: EventReader, *, again: bool) -> int:
        """Ask for each watched container and report those that have ended; returns how many were asked for.

        :param again: there was a connection before; what has ended since may have ended with its daemon.
        :raises DaemonGone: the daemon cannot be asked.
        """
        with self._changed:
            watched = list(self._watched)
        ended: dict[str, Json | None] = {}
        for container_id in watched:
            inspected = self._inspect(container_id)
            if inspected is None or has_ended(inspected, time.time()):
                ended[container_id] = inspected
            elif self._is_cut_off(container_id, inspected):
                self._report(container_id, cut_off(time.time()))
        self._hear_of(set(ended), reader)
        restarted = again and not self._same
        for container_id, inspected in ended.items():
            self._report(container_id, self._exit(container_id, inspected, restarted=restarted))
        return len(watched)

    def _hear_of(self, ended: set[str], reader: EventReader) -> None:
        """Take in what the daemon has to tell of these ends, if it does at all."""
        deadline = time.monotonic() + _REPLAY_S
        while any(not self._story(container_id).tells_end for container_id in ended):
            try:
                source, what = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            if source is not reader:
                continue
            if not isinstance(what, dict):
                self._heard.put((source, what))  # for _follow, which ends with it
                return
            self._note(what)

    def _inspect(self, container_id: str) -> Json | None:
        try:
            return self._daemon.inspect(container_id)
        except DaemonError as error:
            log.warning("Docker cannot say how container %s is: %s", container_id[:12], error)
            return {"State": {"Running": True}}

    def _is_cut_off(self, container_id: str, inspected: Json) -> bool:
        """Whether a watched container runs where nobody may talk to it, and not because it is ending."""
        with self._changed:
            watched = self._watched.get(container_id)
            ending = container_id in self._expected or self._story(container_id).tells_end
        return watched is not None and not ending and not watched.is_at_its_place(inspected)

    # --- what is known -------------------------------------------------------------------------------

    def _note(self, event: dict[str, Any]) -> str | None:
        """Take note of an event; returns the container if that may be its end."""
        container_id, action, attributes, at = read_event(event)
        with self._changed:
            if action == "disconnect":
                return container_id
            story = self._stories.setdefault(container_id, Story())
            self._stories.move_to_end(container_id)
            while len(self._stories) > _REMEMBERED:
                self._stories.popitem(last=False)
            story.add(action, attributes, at)
            if at is not None:
                self._same = self._same or (self._known is not None and at <= self._known)
                self._newest = max(at, self._newest or at)
            self._changed.notify_all()
        return container_id if action in {"die", "destroy"} else None

    def _story(self, container_id: str) -> Story:
        with self._changed:
            return self._stories.get(container_id, Story())

    def _exit(self, container_id: str, inspected: Json | None, *, restarted: bool = False) -> Exit:
        with self._changed:
            story = self._stories.get(container_id, Story())
            story = replace(story, signals=list(story.signals))
            expected = container_id in self._expected
        return exit_from(inspected, story, expected=expected, restarted=restarted, now=time.time())

    def _remember(self, container_id: str, exit_: Exit) -> Exit:
        exit_ = self._ended.setdefault(container_id, exit_)
        while len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
        self._changed.notify_all()
        return exit_

    def _report(self, container_id: str, exit_: Exit) -> None:
        """Tell whoever watches it. Their names are taken off first, so that nobody is told twice."""
        with self._changed:
            watched = self._watched.pop(container_id, None)
            if watched is None:
                return
            exit_ = self._remember(container_id, exit_)
        for callback in watched.callbacks:
            _call(callback, exit_)

    def _cancel(self, container_id: str, callback: Callable[[Exit], None]) -> None:
        with self._changed:
            watched = self._watched.get(container_id)
            if watched is not None and callback in watched.callbacks:
                watched.callbacks.remove(callback)
                if not watched.callbacks:
                    del self._watched[container_id]

    def _gone(self, gone: DaemonGone) -> None:
        if self._closed.is_set():
            return
        was, self._lost = self._lost, self._describe(gone)
        if was is None:
            log.warning("Docker cannot be reached at %s: %s", self._daemon.address, gone.reason)
            _call(self._on_reach, self._lost)

    def _back(self) -> None:
        if self._lost is not None and not self._closed.is_set():
            self._lost = None
            log.info("Docker can be reached again")
            _call(self._on_reach, None)


def _call(callback: Callable[[Any], None], with_: object) -> None:
    try:
        callback(with_)
    except Exception:  # one watcher's fault must not keep the others from hearing of their engines
        log.exception("a watcher of containers failed")
