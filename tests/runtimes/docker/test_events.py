"""Every way in which a container ends, on a real engine: heard of once, with who did it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llamaman.records import Exit
from llamaman.runtimes.causes import (
    CONTAINER_CUT_OFF,
    CONTAINER_KILLED,
    CONTAINER_REMOVED,
    CONTAINER_STOPPED,
    DAEMON_RESTARTED,
    NEVER_STARTED,
)
from llamaman.runtimes.docker import events
from llamaman.runtimes.docker.daemon import Daemon, DaemonGone
from llamaman.runtimes.docker.ends import Story, exit_from, has_ended, moment, only_of, read_event
from llamaman.runtimes.docker.events import Deaths
from llamaman.testing import docker_images as images
from llamaman.testing.docker_manager import docker_stop
from llamaman.testing.private_daemon import PrivateDaemon, why_not

from .conftest import Containers, ScratchNames
from .waiting import until

pytestmark = pytest.mark.real("docker")

FOREVER = "exec sleep 300"
OBEYS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


@dataclass
class Ward:
    """Deaths over real containers, and what it told."""

    containers: Containers
    deaths: Deaths
    reached: list[str | None]
    told: dict[str, list[Exit]] = field(default_factory=dict)
    told_when_reached: list[int] = field(default_factory=list)

    @property
    def daemon(self) -> Daemon:
        return self.containers.daemon

    def run(self, script: str, **host_config: object) -> str:
        return run(self.containers, script, **host_config)

    def watch(self, container_id: str) -> Callable[[], None]:
        heard = self.told.setdefault(container_id, [])
        return self.deaths.watch(container_id, heard.append)

    def watched(self, script: str, **host_config: object) -> str:
        container_id = self.run(script, **host_config)
        self.watch(container_id)
        return container_id

    def end_of(self, container_id: str, timeout_s: float = 20) -> Exit:
        """The only thing that was ever told of its end."""
        until(lambda: self.told[container_id], timeout_s)
        assert len(self.told[container_id]) == 1
        return self.told[container_id][0]


def run(containers: Containers, script: str, **host_config: object) -> str:
    return containers.run(secrets.token_hex(4), containers.shell(script, **host_config))


@contextlib.contextmanager
def ward_of(containers: Containers, daemon: Daemon | None = None) -> Iterator[Ward]:
    reached: list[str | None] = []
    told: dict[str, list[Exit]] = {}
    told_when_reached: list[int] = []

    def on_reach(reason: str | None) -> None:
        told_when_reached.append(sum(map(len, told.values())))
        reached.append(reason)

    deaths = Deaths(
        daemon or containers.daemon,
        containers.names.filters,
        network=containers.names.network,
        on_reach=on_reach,
        describe=lambda gone: f"told: {gone.reason}",
    )
    deaths.start()
    try:
        yield Ward(containers, deaths, reached, told, told_when_reached)
    finally:
        deaths.close()


@pytest.fixture
def ward(containers: Containers) -> Iterator[Ward]:
    with ward_of(containers) as ward:
        yield ward


# --- one end, one call -------------------------------------------------------------------------------


def test_an_end_by_itself_is_told_once_with_its_code_and_nobody_to_blame(ward: Ward) -> None:
    container_id = ward.watched("sleep 0.2; exit 3")
    before = time.time()
    ended = ward.end_of(container_id)
    assert (ended.code, ended.signal, ended.oom, ended.cause) == (3, None, False, None)
    assert abs(ended.at - before) < 20
    ward.daemon.remove(container_id)
    assert ward.deaths.exit_of(container_id) == ended, "known also after its removal"
    assert len(ward.told[container_id]) == 1


def test_docker_kill_is_blamed_on_somebody(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    ward.daemon.kill(container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (137, CONTAINER_KILLED)
    assert ended.oom is not True


def test_docker_kill_with_another_signal_too(ward: Ward) -> None:
    container_id = ward.watched(FOREVER, Init=True)
    ward.daemon.kill(container_id, "SIGUSR1")
    assert ward.end_of(container_id).cause == CONTAINER_KILLED


def test_docker_rm_is_told_apart_from_docker_kill(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    ward.daemon.remove(container_id)
    assert ward.end_of(container_id).cause == CONTAINER_REMOVED


@pytest.mark.parametrize(("script", "code"), [(OBEYS, 0), (FOREVER, 137)])
def test_docker_stop_is_told_apart_whether_it_was_obeyed_or_not(
    ward: Ward, docker_host: str, script: str, code: int
) -> None:
    container_id = ward.watched(script)
    docker_stop(docker_host, container_id, 1)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (code, CONTAINER_STOPPED)
    assert ward.reached == [], "asking anew whether the daemon is being shut down is nobody's business"


def test_docker_restart_is_an_end(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    restart(ward.daemon, container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (137, CONTAINER_STOPPED)


def test_a_container_that_somebody_restarted_before_we_came_runs(containers: Containers) -> None:
    container_id = run(containers, FOREVER)
    restart(containers.daemon, container_id)
    with ward_of(containers) as ward:
        ward.watch(container_id)
        other = ward.watched("exit 3")
        assert ward.end_of(other).code == 3  # by then the history was heard, with the first one's end
        assert ward.told[container_id] == []
        assert ward.deaths.exit_of(container_id) is None


def test_what_we_end_ourselves_is_nobody_elses_doing(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    ward.deaths.expect(container_id)
    ward.daemon.kill(container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (137, None)


def test_a_container_that_reaches_its_memory_limit(ward: Ward) -> None:
    limit = 24 << 20
    body = ward.containers.serving(NetworkMode="none", Memory=limit, MemorySwap=limit)
    body["Cmd"] += ["--ctx-size", "65536"]
    container_id = ward.containers.run("greedy", body)
    ward.watch(container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.oom) == (137, True)
    assert ended.cause is not None
    assert ended.cause.startswith("it ran out of memory and was killed: its limit is 24 MB;")


# --- who watches when --------------------------------------------------------------------------------


def test_one_that_left_its_place_without_a_word_of_the_daemon_is_found_out(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PING_EVERY_S", 0.1)
    moved = threading.Event()
    leaving, staying = ward.run(FOREVER), ward.watched(FOREVER)
    heard = ward.told.setdefault(leaving, [])
    ward.deaths.watch(leaving, heard.append, lambda inspected: not moved.is_set())
    other = ward.watched("exit 3")  # so that this thread has gone around once
    assert ward.end_of(other).code == 3
    assert heard == []
    moved.set()
    exit_ = ward.end_of(leaving)
    assert (exit_.code, exit_.cause) == (None, CONTAINER_CUT_OFF)
    assert ward.deaths.exit_of(leaving) == exit_
    assert ward.told[staying] == []


def test_one_that_ends_while_it_leaves_its_place_has_ended(ward: Ward) -> None:
    container_id = ward.run("exit 3", NetworkMode="none")
    until(lambda: has_ended(ward.daemon.inspect(container_id) or {}, time.time()))
    heard = ward.told.setdefault(container_id, [])
    ward.deaths.watch(container_id, heard.append, lambda inspected: False)
    assert ward.end_of(container_id).code == 3


def test_what_we_end_ourselves_has_not_left_its_place(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PING_EVERY_S", 0.05)
    moved = threading.Event()
    container_id = ward.run(FOREVER)
    heard = ward.told.setdefault(container_id, [])
    ward.deaths.watch(container_id, heard.append, lambda inspected: not moved.is_set())
    ward.deaths.expect(container_id)
    moved.set()
    other = ward.watched("exit 3")
    assert ward.end_of(other).code == 3
    assert heard == []
    ward.daemon.kill(container_id)
    assert ward.end_of(container_id).cause is None


def test_of_other_containers_and_networks_nothing_is_heard() -> None:
    def event(kind: str, attributes: dict[str, str], action: str = "disconnect") -> bytes:
        told = {"Type": kind, "Action": action, "Actor": {"ID": "x", "Attributes": attributes}}
        return json.dumps(told).encode() + b"\n"

    said = [
        event("container", {"a": "1", "b": "2"}),
        event("container", {"a": "1"}),
        event("container", {"a": "2", "b": "2"}),
        event("network", {"name": "ours", "container": "y"}),
        event("network", {"name": "ours-too", "container": "z"}),
        event("network", {"name": "ours"}, "create"),
        event("network", {"name": "ours"}, "destroy"),
        b'{"Type":"container"}\n',
    ]
    heard = list(only_of(["a=1", "b"], "ours")(iter(said)))
    assert [each["Actor"]["Attributes"] for each in heard] == [
        {"a": "1", "b": "2"},
        {"name": "ours", "container": "y"},
    ]
    podman = {"Type": "network", "Action": "disconnect", "Actor": {"ID": "p", "Attributes": {"name": "ours"}}}
    assert [read_event(each)[:2] for each in (heard[1], podman)] == [("y", "disconnect"), ("p", "disconnect")]


def test_whoever_watches_too_late_is_told_at_once(ward: Ward) -> None:
    ended, gone = ward.run("exit 4"), ward.run("exit 5")
    for container_id in (ended, gone):
        ward.daemon.wait(container_id, 20)
    ward.daemon.remove(gone)
    for container_id in (ended, gone):
        ward.watch(container_id)
        assert len(ward.told[container_id]) == 1, "told before watch() returned"
    assert ward.told[ended][0].code == 4
    assert ward.told[gone][0] == ward.deaths.exit_of(gone)
    ward.watch(ended)
    assert [exit_.code for exit_ in ward.told[ended]] == [4, 4], "each watch has its own call"


def test_everybody_is_told_though_one_of_them_fails(ward: Ward) -> None:
    container_id = ward.run("sleep 0.3; exit 3")

    def fail(_: Exit) -> None:
        raise RuntimeError("of this test")

    ward.deaths.watch(container_id, fail)
    ward.watch(container_id)
    assert ward.end_of(container_id).code == 3
    assert ward.end_of(ward.watched("exit 6")).code == 6


def test_who_cancelled_hears_nothing(ward: Ward) -> None:
    container_id = ward.run(FOREVER)
    cancel = ward.watch(container_id)
    other: list[Exit] = []
    ward.deaths.watch(container_id, other.append)
    cancel()
    cancel()
    ward.daemon.kill(container_id)
    until(lambda: other)
    assert ward.told[container_id] == []


def test_many_ends_at_once_are_each_told_once(ward: Ward) -> None:
    ids = [ward.run(f"exit {number}") for number in range(1, 7)]  # some have ended when watched, some not
    threads = [threading.Thread(target=ward.watch, args=(each,)) for each in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ward.end_of(each).code for each in ids] == [1, 2, 3, 4, 5, 6]


def test_a_container_that_runs_has_no_exit(ward: Ward) -> None:
    assert ward.deaths.exit_of(ward.run(FOREVER)) is None


def test_a_container_that_is_about_to_be_started_has_not_ended(ward: Ward) -> None:
    container_id = ward.containers.create("late", ward.containers.shell("exit 7"))
    ward.watch(container_id)
    assert ward.deaths.exit_of(container_id) is None
    assert ward.told[container_id] == []
    ward.daemon.start(container_id)
    assert ward.end_of(container_id).code == 7


def test_a_container_that_was_never_started_has_ended_after_a_minute(containers: Containers) -> None:
    inspected = containers.daemon.inspect(containers.create("never"))
    assert inspected is not None
    created = moment(inspected["Created"])
    assert created is not None
    assert abs(created - time.time()) < 20
    assert not has_ended(inspected, created + 59)
    assert has_ended(inspected, created + 61)
    ended = exit_from(inspected, Story(), expected=False, restarted=False, now=5.0)
    assert ended == Exit(None, None, 5.0, cause=NEVER_STARTED)


def test_what_is_closed_tells_nothing_and_leaves_containers_alone(containers: Containers) -> None:
    with ward_of(containers) as ward:
        container_id = ward.watched(FOREVER)
    until(lambda: not any(thread.name.startswith("docker-events") for thread in threading.enumerate()))
    inspected = containers.daemon.inspect(container_id)
    assert inspected is not None
    assert inspected["State"]["Running"]
    assert (ward.told[container_id], ward.reached) == ([], [])


# --- the daemon goes away ----------------------------------------------------------------------------


@dataclass
class Way:
    """A way to the daemon that can be taken away, which leaves what is connected alone."""

    path: Path
    real: Path

    def open(self) -> None:
        self.lead_to(self.real)

    def lead_to(self, target: Path) -> None:
        self.close()
        self.path.symlink_to(target)

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


@pytest.fixture
def way(docker_host: str, tmp_path: Path) -> Way:
    if not docker_host.startswith("unix://"):
        pytest.skip("the engine of DOCKER_HOST is not reached by a socket of this machine")
    return Way(tmp_path / "docker.sock", Path(docker_host.removeprefix("unix://")))


@contextlib.contextmanager
def far_ward_of(containers: Containers, way: Way) -> Iterator[Ward]:
    """One that goes by this way; its containers are made and ended without it."""
    daemon = Daemon(f"unix://{way.path}", timeout_s=60)
    with ward_of(containers, daemon) as ward:
        yield ward
    daemon.close()


@pytest.fixture
def far_ward(containers: Containers, way: Way) -> Iterator[Ward]:
    way.open()
    with far_ward_of(containers, way) as ward:
        yield ward


def cut_stream(ward: Ward) -> None:
    """As a proxy or a network does it now and then."""
    reader = ward.deaths._reader
    assert reader is not None
    until(lambda: reader._stream)
    reader._stream.close()  # type: ignore[union-attr]


def test_a_stream_that_merely_ends_is_nobodys_business_and_nothing_is_missed(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    for _ in range(3):
        cut_stream(ward)
    ward.daemon.kill(container_id)
    assert ward.end_of(container_id).cause == CONTAINER_KILLED
    assert ward.reached == []


def test_a_daemon_that_is_not_there_yet(containers: Containers, way: Way) -> None:
    with far_ward_of(containers, way) as ward:
        until(lambda: ward.reached)
        assert ward.deaths.lost() == "told: there is no such socket"
        killed, running = ward.watched(FOREVER), ward.watched(FOREVER)
        ward.daemon.kill(killed)
        way.open()
        until(lambda: len(ward.reached) == 2)
        assert ward.reached == ["told: there is no such socket", None], "each is told once"
        assert ward.deaths.lost() is None
        assert ward.told_when_reached == [0, 1], "ends are told before the daemon is said to be back"
        assert ward.end_of(killed).cause == CONTAINER_KILLED
        assert ward.told[running] == []


def test_what_somebody_did_while_we_could_not_reach_the_same_daemon_is_told(far_ward: Ward, way: Way) -> None:
    killed = far_ward.watched(FOREVER)
    way.close()
    cut_stream(far_ward)
    until(lambda: far_ward.reached)
    far_ward.daemon.kill(killed)
    way.open()
    assert far_ward.end_of(killed).cause == CONTAINER_KILLED
    until(lambda: len(far_ward.reached) == 2)
    assert far_ward.told_when_reached == [0, 1]


def test_a_daemon_that_does_not_answer_counts_as_lost(
    far_ward: Ward, way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PATIENCE_S", 0.2)
    container_id = far_ward.watched(FOREVER)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(os.fspath(tmp_path / "silent.sock"))
        silent.listen()
        way.lead_to(tmp_path / "silent.sock")
        cut_stream(far_ward)
        until(lambda: far_ward.reached)
        assert far_ward.deaths.lost() == "told: no answer in time"
        way.open()
    until(lambda: len(far_ward.reached) == 2)
    assert far_ward.told[container_id] == []


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateDaemon]:
    if reason := why_not():
        pytest.skip(reason)
    with PrivateDaemon() as private:
        yield private


@pytest.fixture
def private_ward(private: PrivateDaemon, tiny_model: Path) -> Iterator[Ward]:
    """On a daemon of its own, with a client of its own."""
    daemon = Daemon(private.host, timeout_s=2)
    containers = Containers(daemon, ScratchNames(), images.server_image(private.host), tiny_model)
    with ward_of(containers) as ward:
        yield ward
    containers.names.clean(daemon)
    daemon.close()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_daemon_that_is_restarted_ends_its_containers_and_is_blamed_once_it_is_back(
    private: PrivateDaemon, private_ward: Ward, how: str
) -> None:
    ward = private_ward
    running, done = ward.watched(OBEYS), ward.watched("exit 3")
    assert ward.end_of(done).code == 3
    getattr(private, how)()
    until(lambda: ward.reached)
    assert ward.deaths.lost() == ward.reached[0]
    assert ward.told[running] == [], "nobody knows how it is"
    with pytest.raises(DaemonGone):
        ward.deaths.exit_of(running)
    private.start()
    until(lambda: len(ward.reached) == 2, 60)
    assert ward.reached[1] is None
    assert ward.told_when_reached == [1, 2]
    assert ward.end_of(running).cause == DAEMON_RESTARTED

    another = ward.watched(FOREVER)
    ward.daemon.kill(another)
    assert ward.end_of(another).cause == CONTAINER_KILLED, "all goes on as before"
    assert len(ward.reached) == 2


def test_a_daemon_that_hangs_without_a_word_is_found_out(
    private: PrivateDaemon, private_ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PING_EVERY_S", 0.1)
    container_id = private_ward.watched(FOREVER)
    pid = int((private.folder / "docker.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: private_ward.reached)
        assert private_ward.deaths.lost() == "told: no answer in time"
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: len(private_ward.reached) == 2)
    assert private_ward.told[container_id] == []
    private_ward.daemon.kill(container_id)
    assert private_ward.end_of(container_id).cause == CONTAINER_KILLED


def test_a_signal_that_was_survived_is_not_the_cause_of_a_later_end() -> None:
    story = Story()
    for action, attributes in (("kill", {"signal": "9"}), ("die", {"exitCode": "137"}), ("start", {})):
        story.add(action, attributes, 1.0)
    inspected = {"State": {"Running": False, "Status": "exited", "ExitCode": 137}}
    story.add("die", {"exitCode": "137"}, 2.0)
    assert exit_from(inspected, story, expected=False, restarted=False, now=3.0).cause is None


# --- words that only other daemons use ---------------------------------------------------------------


def test_podmans_words_are_understood() -> None:
    event = {"status": "died", "id": "c1", "Actor": {"ID": "c1", "Attributes": {"containerExitCode": "9"}}}
    container_id, action, attributes, at = read_event(event)
    story = Story()
    story.add(action, attributes, at)
    assert (container_id, action, story.code) == ("c1", "die", 9)
    story.add("kill", {"signal": "SIGTERM"}, None)
    story.add("kill", {"signal": "KILL"}, None)
    assert story.signals == [15, 9]


def restart(daemon: Daemon, container_id: str) -> None:
    daemon._connection.call("POST", f"/containers/{container_id}/restart", query={"t": "0"})
