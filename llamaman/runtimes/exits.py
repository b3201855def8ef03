"""Noticing the end of processes: one thread for all engines, no zombies, no signal to a stranger.

For the process runtime. A process is known by pid and start time; the thread runs only while there is
something to wait for. Where the kernel has no pidfd the thread looks every 200 ms instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from llamaman.records import Exit
from llamaman.runtimes import procfs

_LOOK_EVERY_S = 0.2
_REMEMBERED_EXITS = 256

_log = logging.getLogger(__name__)

Identity = tuple[int, int]
"""A process: its pid and its start time."""


@dataclass(slots=True, eq=False)
class _Watched:
    identity: Identity
    pidfd: int | None
    child: subprocess.Popen[bytes] | None
    on_end: Callable[[Exit], Exit] | None
    callbacks: list[Callable[[Exit], None]] = field(default_factory=list)


class ExitPoller:
    """Owns every wait for an engine process. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watched: dict[Identity, _Watched] = {}
        self._by_fd: dict[int, _Watched] = {}
        self._ended: OrderedDict[Identity, Exit] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._epoll: select.epoll | None = None
        self._wake: int | None = None

    def adopt_child(
        self,
        child: subprocess.Popen[bytes],
        started: int,
        on_end: Callable[[Exit], Exit] | None = None,
    ) -> None:
        """Reap this child of ours when it ends, whether or not somebody watches it.

        :param on_end: called in the waiting thread before anybody hears of the end; it may complete the
            record, for example with what a control group knows of it.
        """
        with self._lock:
            self._add((child.pid, started), child, on_end)

    def watch(self, identity: Identity, callback: Callable[[Exit], None]) -> Callable[[], None]:
        """Call ``callback`` once when the process ends, or now if it has; returns a function that cancels."""
        with self._lock:
            watched = self._watched.get(identity)
            ended = None if watched else self.ended(identity)
            if ended is None:
                watched = watched or self._add(identity, None, None)
                watched.callbacks.append(callback)
        if ended is not None:
            _call(callback, ended)
            return lambda: None
        assert watched is not None
        return lambda: self._cancel(watched, callback)

    def ended(self, identity: Identity) -> Exit | None:
        """None while the process runs. How it ended is unknown for one that was never ours."""
        with self._lock:
            known = self._ended.get(identity)
            if known is not None:
                return known
            process = procfs.read(identity[0])
            if process is not None and process.started == identity[1]:
                # Our own zombie is about to be reported by the thread, with its exit status.
                if process.alive or identity in self._watched:
                    return None
            elif identity in self._watched:
                return None
            return self._remember(identity, Exit(None, None, time.time()))

    def signal(self, identity: Identity, number: signal.Signals) -> bool:
        """Send a signal to the process and to its process group; False if it has ended."""
        with (
            self._lock
        ):  # the thread cannot reap our child here, so its pid cannot come to mean another process
            watched = self._watched.get(identity)
            process = procfs.read(identity[0])
            if process is None or process.started != identity[1]:
                return False
            if watched is None and not process.alive:
                return False
            try:
                if process.group == process.pid:
                    os.killpg(process.pid, number)
                else:
                    os.kill(process.pid, number)
            except ProcessLookupError:
                return False
            return process.alive

    def close(self) -> None:
        """Stop waiting. The processes go on."""
        with self._lock:
            thread, self._thread = self._thread, None
            for watched in list(self._watched.values()):
                self._forget(watched)
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)
        if thread is not None and thread is not threading.current_thread():
            thread.join(5)

    # --- under the lock --------------------------------------------------------------------------

    def _add(
        self,
        identity: Identity,
        child: subprocess.Popen[bytes] | None,
        on_end: Callable[[Exit], Exit] | None,
    ) -> _Watched:
        try:
            pidfd = os.pidfd_open(identity[0])
        except (OSError, AttributeError):  # no such call in this kernel or sandbox, or already reaped
            pidfd = None
        watched = _Watched(identity, pidfd, child, on_end)
        self._watched[identity] = watched
        if self._thread is None:
            self._epoll = select.epoll()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._wake, select.EPOLLIN)
            self._thread = threading.Thread(
                target=self._run, args=(self._epoll, self._wake), name="engine-exits", daemon=True
            )
            self._thread.start()
        assert self._epoll is not None
        assert self._wake is not None
        if pidfd is not None:
            self._by_fd[pidfd] = watched
            self._epoll.register(pidfd, select.EPOLLIN)
        else:
            os.eventfd_write(self._wake, 1)  # the thread must learn that it has to look now and then
        return watched

    def _forget(self, watched: _Watched) -> None:
        self._watched.pop(watched.identity, None)
        if watched.pidfd is not None:
            self._by_fd.pop(watched.pidfd, None)
            if self._epoll is not None:
                with contextlib.suppress(OSError):  # an older set, already closed
                    self._epoll.unregister(watched.pidfd)
            os.close(watched.pidfd)
            watched.pidfd = None

    def _remember(self, identity: Identity, exit_: Exit) -> Exit:
        self._ended[identity] = exit_
        while len(self._ended) > _REMEMBERED_EXITS:
            self._ended.popitem(last=False)
        return exit_

    def _cancel(self, watched: _Watched, callback: Callable[[Exit], None]) -> None:
        with self._lock:
            if callback in watched.callbacks:
                watched.callbacks.remove(callback)
            if not watched.callbacks and watched.child is None:
                self._forget(watched)
                if not self._watched and self._wake is not None:
                    os.eventfd_write(self._wake, 1)

    # --- the thread ------------------------------------------------------------------------------

    def _run(self, epoll: select.epoll, wake: int) -> None:
        try:
            while True:
                with self._lock:
                    if not self._watched or self._thread is not threading.current_thread():
                        if self._thread is threading.current_thread():
                            self._thread = None
                        if self._wake == wake:
                            self._wake = self._epoll = None
                        return
                    blind = any(watched.pidfd is None for watched in self._watched.values())
                ready = epoll.poll(_LOOK_EVERY_S if blind else None)
                with self._lock:
                    suspects = [self._by_fd[fd] for fd, _ in ready if fd in self._by_fd]
                    suspects += [w for w in self._watched.values() if w.pidfd is None]
                for fd, _ in ready:
                    if fd == wake:
                        os.eventfd_read(wake)
                for watched in suspects:
                    self._report_if_ended(watched)
        finally:
            epoll.close()
            os.close(wake)

    def _report_if_ended(self, watched: _Watched) -> None:
        with self._lock:
            if self._watched.get(watched.identity) is not watched:
                return
            exit_ = _end_of(watched)
            if exit_ is None:
                return
            if watched.on_end is not None:
                exit_ = watched.on_end(exit_)
            self._forget(watched)
            self._remember(watched.identity, exit_)
            callbacks = list(watched.callbacks)
        for callback in callbacks:
            _call(callback, exit_)


def _end_of(watched: _Watched) -> Exit | None:
    pid, started = watched.identity
    if watched.child is None:
        process = procfs.read(pid)
        if process is not None and process.started == started and process.alive:
            return None
        return Exit(None, None, time.time())
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        return None
    # What it left behind in its group ends with it, while the unreaped leader still keeps the number ours.
    process = procfs.read(pid)
    if process is not None and process.group == pid:
        os.killpg(pid, signal.SIGKILL)
    code = watched.child.wait()
    return Exit(code if code >= 0 else None, -code if code < 0 else None, time.time())


def _call(callback: Callable[[Exit], None], exit_: Exit) -> None:
    try:
        callback(exit_)
    except Exception:  # noqa: BLE001 - one watcher's fault must not keep the others from hearing of their engines
        _log.exception("a watcher of an engine process failed")
