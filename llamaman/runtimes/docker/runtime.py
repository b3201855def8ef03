"""The Docker runtime: engines as sibling containers, found and kept after a restart of the manager or the daemon.

Implements :class:`llamaman.runtime.Runtime` and its further abilities. A container carries our marks and a proof
that we made it; whatever has no proof is never routed to, stopped or removed. A container that has ended is
removed here, once its exit was read and its output is in the log, before anybody is told: nothing is left behind.
All methods may block unless the protocol says otherwise, and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from llamaman.errors import LaunchError, RuntimeLost
from llamaman.records import Engine, Exit, Handle, LaunchPlan, ResourceUse, WorkDone
from llamaman.runtimes.causes import CONTAINER_CUT_OFF
from llamaman.runtimes.docker import labels
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Json
from llamaman.runtimes.docker.events import Deaths
from llamaman.runtimes.docker.images import Images
from llamaman.runtimes.docker.launcher import Launcher
from llamaman.runtimes.docker.log_pump import LogPumps
from llamaman.runtimes.docker.network import NOWHERE
from llamaman.runtimes.docker.parts import Parts
from llamaman.runtimes.docker.peers import Peers
from llamaman.runtimes.docker.sayings import RETRY_S, told, unreachable
from llamaman.runtimes.docker.surroundings import Surroundings
from llamaman.runtimes.docker.usage import Sampler
from llamaman.runtimes.start_line import start_line

_INSIST_AFTER_S = 2.0  # llama-server waits on SIGTERM for open answers; a second one ends it
_AFTER_KILL_S = 20.0
_LAST_OUTPUT_S = 5.0

log = logging.getLogger(__name__)


class DockerRuntime:
    """Runs engines as containers beside this manager."""

    name = "docker"

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._daemon = Daemon(parts.host, environ=parts.environ)
        self._surroundings = Surroundings(self._daemon, parts)
        self.images = Images(
            self._daemon, default=parts.image, allowed=parts.images_allowed, state_dir=parts.state_dir
        )
        self._deaths = Deaths(
            self._daemon,
            labels.label_filter(parts.node, parts.install),
            network=parts.network,
            on_reach=self._reached,
            describe=lambda gone: unreachable(gone.reason),
            on_leave=self._left_network,
        )
        self._pumps = LogPumps(self._daemon)
        self._sampler = Sampler(self._daemon)
        self._settling = ThreadPoolExecutor(4, "container-end")
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str | None], None]] = []
        self._starting: set[str] = set()  # names of containers that are being made
        self._peers = Peers()
        self._settled: dict[str, Future[Exit]] = {}
        self._foreign: tuple[str, ...] = ()
        self._launcher = Launcher(
            self._daemon,
            parts,
            self._surroundings,
            self.images,
            is_ours=lambda inspected: (
                self._marks_of(inspected["Config"]["Labels"], inspected["Image"]) is not None
            ),
            discard=self._discard,
        )
        self._deaths.start()

    # --- what can run here ---------------------------------------------------------------------------

    def engines(self) -> Sequence[Engine]:
        """The image that launches use when they name none."""
        return (self.images.default_engine(),)

    def engine(self, name: str) -> Engine | None:
        """An allowed image by its name; see :class:`llamaman.runtime.FetchesEngines`."""
        return self.images.engine(name)

    def fetch(self, engine: Engine, report: Callable[[str], None]) -> Future[None] | None:
        """Pull an image that is not here."""
        with self._told(engine.path):
            self._surroundings.join()  # whether a port is needed is known from now on
            return self.images.fetch(engine, report)

    def needs_port(self) -> bool:
        """Only where containers are reached by a published port."""
        return self._surroundings.network.reach == "port"

    def notes(self) -> tuple[str, ...]:
        """What an administrator should know of the engines here, in sentences; empty when all is well."""
        foreign = (
            f"container {name} carries LlamaMan's labels and no proof that this LlamaMan made it: left alone"
            for name in self._foreign
        )
        return (*self._surroundings.notes(), *foreign)

    def isolation(self) -> tuple[str, ...]:
        """Nothing is missing: this is the isolation that other runtimes are measured by."""
        return ()

    # --- one engine ----------------------------------------------------------------------------------

    def start(self, plan: LaunchPlan) -> Handle:
        """Make and start the container; returns before the model is loaded.

        :raises LaunchError: nothing is left behind.
        :raises RuntimeLost: the daemon cannot be reached; what was made is removed when it is back.
        """
        name = labels.container_name(self._p.prefix, plan.instance_id)
        with self._lock:
            self._starting.add(name)
        try:
            with self._told(plan.engine.path):
                started = self._launcher.launch(plan, name)
            self._peers.add(started.container_id, started.inspected)
            self._pumps.start(started.container_id, self._log_path(plan.instance_id), start_line(plan))
        finally:
            with self._lock:
                self._starting.discard(name)
        for note in started.notes:
            log.warning("instance %s: %s", plan.instance_id[:8], note)
        return Handle(
            plan.instance_id,
            plan.generation,
            None,
            None,
            started.address,
            started.container_id,
            started.notes,
        )

    def stop(self, handle: Handle, grace_s: float) -> Exit:
        """SIGTERM, again after 2 s, SIGKILL after ``grace_s``; returns when the container is removed.

        :raises LaunchError: it survives even SIGKILL.
        :raises RuntimeLost: the daemon cannot be reached.
        """
        container_id = handle.container_id
        if container_id is None:
            return Exit(None, None, time.time())
        with self._told():
            self._deaths.expect(container_id)
            if self._deaths.exit_of(container_id) is None:
                self._end(container_id, grace_s)
            ended = self._deaths.exit_of(container_id)
            if ended is None:
                raise LaunchError(
                    f"the container of instance {handle.instance_id} does not end even when killed; "
                    "a device driver or disk is stuck, and a restart of the machine may be needed",
                    detail=container_id,
                )
            return self._settle(container_id, ended)

    def _end(self, container_id: str, grace_s: float) -> None:
        if grace_s > 0:
            self._daemon.kill(container_id, "SIGTERM")
            if self._daemon.wait(container_id, min(grace_s, _INSIST_AFTER_S)) is not None:
                return
            if grace_s > _INSIST_AFTER_S:
                self._daemon.kill(container_id, "SIGTERM")
                if self._daemon.wait(container_id, grace_s - _INSIST_AFTER_S) is not None:
                    return
        log.info("container %s did not end within %.1f s, killing it", container_id[:12], grace_s)
        self._daemon.kill(container_id, "SIGKILL")
        self._daemon.wait(container_id, _AFTER_KILL_S)

    def watch(self, handle: Handle, on_exit: Callable[[Exit], None]) -> Callable[[], None]:
        """Call ``on_exit`` once when the container has ended and is removed; returns a function that cancels."""
        container_id = handle.container_id
        if container_id is None:
            on_exit(Exit(None, None, time.time()))
            return lambda: None
        # Only for one that an earlier manager started is there anything to do here.
        self._pumps.start(container_id, self._log_path(handle.instance_id), None)
        self._peers.watched(container_id)

        def ended(exit_: Exit) -> None:
            # Not in the thread that hears of ends: waiting for the last output must not hold up the next end.
            with contextlib.suppress(RuntimeError):  # the runtime is being closed; the next manager cleans up
                self._settling.submit(self._settle_and_tell, container_id, exit_, on_exit)

        network = self._surroundings.network
        return self._deaths.watch(
            container_id, ended, lambda inspected: network.is_at(inspected, handle.address)
        )

    def inspect(self, handle: Handle) -> Exit | None:
        """None while it runs."""
        if handle.container_id is None:
            return Exit(None, None, time.time())
        with self._told():
            return self._deaths.exit_of(handle.container_id)

    def find(self, node: str, install: str) -> Sequence[Handle]:
        """The containers that a manager of this node and installation left running, by mark and proof.

        What has ended or was never started is removed.

        :raises RuntimeLost: the daemon cannot be reached.
        """
        try:
            with self._told():
                return self._find(node, install)
        except LaunchError as error:
            # A daemon that refuses to say is no reason to take anything for gone, nor to end the boot.
            raise RuntimeLost(error.message, detail=error.detail, retry_after=RETRY_S) from error

    def _find(self, node: str, install: str) -> list[Handle]:
        handles: list[Handle] = []
        running: dict[str, Json] = {}
        foreign: list[str] = []
        for summary in self._daemon.containers(labels.label_filter(node, install)):
            name, container_id = labels.name_of(summary), str(summary["Id"])
            marks = self._marks_of(summary["Labels"], summary["ImageID"])
            if marks is None:
                foreign.append(name)
            elif not self._is_being_made(name) and (inspected := self._daemon.inspect(container_id)):
                if inspected["State"]["Running"]:
                    handles.append(self._handle(marks, inspected, name))
                    running[container_id] = inspected
                elif container_id not in self._peers:  # else it is about to be settled
                    log.info("removing container %s, which has ended", name)
                    self._discard(container_id)
        self._peers.found(running)
        self._foreign = tuple(foreign)
        return handles

    def _handle(self, marks: labels.Marks, inspected: Json, name: str) -> Handle:
        self._surroundings.join()
        try:
            address = self._surroundings.network.address(inspected, name, 0)
        except LaunchError as error:  # it alone cannot be reached; the others are found all the same
            log.warning("%s", error.message)
            address = NOWHERE
        return Handle(marks.instance_id, marks.generation, None, None, address, str(inspected["Id"]))

    def _is_being_made(self, name: str) -> bool:
        with self._lock:
            return name in self._starting

    # --- the further abilities -----------------------------------------------------------------------

    def lost(self) -> str | None:
        """Why the daemon cannot be reached now."""
        return self._deaths.lost()

    def on_reach(self, listener: Callable[[str | None], None]) -> None:
        """Tell ``listener`` when the daemon goes and when it is back."""
        with self._lock:
            self._listeners.append(listener)

    def usage(self, handle: Handle) -> ResourceUse | None:
        """The last sample of a container."""
        return self._sampler.usage(handle.container_id) if handle.container_id else None

    def anonymous_bytes(self, handle: Handle) -> int | None:
        """Its memory without file cache, asked now; None when the daemon does not say."""
        return self._sampler.anonymous_bytes(handle.container_id) if handle.container_id else None

    def work(self, handle: Handle) -> WorkDone | None:
        """What it has done so far, asked now; None when the daemon does not say."""
        return self._sampler.work(handle.container_id) if handle.container_id else None

    def last_lines(self, handle: Handle, count: int) -> list[str]:
        """The end of its output, from memory."""
        return self._pumps.last_lines(handle.container_id, count) if handle.container_id else []

    def peers(self) -> frozenset[str]:
        """The addresses of our running containers."""
        return self._peers.all()

    def close(self) -> None:
        """Stop watching. The containers go on, to be found by the next manager."""
        self._deaths.close()
        self._settling.shutdown(cancel_futures=True)
        self._pumps.close()
        self._sampler.close()
        self.images.close()
        self._daemon.close()

    # --- the end of a container ----------------------------------------------------------------------

    def _settle_and_tell(self, container_id: str, exit_: Exit, on_exit: Callable[[Exit], None]) -> None:
        try:
            exit_ = self._settle(container_id, exit_)
        except (DaemonGone, DaemonError) as error:
            # It has ended, and that counts; what is left of it is removed when it is found again.
            log.warning("container %s could not be removed: %s", container_id[:12], error)
        except Exception:  # a defect of ours must not hide the end
            log.exception("the end of container %s could not be completed", container_id[:12])
        try:
            on_exit(exit_)
        except Exception:  # nobody looks at what this thread raises
            log.exception("whoever watches container %s failed", container_id[:12])

    def _settle(self, container_id: str, exit_: Exit) -> Exit:
        """Finish the log and remove the container, once; whoever comes second gets the first one's exit."""
        with self._lock:
            mine = container_id not in self._settled
            outcome = self._settled.setdefault(container_id, Future())
        if not mine:
            return outcome.result(_LAST_OUTPUT_S + _AFTER_KILL_S)
        try:
            if exit_.cause == CONTAINER_CUT_OFF:  # it runs; its log ends with it
                self._daemon.kill(container_id)
            self._pumps.finish(container_id, _LAST_OUTPUT_S)
            self._sampler.forget(container_id)
            self._daemon.remove(container_id)
        finally:
            outcome.set_result(exit_)
            with self._lock:
                self._settled.pop(container_id, None)
            self._peers.remove(container_id)
        return exit_

    def _discard(self, container_id: str) -> None:
        """Remove a container that nobody watches."""
        self._deaths.expect(container_id)
        self._daemon.remove(container_id)
        self._pumps.finish(container_id, _LAST_OUTPUT_S)
        self._peers.remove(container_id)

    # --- small things --------------------------------------------------------------------------------

    def _marks_of(self, given: Mapping[str, str] | None, image_id: str) -> labels.Marks | None:
        marks = labels.proven(given, image_id, self._p.key)
        if marks is None or marks.node != self._p.node or marks.install != self._p.install:
            return None
        return marks

    def _reached(self, reason: str | None) -> None:
        self._surroundings.forget()
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(reason)

    def _left_network(self, container_id: str) -> None:
        if self._surroundings.is_us(container_id):
            log.warning("LlamaMan's own container was taken off the Docker network '%s'", self._p.network)
            with contextlib.suppress(RuntimeError):  # the runtime is being closed
                self._settling.submit(self._join_again)

    def _join_again(self) -> None:
        self._surroundings.network.forget()
        try:
            with self._told():
                self._surroundings.join()
        except (LaunchError, RuntimeLost) as error:
            log.warning("it could not be joined again: %s", error.message)

    def _log_path(self, instance_id: str) -> Path:
        return self._p.logs_dir / f"{instance_id}.log"

    def _told(self, image: str = "") -> AbstractContextManager[None]:
        """The daemon's troubles as errors that say what to do."""
        return told(self._daemon.address, image)
