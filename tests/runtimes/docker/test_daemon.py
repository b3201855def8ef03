"""The calls to a daemon: what each does, and how every failure is told. All with a real one, where one can fail so."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone, Piece, Stream
from llamaman.runtimes.docker.faults import (
    BROKEN,
    CLOSED,
    DENIED,
    MISSING,
    NOT_A_SOCKET,
    REFUSED,
    TIMED_OUT,
    UNKNOWN_HOST,
)
from llamaman.runtimes.docker.stream import json_lines, log_frames, log_pieces, log_start
from llamaman.testing.private_daemon import PrivateDaemon, why_not
from llamaman.testing.processes import free_ports

real = pytest.mark.real("docker")


def until(holds: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


def gone(daemon: Daemon) -> str:
    with pytest.raises(DaemonGone) as told:
        daemon.version()
    return told.value.reason


# --- before the first call -----------------------------------------------------------------------------


def test_importing_the_package_imports_neither_the_sdk_nor_its_http_client() -> None:
    script = (
        "import sys\n"
        "from llamaman.runtimes.docker import connection, daemon, faults, network, place, sayings, stream\n"
        "daemon.Daemon('unix:///nowhere').address\n"
        "print([name for name in ('docker', 'requests', 'urllib3') if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("unix:///var/run/docker.sock", "/var/run/docker.sock"),
        ("unix://run/docker.sock", "/run/docker.sock"),
        ("/run/podman/podman.sock", "/run/podman/podman.sock"),
        ("tcp://10.0.0.2:2376", "tcp://10.0.0.2:2376"),
        ("tcp://user:secret@10.0.0.2:2376", "tcp://10.0.0.2:2376"),
    ],
)
def test_the_address_is_for_people_and_holds_no_password(host: str, address: str) -> None:
    assert Daemon(host).address == address
    assert Daemon(None, environ={"DOCKER_HOST": host}).address == address


def test_without_docker_host_a_rootless_daemon_of_our_user_is_found(tmp_path: Path) -> None:
    if Path("/var/run/docker.sock").exists():
        pytest.skip("this machine has a Docker socket, which goes first")
    assert Daemon(None, environ={"XDG_RUNTIME_DIR": str(tmp_path)}).address == "/var/run/docker.sock"
    with listening(tmp_path / "docker.sock"):
        assert Daemon(None, environ={"XDG_RUNTIME_DIR": str(tmp_path)}).address == str(
            tmp_path / "docker.sock"
        )


# --- away ----------------------------------------------------------------------------------------------


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


def accept_and_close(listener: socket.socket) -> None:
    listener.accept()[0].close()


def test_each_way_of_being_away_has_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    daemon = Daemon(f"unix://{path}", timeout_s=0.3)
    assert gone(daemon) == MISSING
    path.mkdir()
    assert gone(daemon) == NOT_A_SOCKET
    path.rmdir()
    with listening(path):
        assert gone(daemon) == TIMED_OUT
    assert gone(daemon) == REFUSED
    path.unlink()
    with listening(path) as listener:
        thread = threading.Thread(target=accept_and_close, args=(listener,))
        thread.start()
        assert gone(daemon) == BROKEN
        thread.join()
    assert gone(Daemon("tcp://127.0.0.1:1")) == REFUSED
    assert gone(Daemon("tcp://no-such-host.invalid:2375")) == UNKNOWN_HOST


def test_a_socket_that_we_may_not_use_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with listening(path):
        path.chmod(0)
        owner = os.geteuid()
        if owner == 0:
            os.seteuid(65534)
        try:
            reason = gone(Daemon(f"unix://{path}"))
        finally:
            os.seteuid(owner)
    assert reason == DENIED


@pytest.mark.parametrize("host", ["ssh://me@host", "npipe:////./pipe/docker_engine"])
def test_addresses_that_are_not_supported_say_what_to_do(host: str) -> None:
    reason = gone(Daemon(host))
    assert "not supported" in reason
    assert "unix://" in reason or "tcp://" in reason


@pytest.mark.parametrize("host", ["tcp://", "fd://3", "gopher://x:1"])
def test_an_address_that_is_none_is_told(host: str) -> None:
    assert "nvalid" in gone(Daemon(host)) or "not implemented" in gone(Daemon(host))


def test_tls_without_its_files_is_told(tmp_path: Path) -> None:
    environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    assert "certificate" in gone(Daemon("tcp://127.0.0.1:1", environ=environ))
    assert gone(Daemon("unix:///no/such.sock", environ=environ)) == MISSING, "a socket knows no TLS"


@contextmanager
def answering(path: Path, answer: Callable[[str], tuple[int, str]]) -> Iterator[list[str]]:
    """Something that is no Docker daemon; yields the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            status, text = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


