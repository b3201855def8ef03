"""Every way in which a container ends, on a real engine: heard of once, with who did it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llamaman.records import Exit
from llamaman.runtimes.causes import (
    CONTAINER_KILLED,
    CONTAINER_REMOVED,
    CONTAINER_STOPPED,
    NEVER_STARTED,
)
from llamaman.runtimes.docker.daemon import Daemon, DaemonGone
from llamaman.runtimes.docker.ends import Story, exit_from, has_ended, moment, read_event
from llamaman.runtimes.docker.events import Deaths

from ..conftest import until
from .boxes import Boxes

pytestmark = pytest.mark.real("docker")

FOREVER = "exec sleep 300"
OBEYS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"


@dataclass
class Ward:
    """Deaths over real containers, and what it told."""

    deaths: Deaths
    boxes: Boxes
    reached: list[str | None]
    told: dict[str, list[Exit]] = field(default_factory=dict)

    def watch(self, container_id: str) -> Callable[[], None]:
        heard = self.told.setdefault(container_id, [])
        return self.deaths.watch(container_id, heard.append)

    def watched(self, script: str, **host_config: object) -> str:
        container_id = self.boxes.run(script, **host_config)
        self.watch(container_id)
        return container_id

    def end_of(self, container_id: str, timeout_s: float = 20) -> Exit:
        """The only thing that was ever told of its end."""
        until(lambda: self.told[container_id], timeout_s)
        assert len(self.told[container_id]) == 1
        return self.told[container_id][0]


def ward_of(daemon: Daemon, boxes: Boxes) -> Ward:
    reached: list[str | None] = []
    deaths = Deaths(daemon, [boxes.label], on_reach=reached.append, describe=lambda gone: f"!{gone.reason}")
    deaths.start()
    return Ward(deaths, boxes, reached)


@pytest.fixture
def ward(boxes: Boxes) -> Iterator[Ward]:
    ward = ward_of(boxes.daemon, boxes)
    yield ward
    ward.deaths.close()


@pytest.fixture
def boxes() -> Iterator[Boxes]:
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("no Docker")
    daemon = Daemon(None)
    boxes = Boxes(daemon, "llamaman-test/server:lab")
    yield boxes
    boxes.remove_all()
    daemon.close()


# --- one end, one call -------------------------------------------------------------------------------


def test_an_end_by_itself_is_told_once_with_its_code_and_nobody_to_blame(ward: Ward) -> None:
    container_id = ward.watched("sleep 0.2; exit 3")
    before = time.time()
    ended = ward.end_of(container_id)
    assert (ended.code, ended.signal, ended.oom, ended.cause) == (3, None, False, None)
    assert abs(ended.at - before) < 20
    ward.boxes.daemon.remove(container_id)
    assert ward.deaths.exit_of(container_id) == ended, "known also after its removal"
    assert len(ward.told[container_id]) == 1


def test_docker_kill_is_blamed_on_somebody(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    ward.boxes.daemon.kill(container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (137, CONTAINER_KILLED)
    assert ended.oom is not True


def test_docker_kill_with_another_signal_too(ward: Ward) -> None:
    container_id = ward.watched(FOREVER, Init=True)
    ward.boxes.daemon.kill(container_id, "SIGUSR1")
    assert ward.end_of(container_id).cause == CONTAINER_KILLED


def test_docker_rm_is_told_apart_from_docker_kill(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    ward.boxes.daemon.remove(container_id)
    assert ward.end_of(container_id).cause == CONTAINER_REMOVED


@pytest.mark.parametrize(("script", "code"), [(OBEYS, 0), (FOREVER, 137)])
def test_docker_stop_is_told_apart_whether_it_was_obeyed_or_not(ward: Ward, script: str, code: int) -> None:
    container_id = ward.watched(script)
    until(lambda: ward.deaths._thread.is_alive())
    ward.boxes.daemon.stop(container_id, 1)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (code, CONTAINER_STOPPED)
    assert ward.reached == [], "asking anew whether the daemon is being shut down is nobody's business"


def test_docker_restart_is_an_end(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    restart(ward.boxes.daemon, container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (137, CONTAINER_STOPPED)


def test_a_container_that_somebody_restarted_before_we_came_runs(boxes: Boxes) -> None:
    container_id = boxes.run(FOREVER)
    restart(boxes.daemon, container_id)
    ward = ward_of(boxes.daemon, boxes)
    ward.watch(container_id)
    other = ward.watched("exit 3")
    assert ward.end_of(other).code == 3  # by then the history was heard, with the first one's end
    assert ward.told[container_id] == []
    assert ward.deaths.exit_of(container_id) is None
    ward.deaths.close()


def test_what_we_end_ourselves_is_nobody_elses_doing(ward: Ward) -> None:
    container_id = ward.watched(FOREVER)
    ward.deaths.expect(container_id)
    ward.boxes.daemon.kill(container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.cause) == (137, None)


def test_a_container_that_reaches_its_memory_limit(ward: Ward, tiny_model: Path) -> None:
    limit = 24 << 20
    container_id = ward.boxes.serve(tiny_model, "--ctx-size", "65536", Memory=limit, MemorySwap=limit)
    ward.watch(container_id)
    ended = ward.end_of(container_id)
    assert (ended.code, ended.oom) == (137, True)
    assert ended.cause is not None
    assert ended.cause.startswith("it ran out of memory and was killed: its limit is 24 MB;")


# --- who watches when --------------------------------------------------------------------------------


def test_whoever_watches_too_late_is_told_at_once(ward: Ward) -> None:
    ended, gone = ward.boxes.run("exit 4"), ward.boxes.run("exit 5")
    for container_id in (ended, gone):
        ward.boxes.daemon.wait(container_id, 20)
    ward.boxes.daemon.remove(gone)
    for container_id in (ended, gone):
        ward.watch(container_id)
        assert len(ward.told[container_id]) == 1, "told before watch() returned"
    assert ward.told[ended][0].code == 4
    assert ward.told[gone][0] == ward.deaths.exit_of(gone)
    ward.watch(ended)
    assert [exit_.code for exit_ in ward.told[ended]] == [4, 4], "each watch has its own call"


def test_everybody_is_told_though_one_of_them_fails(ward: Ward) -> None:
    container_id = ward.boxes.run("sleep 0.3; exit 3")

    def fail(_: Exit) -> None:
        raise RuntimeError("of this test")

    ward.deaths.watch(container_id, fail)
    ward.watch(container_id)
    assert ward.end_of(container_id).code == 3
    assert ward.end_of(ward.watched("exit 6")).code == 6


def test_who_cancelled_hears_nothing(ward: Ward) -> None:
    container_id = ward.boxes.run(FOREVER)
    cancel = ward.watch(container_id)
    other: list[Exit] = []
    ward.deaths.watch(container_id, other.append)
    cancel()
    cancel()
    ward.boxes.daemon.kill(container_id)
    until(lambda: other)
    assert ward.told[container_id] == []


def test_many_ends_at_once_are_each_told_once(ward: Ward) -> None:
    ids = [
        ward.boxes.run(f"exit {number}") for number in range(1, 7)
    ]  # some have ended when watched, some not
    threads = [threading.Thread(target=ward.watch, args=(each,)) for each in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ward.end_of(each).code for each in ids] == [1, 2, 3, 4, 5, 6]


def test_a_container_that_runs_has_no_exit(ward: Ward) -> None:
    assert ward.deaths.exit_of(ward.boxes.run(FOREVER)) is None


def test_a_container_that_is_about_to_be_started_has_not_ended(ward: Ward) -> None:
    container_id = ward.boxes.create("exit 7")
    ward.watch(container_id)
    assert ward.deaths.exit_of(container_id) is None
    assert ward.told[container_id] == []
    ward.boxes.daemon.start(container_id)
    assert ward.end_of(container_id).code == 7


def test_a_container_that_was_never_started_has_ended_after_a_minute(boxes: Boxes) -> None:
    inspected = boxes.daemon.inspect(boxes.create("exit 7"))
    assert inspected is not None
    created = moment(inspected["Created"])
    assert created is not None
    assert abs(created - time.time()) < 20
    assert not has_ended(inspected, created + 59)
    assert has_ended(inspected, created + 61)
    ended = exit_from(inspected, Story(), expected=False, after_break=False, now=5.0)
    assert ended == Exit(None, None, 5.0, cause=NEVER_STARTED)


def test_what_is_closed_tells_nothing_and_leaves_containers_alone(boxes: Boxes) -> None:
    ward = ward_of(boxes.daemon, boxes)
    container_id = ward.watched(FOREVER)
    ward.deaths.close()
    assert not ward.deaths._thread.is_alive()
    inspected = boxes.daemon.inspect(container_id)
    assert inspected is not None
    assert inspected["State"]["Running"]


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
