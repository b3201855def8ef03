"""What containers say gets into their log files, whatever happens to the disk, to the daemon and to us."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamaman.runtimes import logfiles
from llamaman.runtimes.causes import START_MARK
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.line_ring import LineRing
from llamaman.runtimes.docker.log_file import LogFile
from llamaman.runtimes.docker.log_place import Candidate, choose, coarseness
from llamaman.runtimes.docker.log_pump import LogPumps
from llamaman.testing import docker_images as images
from llamaman.testing.private_daemon import PrivateDaemon, why_not

from .conftest import Containers, ScratchNames
from .waiting import until

real = pytest.mark.real("docker")

FIRST = f"{START_MARK} this test ===\n".encode()
#: Numbers from both streams and a line of 40 kB every now and then, until it is ended.
CHATTER = """
i=0; trap 'exit 0' TERM
while :; do
    echo "out $i"; echo "err $i" >&2
    if [ $((i % 50)) = 0 ]; then printf "long %040000d end $i\\n" 0; fi
    i=$((i + 1)); if [ $((i % 20)) = 0 ]; then sleep 0.02; fi
done
"""


@dataclass
class Spring:
    """Pumps over real containers, and a log folder."""

    containers: Containers
    folder: Path
    pumps: LogPumps

    @property
    def daemon(self) -> Daemon:
        return self.containers.daemon

    def path(self, container_id: str) -> Path:
        return self.folder / f"{container_id[:12]}.log"

    def run(self, script: str, **host_config: object) -> str:
        return self.containers.run(secrets.token_hex(4), self.containers.shell(script, **host_config))

    def pumped(self, script: str, **host_config: object) -> str:
        """A container of which we read from its start."""
        container_id = self.run(script, **host_config)
        self.pumps.start(container_id, self.path(container_id), FIRST)
        return container_id

    def next_manager(self, container_id: str) -> None:
        """As if a new manager found it running."""
        self.pumps.close()
        self.pumps = LogPumps(self.daemon)
        self.pumps.start(container_id, self.path(container_id), None)

    def log(self, container_id: str) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return self.path(container_id).read_bytes()
        return b""

    def finished(self, container_id: str) -> bytes:
        """The log when the container has ended by itself."""
        self.daemon.wait(container_id, 30)
        self.pumps.finish(container_id, 20)
        return self.log(container_id)

    def ended(self, container_id: str) -> bytes:
        self.daemon.kill(container_id, "SIGTERM")
        return self.finished(container_id)

    def all_output(self, container_id: str) -> bytes:
        """What the daemon has of it."""
        return b"".join(each.data for each in self.daemon.logs(container_id, since=None, follow=False))

    def stream_of(self, container_id: str) -> object:
        return self.pumps._pumps[container_id]._stream

    def cut(self, container_id: str) -> None:
        stream = until(lambda: self.stream_of(container_id))
        stream.close()
        until(lambda: self.stream_of(container_id) is not stream)


@pytest.fixture
def spring(containers: Containers, tmp_path: Path) -> Iterator[Spring]:
    spring = Spring(containers, tmp_path / "logs", LogPumps(containers.daemon))
    yield spring
    spring.pumps.close()
    assert not any(thread.name.startswith("docker-log") for thread in threading.enumerate())


# --- what gets into the file -------------------------------------------------------------------------


@real
def test_everything_is_in_the_file_when_finish_returns(spring: Spring) -> None:
    container_id = spring.pumped("for i in $(seq 300); do echo line $i; done")
    assert spring.finished(container_id) == FIRST + b"".join(b"line %d\n" % i for i in range(1, 301))
    assert spring.path(container_id).stat().st_mode & 0o777 == 0o600
    assert not any(thread.name.startswith("docker-log") for thread in threading.enumerate())
    assert spring.pumps.last_lines(container_id, 2) == ["line 299\n", "line 300\n"], "also when it has ended"


@real
def test_long_lines_and_strange_bytes(spring: Spring) -> None:
    script = (
        "printf '\\033[31mred\\n'; printf 'crlf\\r\\n'; printf 'bad \\377 byte\\n';"
        "printf '%040000d\\n' 0; printf 'no end'"
    )
    container_id = spring.pumped(script)
    # Docker itself replaces what is no UTF-8.
    odd = "\x1b[31mred\ncrlf\r\nbad � byte\n".encode()
    assert spring.finished(container_id) == FIRST + odd + b"0" * 40000 + b"\nno end"
    lines = spring.pumps.last_lines(container_id, 10)
    assert lines[:3] == ["\\x1b[31mred\n", "crlf\n", "bad � byte\n"]
    assert lines[3] == "0" * (16 << 10) + " [...]\n"
    assert lines[4:] == ["no end"]
    assert lines == logfiles.tail(spring.path(container_id), 5), "as the file shows them"


@real
def test_lines_of_the_two_streams_do_not_run_into_each_other(spring: Spring) -> None:
    container_id = spring.pumped(
        "(printf %040000d 0; sleep 0.3; echo tail) & sleep 0.1; echo other >&2; wait"
    )
    log = spring.finished(container_id)
    assert b"\nother\n" in log
    assert log.replace(b"\nother\n", b"").count(b"0") >= 32 << 10


@real
def test_a_second_start_does_nothing(spring: Spring) -> None:
    container_id = spring.pumped("echo once; sleep 0.2")
    spring.pumps.start(container_id, spring.path(container_id), None)
    spring.pumps.start(container_id, spring.path(container_id), FIRST)
    assert spring.finished(container_id) == FIRST + b"once\n"
    spring.pumps.start(container_id, spring.path(container_id), None)
    spring.pumps.finish(container_id, 5)
    assert spring.log(container_id) == FIRST + b"once\n"


@real
def test_finish_gives_up_on_a_container_that_goes_on_talking(spring: Spring) -> None:
    container_id = spring.pumped("while :; do echo x; sleep 0.05; done")
    begun = time.monotonic()
    spring.pumps.finish(container_id, 0.2)
    assert time.monotonic() - begun < 5
    assert not any(thread.name.startswith("docker-log") for thread in threading.enumerate())


@real
def test_what_a_container_said_before_somebody_removed_it_is_kept(spring: Spring) -> None:
    container_id = spring.pumped("echo important; exec sleep 300")
    until(lambda: b"important" in spring.log(container_id))
    spring.daemon.remove(container_id)
    spring.pumps.finish(container_id, 10)
    assert spring.log(container_id) == FIRST + b"important\n"
    assert spring.pumps.last_lines(container_id, 5) == ["important\n"]


@real
def test_of_a_stranger_there_are_no_lines(spring: Spring) -> None:
    assert spring.pumps.last_lines("0" * 64, 5) == []
    spring.pumps.finish("0" * 64, 5)


@real
def test_a_flood_is_drained_and_the_file_stays_near_its_size(spring: Spring) -> None:
    spring.pumps = LogPumps(spring.daemon, rotate_at=256 << 10)
    container_id = spring.pumped("seq -f '%0100.0f' 30000; echo done")
    largest = 0

    def drained() -> bool:
        nonlocal largest
        with contextlib.suppress(FileNotFoundError):
            largest = max(largest, spring.path(container_id).stat().st_size)
        return spring.pumps.last_lines(container_id, 1) == ["done\n"]

    until(drained, 30)
    spring.pumps.finish(container_id, 10)
    assert 0 < largest < 600 << 10
    kept = [logfiles.older(spring.path(container_id), 2), logfiles.older(spring.path(container_id), 1)]
    whole = b"".join(path.read_bytes() for path in kept) + spring.log(container_id)
    lines = whole.split(b"\n")[1:-2]
    assert len(lines) > 4000
    assert [int(line) for line in lines] == list(range(int(lines[0]), 30001)), (
        "nothing lost between two files"
    )


# --- the daemon goes away, or we do ------------------------------------------------------------------


def check_whole(spring: Spring, container_id: str, log: bytes) -> None:
    """Nothing lost, nothing twice: each stream as the daemon has it, in order."""
    said = spring.all_output(container_id)
    assert len(said) > 1000
    # The file may break a long line in two where the other stream came between; nothing else differs.
    for word in (b"out", b"err", b"end"):
        numbers = re.findall(rb"%s (\d+)" % word, log)
        assert numbers == re.findall(rb"%s (\d+)" % word, said)
    assert log.count(b"0" * 1000) == said.count(b"0" * 1000)
    assert log.replace(b"\n", b"") == (FIRST + said).replace(b"\n", b"")


@real
def test_a_stream_that_breaks_off_goes_on_where_it_was(spring: Spring) -> None:
    container_id = spring.pumped(CHATTER)
    for _ in range(3):
        spring.cut(container_id)
    check_whole(spring, container_id, spring.ended(container_id))


@real
def test_a_stream_that_breaks_off_when_the_container_has_ended_is_read_to_its_end(spring: Spring) -> None:
    container_id = spring.pumped("seq -f '%0100.0f' 40000; echo done")
    spring.daemon.wait(container_id, 30)
    stream = spring.stream_of(container_id)
    assert stream is not None
    stream.close()  # type: ignore[attr-defined] # most is not read yet: the container is faster than we are
    log = spring.finished(container_id)
    assert [int(line) for line in log.split(b"\n")[1:-2]] == list(range(1, 40001))


@real
def test_lines_that_repeat_themselves_are_neither_lost_nor_doubled(spring: Spring) -> None:
    container_id = spring.pumped("for i in $(seq 300); do echo same; sleep 0.004; done")
    for _ in range(3):
        size = len(spring.log(container_id))
        until(lambda size=size: len(spring.log(container_id)) > size + 50)
        spring.pumps.close()
        time.sleep(0.05)  # it goes on saying the same
        spring.next_manager(container_id)
    assert spring.finished(container_id) == FIRST + b"same\n" * 300


@real
@pytest.mark.parametrize("clock", ["exact", "killed before the time was set", "whole seconds"])
def test_the_next_manager_goes_on_where_the_last_one_was(spring: Spring, clock: str) -> None:
    container_id = spring.pumped(CHATTER)
    path = spring.path(container_id)
    for _ in range(4):
        size = len(spring.log(container_id))
        until(lambda size=size: len(spring.log(container_id)) > size + 5000)
        spring.pumps.close()
        if clock == "whole seconds":
            os.utime(path, (path.stat().st_mtime // 1,) * 2)
        elif clock != "exact":
            time.sleep(0.05)  # the container goes on talking
            os.utime(path)
        spring.next_manager(container_id)
    check_whole(spring, container_id, spring.ended(container_id))


@pytest.mark.parametrize("count", [10, 1000])
def test_of_lines_that_are_all_the_same_the_time_decides(count: int) -> None:
    end = b"same\n" * (2 * count)
    pieces = [Candidate(f"{number}", b"same\n", number) for number in range(count)]
    assert choose(pieces[: count // 2], end, count) == f"{count // 2 - 1}", "the newest that is not too young"
    if count * 4 > 512:
        assert choose(pieces, end, count // 2) == f"{count // 2}"


def test_only_a_file_system_with_coarse_times_may_have_what_looks_younger_than_the_file() -> None:
    second = 1_000_000_000
    assert coarseness(1_700_000_000 * second) == 2 * second
    assert coarseness(1_700_000_000 * second + 123_456_700) == 200
    assert coarseness(1_700_000_000 * second + 123_456_789) == 0


@real
def test_the_next_manager_goes_on_after_a_rotation(spring: Spring) -> None:
    container_id = spring.pumped(CHATTER)
    until(lambda: len(spring.log(container_id)) > 50_000)
    spring.pumps.close()
    assert logfiles.rotate_if_large(spring.path(container_id), at_bytes=1)
    spring.next_manager(container_id)
    log = spring.ended(container_id)
    check_whole(spring, container_id, logfiles.older(spring.path(container_id), 1).read_bytes() + log)


@real
def test_a_manager_killed_right_after_the_first_line_leaves_all_to_the_next(spring: Spring) -> None:
    container_id = spring.run("echo early; exec sleep 300")
    until(lambda: spring.all_output(container_id))
    spring.folder.mkdir(mode=0o700)
    spring.path(container_id).write_bytes(b"of an earlier run\n" + FIRST)
    spring.next_manager(container_id)
    until(lambda: b"early" in spring.log(container_id))
    assert spring.log(container_id) == b"of an earlier run\n" + FIRST + b"early\n"


@real
def test_a_log_that_is_gone_is_begun_anew_by_the_next_manager(spring: Spring) -> None:
    container_id = spring.pumped("echo early; exec sleep 300")
    until(lambda: b"early" in spring.log(container_id))
    spring.pumps.close()
    spring.path(container_id).unlink()
    spring.next_manager(container_id)
    until(lambda: spring.log(container_id) == b"early\n")


@real
def test_the_next_manager_has_the_last_lines_of_this_run(spring: Spring) -> None:
    container_id = spring.pumped("echo early; exec sleep 300")
    until(lambda: b"early" in spring.log(container_id))
    spring.path(container_id).write_bytes(b"of an earlier run\n" + spring.log(container_id))
    spring.next_manager(container_id)
    until(lambda: spring.pumps.last_lines(container_id, 9) == [FIRST.decode(), "early\n"])


@real
def test_a_daemon_that_was_away_is_read_on_from(tmp_path: Path, tiny_model: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with PrivateDaemon("--live-restore") as private:
        daemon = Daemon(private.host)
        containers = Containers(daemon, ScratchNames(), images.server_image(private.host), tiny_model)
        spring = Spring(containers, tmp_path / "logs", LogPumps(daemon))
        container_id = spring.pumped(CHATTER)
        until(lambda: len(spring.log(container_id)) > 1000)
        private.kill()
        private.start()
        size = len(spring.log(container_id))
        until(lambda: len(spring.log(container_id)) > size + 1000)
        check_whole(spring, container_id, spring.ended(container_id))
        spring.pumps.close()
        daemon.close()


# --- the disk ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 64 KiB, and a function that mounts it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", folder], check=True)

    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    try:
        mount("size=64k,mode=700")
    except subprocess.CalledProcessError:
        pytest.skip("file systems cannot be mounted here")
    yield folder, mount
    subprocess.run(["umount", "--lazy", folder], check=True)


def lost_in(log: bytes) -> list[tuple[int, str]]:
    """Of each mark, how many lines and why."""
    marks = re.findall(rb"^\[\.\.\. (\d+) lines? w\w+ lost here: (.+) \.\.\.\]$", log, re.MULTILINE)
    return [(int(number), why.decode()) for number, why in marks]


@real
def test_a_full_disk_loses_lines_and_says_how_many(
    spring: Spring, small_disk: tuple[Path, Callable[[str], None]], tmp_path: Path
) -> None:
    folder, mount = small_disk
    spring.folder = folder / "logs"
    (tmp_path / "go").mkdir()
    container_id = spring.pumped(
        "seq -f 'line %090.0f' 2000; while [ ! -e /go/on ]; do sleep 0.05; done; seq -f 'line %090.0f' 2001 2010",
        Binds=[f"{tmp_path / 'go'}:/go:ro"],
    )
    until(lambda: spring.pumps.last_lines(container_id, 1) == ["line " + f"{2000:090}\n"])
    assert len(spring.log(container_id)) <= 64 << 10
    mount("remount,size=1m")
    (tmp_path / "go" / "on").touch()
    log = spring.finished(container_id)
    ((lost, why),) = lost_in(log)
    assert why == "the disk is full"
    numbers = [int(number) for number in re.findall(rb"^line (\d{90})$", log, re.MULTILINE)]
    assert len(numbers) + lost == 2010
    assert numbers[:500] == list(range(1, 501))
    assert all(re.fullmatch(rb"line \d{90}|=.*|\[.*\]|", line) for line in log.split(b"\n")), "no half lines"


def test_a_disk_that_is_full_now_and_then_has_a_mark_for_each_time(
    small_disk: tuple[Path, Callable[[str], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamaman.runtimes.docker.log_file._RETRY_S", 0)
    folder, mount = small_disk
    file = LogFile(folder / "logs" / "x.log")

    def write(numbers: range) -> None:
        for number in numbers:
            file.write(b"line %095d\n" % number, source="stdout", moment=number)

    write(range(1000))
    mount("remount,size=128k")
    write(range(1000, 2000))
    mount("remount,size=1m")
    write(range(2000, 2010))
    file.close()
    log = (folder / "logs" / "x.log").read_bytes()
    lost = lost_in(log)
    assert len(lost) == 2
    assert log.count(b"line ") + sum(number for number, _ in lost) == 2010
    assert (folder / "logs" / "x.log").stat().st_mtime_ns == 2009


def test_a_read_only_disk_and_a_mark_that_is_written_at_the_end(
    small_disk: tuple[Path, Callable[[str], None]],
) -> None:
    folder, mount = small_disk
    file = LogFile(folder / "logs" / "x.log")
    file.write(b"before\n", source="stdout", moment=1)
    file.write(b"half a li", source="stdout", moment=1)
    path = folder / "logs" / "x.log"
    file._let_go()  # else the kernel refuses to make it read-only
    mount("remount,ro")
    file.write(b"ne\n", source="stdout", moment=2)
    file.write(b"lost\n", source="stdout", moment=3)
    mount("remount,rw")
    file.close()
    mark = b"[... 2 lines were lost here: the file system is read-only ...]\n"
    assert path.read_bytes() == b"before\nhalf a li\n" + mark


def test_a_log_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "logs" / "x.log")
    file.write(b"one\n", source="stdout", moment=None)
    shutil.rmtree(tmp_path / "logs")

    def there() -> bool:
        file.write(b"two\n", source="stdout", moment=None)
        return (tmp_path / "logs" / "x.log").exists()

    until(there)
    file.close()
    assert (tmp_path / "logs" / "x.log").read_bytes().startswith(b"two\n")


def test_a_log_that_may_not_be_written_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (tmp_path / "logs" / "x.log").symlink_to(victim)
    file = LogFile(tmp_path / "logs" / "x.log")
    file.write(b"one\n", source="stdout", moment=None)
    (tmp_path / "logs" / "x.log").unlink()
    file.close()
    assert victim.read_bytes() == b""
    ((lost, why),) = lost_in((tmp_path / "logs" / "x.log").read_bytes())
    assert lost == 1
    assert "symbolic links" in why or "log file" in why


# --- the ring ----------------------------------------------------------------------------------------


def test_the_ring_holds_the_newest_lines_and_no_more() -> None:
    ring = LineRing()
    for number in range(1000):
        ring.add("stdout", b"%d\n" % number)
    assert ring.last(1000) == [f"{number}\n" for number in range(600, 1000)]
    assert ring.last(2) == ["998\n", "999\n"]
    assert ring.last(0) == []
    for _ in range(100):
        ring.add("stdout", b"x" * (10 << 10) + b"\n")
    assert len(ring.last(1000)) == 25
    ring.add("stderr", b"a" * (1 << 20))
    ring.add("stdout", b"whole\n")
    assert ring.last(2) == ["whole\n", "a" * (16 << 10) + " [...]"]