def test_what_is_no_docker_daemon_is_told(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with answering(path, lambda _: (200, "<html>")), pytest.raises(DaemonError, match="Docker daemon"):
        Daemon(f"unix://{path}").version()
    path.unlink()
    with answering(path, lambda _: (200, "{}")):
        assert "no Docker daemon" in gone(Daemon(f"unix://{path}"))
    path.unlink()
    with answering(path, lambda _: (403, "<h1>Forbidden</h1>\nby rules")), pytest.raises(DaemonError) as told:
        Daemon(f"unix://{path}").version()
    assert (told.value.status, told.value.text) == (403, "<h1>Forbidden</h1> by rules")


def test_a_daemon_that_came_back_as_an_older_one_is_asked_again_in_its_version(tmp_path: Path) -> None:
    now = "1.50"

    def answer(path: str) -> tuple[int, str]:
        if path == "/version":
            return 200, f'{{"ApiVersion": "{now}"}}'
        if not path.startswith(f"/v{now}/"):
            return (
                400,
                f'{{"message": "client version 1.50 is too new. Maximum supported API version is {now}"}}',
            )
        return 200, '{"NCPU": 2}'

    with answering(tmp_path / "d.sock", answer) as asked:
        daemon = Daemon(f"unix://{tmp_path}/d.sock")
        assert daemon.info()["NCPU"] == 2
        now = "1.41"
        assert daemon.info()["NCPU"] == 2
    assert asked == ["/version", "/v1.50/info", "/v1.50/info", "/version", "/v1.41/info"]


# --- calls ---------------------------------------------------------------------------------------------


@real
def test_it_answers_whatever_proxies_the_environment_names(
    docker_host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    daemon = Daemon(docker_host)
    assert daemon.version()["ApiVersion"]
    assert daemon.info()["NCPU"] > 0


@real
def test_32_threads_may_call_at_once_and_connections_are_kept(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: daemon.info()["ID"], range(96)))
    assert len(set(answers)) == 1
    assert "Connection pool is full" not in caplog.text


@real
def test_the_life_of_a_container(daemon: Daemon, containers: Any, scratch_names: Any) -> None:
    container = containers.create("a", containers.serving(NetworkMode="none", PidsLimit=64))
    inspected = daemon.inspect(container)
    assert inspected
    assert inspected["HostConfig"]["PidsLimit"] == 64
    assert inspected["State"]["Status"] == "created"
    assert daemon.stats(container) is None
    daemon.start(container)
    daemon.start(container)
    assert [found["Id"] for found in daemon.containers(scratch_names.filters)] == [container]
    assert daemon.wait(container, 0.2) is None
    assert (daemon.stats(container) or {})["memory_stats"]["usage"] > 0
    daemon.kill(container)
    daemon.kill(container)
    assert daemon.wait(container, 5) is not None
    assert daemon.stats(container) is None
    assert [found["State"] for found in daemon.containers(scratch_names.filters)] == ["exited"]
    daemon.remove(container)
    daemon.remove(container)
    daemon.kill(container)
    assert daemon.inspect(container) is None
    assert daemon.stats(container) is None
    assert daemon.containers(scratch_names.filters) == []
    with pytest.raises(DaemonError) as told:
        daemon.wait(container, 1)
    assert told.value.status == 404


@real
def test_everybody_may_remove_the_same_container_at_once(daemon: Daemon, containers: Any) -> None:
    container = containers.run("a", containers.shell("sleep 60"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: daemon.remove(container), range(6)))
    assert daemon.inspect(container) is None


@real
def test_an_error_has_the_daemons_words_on_one_line(daemon: Daemon, scratch_names: Any) -> None:
    with pytest.raises(DaemonError) as told:
        daemon.create(f"{scratch_names.prefix}x", {"Image": "llamaman-test/none:at-all"})
    assert (told.value.status, told.value.text) == (404, "No such image: llamaman-test/none:at-all")
    assert DaemonError(500, "two\nlines").text == "two lines"


@real
@pytest.mark.parametrize("name", ["../containers/json", "..", "", "a//b", "x/../../info"])
def test_no_name_leads_to_another_call(daemon: Daemon, name: str) -> None:
    for call in (daemon.image, daemon.remove_image, daemon.remove_network, daemon.inspect):
        with pytest.raises(DaemonError) as told:
            call(name)
        assert told.value.status == 400


@real
def test_networks_are_found_by_their_whole_name(daemon: Daemon, containers: Any, scratch_names: Any) -> None:
    name = scratch_names.network
    assert daemon.networks(name) == []
    made = daemon.create_network(name, internal=True, labels=scratch_names.labels)
    found = daemon.networks(name)
    assert [(network["Id"], network["Internal"], network["Labels"]) for network in found] == [
        (made, True, scratch_names.labels)
    ]
    assert daemon.networks(name[:-1]) == []
    with pytest.raises(DaemonError) as told:
        daemon.create_network(name, internal=True, labels={})
    assert told.value.status == 409
    container = containers.run("a", containers.shell("sleep 60", NetworkMode=name))
    daemon.connect(name, container)
    with pytest.raises(DaemonError) as told:
        daemon.remove_network(name)
    assert told.value.status == 403
    daemon.remove(container)
    daemon.remove_network(name)
    daemon.remove_network(name)
    with pytest.raises(DaemonError) as told:
        daemon.connect(name, container)
    assert told.value.status == 404


@real
def test_images_that_are_here_and_one_that_is_not(daemon: Daemon, server_image: str) -> None:
    image = daemon.image(server_image)
    assert image
    assert daemon.image("llamaman-test/none:at-all") is None
    assert image["Id"] in [one["Id"] for one in daemon.images()]
    assert daemon.image(image["Id"]) == image
    with pytest.raises(DaemonError) as told:
        daemon.remove_image("llamaman-test/none:at-all")
    assert told.value.status == 404


@real
def test_a_pull_names_a_tag_and_a_refusal_is_an_error(daemon: Daemon) -> None:
    with pytest.raises(DaemonError, match="without a tag"):
        daemon.pull("llamaman-test/none", "")
    with pytest.raises(DaemonError, match="refused"):
        list(daemon.pull("127.0.0.1:1/none", "latest"))
    with pytest.raises(DaemonError, match=r"(?i)invalid"):
        list(daemon.pull("../containers", "latest"))


# --- long answers --------------------------------------------------------------------------------------


def in_thread(stream: Stream[Any]) -> tuple[threading.Thread, list[Any]]:
    """Reads a stream to its end; an exception ends up in the list."""
    read: list[Any] = []

    def run() -> None:
        try:
            read.extend(stream)  # one by one: others look at it meanwhile
        except Exception as error:
            read.append(error)

    thread = threading.Thread(target=run, daemon=True)  # one that never ends must not hold up the test run
    thread.start()
    return thread, read


@real
def test_events_are_those_of_the_labels_and_closing_ends_a_blocked_reader(
    daemon: Daemon, containers: Any, scratch_names: Any
) -> None:
    began = time.time()
    thread, read = in_thread(stream := daemon.events(None, scratch_names.filters))
    container = containers.ended("a")
    until(lambda: "die" in [event["Action"] for event in read])
    assert thread.is_alive()
    stream.close()
    thread.join(5)
    assert not thread.is_alive()
    stream.close()
    assert next(stream, None) is None
    assert [event["Action"] for event in read] == ["create", "start", "die"]
    assert {event["Actor"]["ID"] for event in read} == {container}
    assert read[-1]["Actor"]["Attributes"]["exitCode"] == "0"
    # What happened before can still be heard.
    again = daemon.events(began - 1, scratch_names.filters)
    assert [next(again)["Action"] for _ in range(3)] == ["create", "start", "die"]
    again.close()


@real
def test_silence_is_no_failure_of_a_long_answer(docker_host: str) -> None:
    daemon = Daemon(docker_host, timeout_s=0.5)
    thread, read = in_thread(stream := daemon.events(None, ["none=here"]))
    thread.join(1.2)
    assert thread.is_alive()
    stream.close()
    thread.join(5)
    assert read == []


@real
def test_closing_the_daemon_ends_every_reader_and_later_calls(docker_host: str) -> None:
    daemon = Daemon(docker_host)
    thread, read = in_thread(daemon.events(None, ["none=here"]))
    daemon.close()
    thread.join(5)
    assert not thread.is_alive()
    assert read == []
    assert gone(daemon) == CLOSED


WRITER = r"""
i=0
while [ $i -lt 300 ]; do echo "out $i"; echo "err $i" >&2; i=$((i+1)); done
head -c 50000 /dev/zero | tr '\0' x; echo
sleep 0.1
printf 'no end'
"""


@real
def test_a_log_can_be_left_and_taken_up_again_anywhere(daemon: Daemon, containers: Any) -> None:
    container = containers.ended("a", containers.shell(WRITER))

    def read(since: str | None) -> list[Piece]:
        return list(daemon.logs(container, since=since, follow=False))

    whole = read(None)
    for source, lines in (("stdout", "out"), ("stderr", "err")):
        text = b"".join(piece.data for piece in whole if piece.source == source)
        assert text.startswith(b"".join(b"%s %d\n" % (lines.encode(), i) for i in range(300)))
    assert b"".join(piece.data for piece in whole if piece.source == "stdout").endswith(
        b"\n" + b"x" * 50000 + b"\nno end"
    )
    for index in [*range(0, len(whole), 97), *range(len(whole) - 6, len(whole))]:
        assert read(whole[index].since) == whole[index + 1 :], index
    # A place that was found after going on is as good as one from the beginning.
    later = read(whole[3].since)
    assert read(later[100].since) == later[101:]


#: Seconds since 1970 and a line each, in the order of a log: the two streams are stamped before they are put in order,
#: and parts of a long line share a stamp.
STAMPED = [
    (10.5, b"a"),
    (10.75, b"b"),
    (10.625, b"c"),
    (10.75, b"d"),
    (10.75, b"e"),
    (12.0, b"f"),
    (11.5, b"g"),
]


def read_stamped(stamped: list[tuple[float, bytes]], since: str | None) -> list[Piece]:
    begin = float(log_start(since) or 0)
    frames = b""
    for seconds, text in stamped:
        if seconds >= begin:  # as a daemon does
            line = f"1970-01-01T00:00:{seconds:012.9f}Z ".encode() + text
            frames += b"\x01\0\0\0" + len(line).to_bytes(4, "big") + line
    return list(log_pieces(since, tty=False)(iter([frames])))


def test_a_log_whose_times_are_out_of_order_can_be_taken_up_again_as_well() -> None:
    whole = read_stamped(STAMPED, None)
    assert [piece.data for piece in whole] == [text for _, text in STAMPED]
    for index, piece in enumerate(whole):
        assert read_stamped(STAMPED, piece.since) == whole[index + 1 :], index


def test_a_clock_that_is_set_back_while_a_log_is_read_hides_nothing() -> None:
    assert [piece.data for piece in read_stamped([*STAMPED, (5.0, b"h"), (5.1, b"i")], None)][-2:] == [
        b"h",
        b"i",
    ]


@pytest.mark.parametrize(
    ("stamp", "since"),
    [
        ("1970-01-01T00:00:10.000000005Z", "9000000005+1"),
        ("1970-01-01T01:00:10.5+01:00", "9500000000+1"),
        ("1970-01-01T00:00:10Z", "9000000000+1"),
    ],
)
def test_time_stamps_of_docker_and_podman(stamp: str, since: str) -> None:
    line = f"{stamp} x".encode()
    frame = b"\x02\0\0\0" + len(line).to_bytes(4, "big") + line
    assert list(log_pieces(None, tty=False)(iter([frame]))) == [Piece("stderr", b"x", since)]


@real
def test_following_a_log_ends_with_the_container_and_with_close(daemon: Daemon, containers: Any) -> None:
    container = containers.run("a", containers.shell("echo one; sleep 60"))
    stream = daemon.logs(container, since=None, follow=True)
    thread, read = in_thread(stream)
    until(lambda: read)
    stream.close()
    thread.join(5)
    assert not thread.is_alive()
    thread, more = in_thread(daemon.logs(container, since=read[-1].since, follow=True))
    daemon.kill(container)
    thread.join(10)
    assert not thread.is_alive()
    assert [piece.data for piece in read] == [b"one\n"]
    assert more == []
    daemon.remove(container)
    with pytest.raises(DaemonError) as told:
        daemon.logs(container, since=None, follow=True)
    assert told.value.status == 404


@real
def test_a_terminals_output_is_read_as_well(daemon: Daemon, containers: Any) -> None:
    body = containers.shell("echo one; echo two >&2; printf three") | {"Tty": True}
    container = containers.ended("a", body)
    read = list(daemon.logs(container, since=None, follow=False))
    assert [piece.data for piece in read] == [b"one\r\n", b"two\r\n", b"three"]
    assert list(daemon.logs(container, since=read[0].since, follow=False)) == read[1:]


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


FRAMES = b"\x01\0\0\0\0\0\0\x03abc" + b"\x02\0\0\0\0\0\0\x00" + b"\x02\0\0\0\0\0\x01\x00" + b"y" * 256


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 1000])
def test_frames_and_objects_are_found_however_they_are_cut(size: int) -> None:
    assert list(log_frames(cut(FRAMES, size))) == [(1, b"abc"), (2, b""), (2, b"y" * 256)]
    objects = b'{"status":"a"}\r\n{"status":"b"}\n{"id":1}'
    assert list(json_lines(cut(objects, size))) == [{"status": "a"}, {"status": "b"}, {"id": 1}]


