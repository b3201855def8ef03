"""The Docker runtime: engines as sibling containers, found and kept after a restart of the manager or the daemon.

Implements :class:`llamaman.runtime.Runtime` and its further abilities. A container carries our marks and a proof
that we made it; whatever has no proof is never routed to, stopped or removed. A container that has ended is
removed here, once its exit was read and its output is in the log, before anybody is told: nothing is left behind.
All methods may block unless the protocol says otherwise, and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from llamaman.core.in_docker import detect_in_docker
from llamaman.errors import LaunchError, RuntimeLost
from llamaman.records import (
    Address,
    ContainerSpec,
    Engine,
    Exit,
    Handle,
    LaunchPlan,
    LaunchRequest,
    ResourceUse,
    SpecPatch,
)
from llamaman.runtimes.docker import container, labels
from llamaman.runtimes.docker.account import account_for
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Json
from llamaman.runtimes.docker.engine_facts import has_init
from llamaman.runtimes.docker.events import Deaths
from llamaman.runtimes.docker.files import engine_files
from llamaman.runtimes.docker.images import Images
from llamaman.runtimes.docker.log_pump import LogPumps
from llamaman.runtimes.docker.network import PORT, Network, Reach
from llamaman.runtimes.docker.place import Place, find_place, host_path
from llamaman.runtimes.docker.sayings import explain, unreachable
from llamaman.runtimes.docker.usage import Sampler
from llamaman.runtimes.start_line import start_line

_INSIST_AFTER_S = 2.0  # llama-server waits on SIGTERM for open answers; a second one ends it
_AFTER_KILL_S = 20.0
_LAST_OUTPUT_S = 5.0
_LOST_RETRY_S = 5

log = logging.getLogger(__name__)

#: What plugins add to a container: called once per launch.
AskPlugins = Callable[[LaunchRequest, ContainerSpec], SpecPatch]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the runtime is told.

    :ivar host: DOCKER_HOST, or None for this machine's socket.
    :ivar key: secret of this node that proofs are made with.
    :ivar host_addr: LLAMA_HOST_ADDR where it was set: containers are reached by published ports there.
    :ivar private: our own folders, of which no file is ever mounted.
    :ivar folders: (MODELS_DIR as we see it, as the Docker host sees it), where that was given.
    :ivar state_dir: a folder of ours for what is found out once per image.
    """

    host: str | None
    environ: Mapping[str, str]
    node: str
    install: str
    key: bytes
    prefix: str
    network: str
    host_addr: str | None
    in_docker: bool | None
    folders: tuple[tuple[Path, Path], ...]
    private: tuple[Path, ...]
    logs_dir: Path
    state_dir: Path
    image: str
    images_allowed: Callable[[], Sequence[str]]
    ask_plugins: AskPlugins


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What holds for as long as one daemon is there."""

    place: Place
    info: Json
    has_init: bool


class DockerRuntime:
    """Runs engines as containers beside this manager."""

    name = "docker"

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._daemon = Daemon(parts.host, environ=parts.environ)
        self._marks = labels.label_filter(parts.node, parts.install)
        contained = detect_in_docker() if parts.in_docker is None else parts.in_docker
        self._network = Network(
            self._daemon,
            name=parts.network,
            labels=labels.network_labels(parts.node, parts.install),
            host_addr=parts.host_addr or "localhost",
            reach="port" if parts.host_addr and not contained else None,
        )
        # What is published is for this manager alone, so it never leaves the machine.
        self._published_on = parts.host_addr if _is_loopback(parts.host_addr) else "127.0.0.1"
        self.images = Images(
            self._daemon, default=parts.image, allowed=parts.images_allowed, state_dir=parts.state_dir
        )
        self._deaths = Deaths(
            self._daemon,
            self._marks,
            on_reach=self._reached,
            describe=lambda gone: unreachable(self._daemon.address, gone.reason),
        )
        self._pumps = LogPumps(self._daemon)
        self._sampler = Sampler(self._daemon)
        self._settling = ThreadPoolExecutor(4, "container-end")
        self._lock = threading.Lock()
        self._listeners: list[Callable[[str | None], None]] = []
        self._starting: set[str] = set()  # names of containers that are being made
        self._running: dict[str, frozenset[str]] = {}  # container id -> its addresses, until it is settled
        self._seen: dict[str, frozenset[str]] = {}  # the same of what was found and is not watched yet
        self._peers: frozenset[str] = frozenset()
        self._settled: dict[str, Future[Exit]] = {}
        self._surroundings: _Surroundings | None = None
        self._foreign: tuple[str, ...] = ()
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
            self._join_network()  # whether a port is needed is known from now on
            return self.images.fetch(engine, report)

    def needs_port(self) -> bool:
        """Only where containers are reached by a published port."""
        return self._network.reach == "port"

    def notes(self) -> tuple[str, ...]:
        """What an administrator should know of the engines here, in sentences; empty when all is well."""
        notes = list(self._network.notes())
        here = self._surroundings
        if here and here.place.note:
            notes.append(here.place.note)
        notes += [
            f"container {name} carries LlamaMan's labels and no proof that this LlamaMan made it: left alone"
            for name in self._foreign
        ]
        return tuple(notes)

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
                return self._start(plan, name)
        finally:
            with self._lock:
                self._starting.discard(name)

    def _start(self, plan: LaunchPlan, name: str) -> Handle:
        image = self.images.require(plan.engine.path)
        made, published = self._container(plan, image)
        try:
            container_id = self._create(name, made.body)
        except DaemonError as error:
            if error.status != 404 or "network" not in error.text:
                raise
            self._forget_surroundings()  # somebody removed the network since it was looked at
            made, published = self._container(plan, image)
            container_id = self._create(name, made.body)
        try:
            self._start_made(plan, container_id)
            inspected = self._daemon.inspect(container_id)
            if inspected is None:
                raise LaunchError(f"container {name} was removed by somebody else while it started")
            if inspected["Image"] != image["Id"]:
                raise LaunchError(
                    f"the image '{plan.engine.path}' was replaced while it was started; try again"
                )
            if inspected["State"]["Running"]:
                address = self._network.address(inspected, name, published)
            else:  # it has ended at once; whoever watches it hears why
                address = Address(host=name, port=PORT)
        except BaseException:
            with contextlib.suppress(DaemonGone, DaemonError):  # the reason of the failure says more
                self._discard(container_id)
            raise
        self._note_running(container_id, _addresses(inspected))
        for note in made.notes:
            log.warning("instance %s: %s", plan.instance_id[:8], note)
        return Handle(plan.instance_id, plan.generation, None, None, address, container_id)

    def _container(self, plan: LaunchPlan, image: Json) -> tuple[container.Container, int]:
        """What will be created, checked after every plugin had its say, and the published port or 0."""
        here, reach = self._look_around(), self._join_network()
        files = engine_files(plan, private=self._p.private)
        mounts = files.mounts(lambda path: host_path(path, here.place, self._p.folders))
        account = account_for(files.statuses)
        known = plan.engine.flags
        spec = container.spec_of(plan, mounts=mounts, flags=files.flags, account=account, known_flags=known)
        request = LaunchRequest(model_path=plan.model_path, options=plan.options)
        facts = container.Facts(
            cpus=int(here.info.get("NCPU") or 0),
            memory_total=int(here.info.get("MemTotal") or 0),
            image_id=image["Id"],
            network=self._p.network,
            publish=(self._published_on, plan.port) if reach == "port" else None,
            init=here.has_init,
            key=self._p.key,
            account=account,
            mounts=mounts,
            flags=files.flags,
            patch=self._p.ask_plugins(request, spec),
            known_flags=known,
        )
        made = container.checked(plan, self._p.prefix, facts)
        return made, plan.port if reach == "port" else 0

    def _create(self, name: str, body: Json) -> str:
        try:
            return self._daemon.create(name, body)
        except DaemonError as error:
            if error.status != 409:
                raise
            # The name is taken: by what a killed manager left, or by somebody else's container.
            taken = self._daemon.inspect(name)
            if taken is None:
                return self._daemon.create(name, body)
            if self._marks_of(taken["Config"]["Labels"], taken["Image"]) is None:
                raise LaunchError(
                    f"a container named {name} exists already and is not LlamaMan's; "
                    "rename it, or set LLAMA_CONTAINER_PREFIX to something else"
                ) from error
            self._discard(taken["Id"])
            return self._daemon.create(name, body)

    def _start_made(self, plan: LaunchPlan, container_id: str) -> None:
        self._daemon.start(container_id)
        self._pumps.start(container_id, self._log_path(plan.instance_id), start_line(plan))

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
        if (addresses := self._seen.pop(container_id, None)) is not None:
            self._note_running(container_id, addresses)

        def ended(exit_: Exit) -> None:
            # Not in the thread that hears of ends: waiting for the last output must not hold up the next end.
            with contextlib.suppress(RuntimeError):  # the runtime is being closed; the next manager cleans up
                self._settling.submit(self._settle_and_tell, container_id, exit_, on_exit)

        return self._deaths.watch(container_id, ended)

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
            raise RuntimeLost(error.message, detail=error.detail, retry_after=_LOST_RETRY_S) from error

    def _find(self, node: str, install: str) -> list[Handle]:
        self._seen.clear()
        found: list[Handle] = []
        foreign: list[str] = []
        for summary in self._daemon.containers(labels.label_filter(node, install)):
            name = str((summary.get("Names") or ["?"])[0]).lstrip("/")
            marks = self._marks_of(summary["Labels"], summary["ImageID"])
            if marks is None:
                foreign.append(name)
                continue
            with self._lock:
                if name in self._starting:
                    continue
            handle = self._found(summary, name, marks)
            if handle:
                found.append(handle)
        self._foreign = tuple(foreign)
        return found

    def _found(self, summary: Json, name: str, marks: labels.Marks) -> Handle | None:
        container_id = str(summary["Id"])
        inspected = self._daemon.inspect(container_id)
        if inspected is None:
            return None
        if not inspected["State"]["Running"]:
            with self._lock:
                ours_to_settle = container_id in self._running
            if not ours_to_settle:
                log.info("removing container %s, which has ended", name)
                self._discard(container_id)
            return None
        self._join_network()
        address = self._network.address(inspected, name, _published(inspected))
        self._seen[container_id] = _addresses(inspected)
        return Handle(marks.instance_id, marks.generation, None, None, address, container_id)

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

    def last_lines(self, handle: Handle, count: int) -> list[str]:
        """The end of its output, from memory."""
        return self._pumps.last_lines(handle.container_id, count) if handle.container_id else []

    def peers(self) -> frozenset[str]:
        """The addresses of our running containers."""
        return self._peers

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
        on_exit(exit_)

    def _settle(self, container_id: str, exit_: Exit) -> Exit:
        """Finish the log and remove the container, once; whoever comes second gets the first one's exit."""
        with self._lock:
            mine = container_id not in self._settled
            outcome = self._settled.setdefault(container_id, Future())
        if not mine:
            return outcome.result(_LAST_OUTPUT_S + _AFTER_KILL_S)
        try:
            self._pumps.finish(container_id, _LAST_OUTPUT_S)
            self._sampler.forget(container_id)
            self._daemon.remove(container_id)
        finally:
            outcome.set_result(exit_)
            with self._lock:
                self._settled.pop(container_id, None)
            self._note_gone(container_id)
        return exit_

    def _discard(self, container_id: str) -> None:
        """Remove a container that nobody watches."""
        self._deaths.expect(container_id)
        self._daemon.remove(container_id)
        self._pumps.finish(container_id, _LAST_OUTPUT_S)
        self._note_gone(container_id)

    # --- small things --------------------------------------------------------------------------------

    def _marks_of(self, given: Mapping[str, str] | None, image_id: str) -> labels.Marks | None:
        marks = labels.proven(given, image_id, self._p.key)
        if marks is None or marks.node != self._p.node or marks.install != self._p.install:
            return None
        return marks

    def _look_around(self) -> _Surroundings:
        """Where we are and what the daemon's machine is; asked once per connection."""
        found = self._surroundings
        if found is None:
            info = self._daemon.info()
            place = find_place(self._daemon, self._p.in_docker)
            found = _Surroundings(place, info, has_init(self._daemon.version(), info))
            self._surroundings = found
        return found

    def _join_network(self) -> Reach:
        here = self._look_around()
        return self._network.prepare(here.place, here.info)

    def _forget_surroundings(self) -> None:
        self._surroundings = None
        self._network.forget()

    def _reached(self, reason: str | None) -> None:
        self._forget_surroundings()
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(reason)

    def _note_running(self, container_id: str, addresses: frozenset[str]) -> None:
        with self._lock:
            self._running[container_id] = addresses
            self._peers = frozenset().union(*self._running.values())

    def _note_gone(self, container_id: str) -> None:
        with self._lock:
            if self._running.pop(container_id, None) is not None:
                self._peers = frozenset().union(*self._running.values())

    def _log_path(self, instance_id: str) -> Path:
        return self._p.logs_dir / f"{instance_id}.log"

    @contextlib.contextmanager
    def _told(self, image: str = "") -> Iterator[None]:
        """The daemon's troubles as errors that say what to do."""
        try:
            yield
        except DaemonGone as gone:
            raise RuntimeLost(
                unreachable(self._daemon.address, gone.reason), retry_after=_LOST_RETRY_S
            ) from gone
        except DaemonError as error:
            raise LaunchError(explain(error, image), detail=error.text) from error


def _is_loopback(address: str | None) -> TypeGuard[str]:
    try:
        return address is not None and ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False


def _published(inspected: Json) -> int:
    """The host's port of a running container, 0 when it publishes none."""
    bindings = (inspected["NetworkSettings"].get("Ports") or {}).get("8080/tcp") or []
    return int(bindings[0]["HostPort"]) if bindings else 0


def _addresses(inspected: Json) -> frozenset[str]:
    """Of a running container, on all its networks."""
    networks: Mapping[str, Any] = inspected["NetworkSettings"].get("Networks") or {}
    fields = (each.get(name) for each in networks.values() for name in ("IPAddress", "GlobalIPv6Address"))
    return frozenset(address for address in fields if address)