def test_what_ends_in_the_middle_is_a_broken_connection() -> None:
    with pytest.raises(DaemonGone, match=BROKEN):
        list(log_frames(iter([FRAMES[:-1]])))
    with pytest.raises(DaemonGone, match=BROKEN):
        list(json_lines(iter([b'{"status":"a"}\n{"sta'])))


def test_an_error_in_the_midst_of_an_answer_is_raised() -> None:
    said = iter([b'{"status":"a"}\n{"errorDetail":{"message":"no"},"error":"no\\nsuch"}\n'])
    lines = json_lines(said)
    next(lines)
    with pytest.raises(DaemonError) as told:
        next(lines)
    assert (told.value.status, told.value.text) == (None, "no such")
    with pytest.raises(DaemonError, match="no JSON"):
        list(json_lines(iter([b"<html>\n"])))


# --- a daemon that dies --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and for both sides one key and certificate."""
    if not shutil.which("openssl"):
        pytest.skip("install openssl to run this test")
    folder = tmp_path_factory.mktemp("tls")
    made = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 "
        "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    )
    subprocess.run(made.split(), cwd=folder, check=True, capture_output=True)
    shutil.copy(folder / "cert.pem", folder / "ca.pem")
    return folder


@real
def test_a_daemon_that_is_killed_stopped_and_started_again(certificates: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    (port,) = free_ports(1)
    tls = ("--tlsverify", *(f"--tls{name}={certificates / file}" for name, file in TLS_FILES))
    with PrivateDaemon("--host", f"tcp://127.0.0.1:{port}", *tls) as private:
        daemon = Daemon(private.host)
        thread, read = in_thread(daemon.events(None, []))
        environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
        over_tls = Daemon(f"tcp://127.0.0.1:{port}", environ=environ)
        assert over_tls.info()["ID"] == daemon.info()["ID"]
        assert over_tls.is_local is False
        tls_thread, tls_read = in_thread(stream := over_tls.events(None, []))
        stream.close()
        tls_thread.join(5)
        assert not tls_thread.is_alive()
        assert tls_read == []

        private.kill()
        thread.join(10)
        assert [type(one) for one in read] == [DaemonGone]
        assert gone(daemon) == REFUSED

        private.start()
        assert daemon.version()["ApiVersion"]
        thread, read = in_thread(daemon.events(None, []))
        private.stop()
        thread.join(10)
        assert not thread.is_alive()
        assert gone(daemon) == MISSING
        folder = private.folder
    assert not folder.exists()
    assert str(folder) not in Path("/proc/mounts").read_text()


TLS_FILES = (("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))


def interfaces() -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name.startswith(("dkr-", "docker"))}


@real
def test_a_container_of_a_killed_daemon_leaves_nothing_behind_in_a_test() -> None:
    if reason := why_not():
        pytest.skip(reason)
    from llamaman.testing.docker_images import NoImage, server_image

    before = interfaces()
    with PrivateDaemon() as private:
        try:
            image = server_image(private.host)
        except NoImage as error:
            pytest.skip(str(error))
        daemon = Daemon(private.host)
        daemon.create_network("lmt-private", internal=True, labels={})
        programs = [f"{folder}:{folder}:ro" for folder in ("/bin", "/lib", "/lib64", "/usr")]
        body = {
            "Image": image,
            "Entrypoint": ["/bin/sh", "-c", "trap exit TERM; while :; do echo x; sleep 0.05; done"],
            "HostConfig": {"Binds": programs, "NetworkMode": "lmt-private"},
        }
        container = daemon.create("lmt-private", body)
        daemon.start(container)
        inside = (daemon.inspect(container) or {})["State"]["Pid"]
        thread, read = in_thread(daemon.logs(container, since=None, follow=True))
        until(lambda: len(read) > 3)
        private.kill()
        thread.join(10)
        assert isinstance(read.pop(), DaemonGone)
        assert Path(f"/proc/{inside}").exists(), "it goes on without its daemon"
        private.start()
        more = list(daemon.logs(container, since=read[-1].since, follow=False))
        whole = list(daemon.logs(container, since=None, follow=False))
        assert (read + more)[: len(whole)] == whole[: len(read + more)]
        assert all(a.since != b.since for a, b in pairwise(whole))
        private.kill()
    assert not Path(f"/proc/{inside}").exists()
    assert not private.folder.exists()
    assert interfaces() >= before, "the machine's own daemon keeps its bridge"
    assert not Path("/sys/class/net", private.bridge).exists()
