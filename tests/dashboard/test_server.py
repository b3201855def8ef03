"""The hop holds when Flask is late, dies or ends, and log streams hold no thread."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from management_door import DEADLINE_S, Manager, eventually, running_manager

from llamaman.access import Scope
from llamaman.dashboard.server import THREADS, DashboardServer
from llamaman.records import Identity


def test_a_server_that_dies_is_started_again_and_answers(manager: Manager) -> None:
    key = manager.key(Scope.VIEW)
    assert manager.call("GET", "/api/instances", key=key)[0] == 200
    first = manager.server._server
    first.trigger.pull_trigger(lambda: [each.close() for each in list(first._map.values())])
    eventually(lambda: manager.server._server not in (None, first), "waitress was not started again")
    assert manager.call("GET", "/api/instances", key=key)[0] == 200


def test_while_flask_is_away_the_front_door_says_503_and_when_to_come_back(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamaman.gateway import hop

    monkeypatch.setattr(hop, "READY_S", 0.1)
    key = manager.key(Scope.VIEW)
    assert manager.server.wait_ready(20)
    manager.server.stop()
    status, body, answer = manager.raw("GET", "/api/instances", key=key)
    assert status == 503
    assert set(body) == {"error"}
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_request_that_comes_before_flask_waits_for_it(tmp_path: Path) -> None:
    with running_manager(tmp_path) as manager:
        assert manager.call("GET", "/api/version")[0] in (200, 401)
        assert manager.call("GET", "/api/instances", key=manager.key(Scope.VIEW)) == (200, [])


def test_stopping_ends_every_thread_and_removes_the_socket(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with running_manager(tmp_path) as manager:
        assert manager.server.wait_ready(20)
        path = manager.server.socket_path
        assert path.exists()
    assert not path.parent.exists()
    ours = ("dashboard", "waitress")
    eventually(
        lambda: not [each for each in set(threading.enumerate()) - before if each.name.startswith(ours)],
        "threads are left",
    )


def test_an_app_that_cannot_be_made_is_tried_again_and_the_reason_is_kept(tmp_path: Path) -> None:
    tries: list[float] = []

    def make_app(secret: bytes) -> object:
        tries.append(time.monotonic())
        raise RuntimeError("the database is away")

    server = DashboardServer(make_app, tmp_path)  # type: ignore[arg-type] # it makes no app, on purpose
    server.start()
    try:
        eventually(lambda: len(tries) >= 2)
        assert server.failure == "RuntimeError: the database is away"
        assert not server.is_ready
    finally:
        server.stop()


def test_stopping_before_it_is_ready_ends_it_too(tmp_path: Path) -> None:
    with running_manager(tmp_path) as manager:
        manager.server.stop()
        assert not manager.server.is_ready


def test_stopping_does_not_pull_the_connection_from_under_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from waitress.channel import HTTPChannel

    flush = HTTPChannel._flush_some
    writing = threading.Event()

    def slowly(channel: HTTPChannel, do_close: bool = True) -> Any:
        if threading.current_thread().name.startswith("waitress"):
            writing.set()
            deadline = time.monotonic() + 0.5  # the stop has to come while it writes
            while channel.connected and time.monotonic() < deadline:
                time.sleep(0.01)
        return flush(channel, do_close)

    monkeypatch.setattr(HTTPChannel, "_flush_some", slowly)
    with running_manager(tmp_path) as manager:
        assert manager.server.wait_ready(20)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(manager.server.socket_path))
            client.sendall(b"GET /api/instances HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert writing.wait(20)
            manager.server.stop()
            assert client.recv(100).startswith(b"HTTP/1.1 403")
    assert not [record for record in caplog.records if record.exc_info]


# --- log streams ---------------------------------------------------------------------------------------


def launched(manager: Manager) -> tuple[str, Path]:
    body = {"model": "tiny-q8_0"}
    instance = manager.call("POST", "/api/instances", body, manager.key(Scope.MANAGE))[1]
    return instance["id"], Path(instance["log_file"])


class Stream:
    """A log stream read frame by frame."""

    def __init__(self, manager: Manager, instance_id: str, key: str) -> None:
        path = f"/api/instances/{instance_id}/logs/stream"
        self.connection, self.answer = manager.open("GET", path, key=key)

    def lines(self) -> list[str]:
        """The next frame's lines."""
        while True:
            line = self.answer.readline()
            assert line, "the stream ended"
            if line.startswith(b"data: "):
                frame = json.loads(line[6:])
                assert set(frame) == {"lines"}
                assert self.answer.readline() == b"\n"
                return list(frame["lines"])

    def ends(self) -> None:
        """Nothing but keepalives comes any more, and then the end."""
        deadline = time.monotonic() + DEADLINE_S
        while line := self.answer.readline():
            assert line in (b": keepalive\n", b"\n")
            assert time.monotonic() < deadline, "the stream goes on"

    def close(self) -> None:
        sock = self.connection.sock
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
        self.answer.close()
        self.connection.close()


def test_a_log_stream_shows_the_last_lines_and_then_new_ones(manager: Manager) -> None:
    instance_id, log = launched(manager)
    log.write_text("".join(f"line {number}\n" for number in range(300)))
    stream = Stream(manager, instance_id, manager.key(Scope.MANAGE))
    assert stream.answer.headers["Content-Type"] == "text/event-stream"
    assert stream.lines() == [f"line {number}\n" for number in range(200, 300)]
    with log.open("a") as file:
        file.write("new\nunfini")
    assert stream.lines() == ["new\n"]
    with log.open("a") as file:
        file.write("shed\n")
    assert stream.lines() == ["unfinished\n"]
    stream.close()


def test_a_log_stream_begins_before_there_is_a_log_and_survives_its_rotation(manager: Manager) -> None:
    from llamaman.runtimes.logfiles import rotate_if_large

    instance_id, log = launched(manager)
    stream = Stream(manager, instance_id, manager.key(Scope.MANAGE))
    assert stream.lines() == []
    log.write_text("first\n")
    assert stream.lines() == ["first\n"]
    rotate_if_large(log, at_bytes=1)
    with log.open("a") as file:
        file.write("x\n")
    assert stream.lines() == ["x\n"]
    stream.close()


def test_secrets_in_a_log_stream_are_masked(manager: Manager) -> None:
    instance_id, log = launched(manager)
    secret = "llm-" + "A" * 43
    log.write_text(f"before {secret}\n")
    stream = Stream(manager, instance_id, manager.key(Scope.MANAGE))
    assert secret not in stream.lines()[0]
    with log.open("a") as file:
        file.write(f"after {secret}\n")
    assert secret not in stream.lines()[0]
    stream.close()


def test_a_log_stream_ends_when_the_instance_is_removed(manager: Manager) -> None:
    instance_id, _ = launched(manager)
    key = manager.key(Scope.MANAGE)
    stream = Stream(manager, instance_id, key)
    stream.lines()
    manager.call("DELETE", f"/api/instances/{instance_id}", key=key)
    manager.call("DELETE", f"/api/instances/{instance_id}/remove", key=key)
    stream.ends()


def test_a_log_stream_ends_when_its_key_is_revoked(manager: Manager) -> None:
    instance_id, _ = launched(manager)
    record, key = manager.kernel.keys.create("k", Scope.MANAGE, by=Identity("local", "test", Scope.ADMIN))
    stream = Stream(manager, instance_id, key)
    stream.lines()
    manager.kernel.keys.revoke(record.id, by=Identity("local", "test", Scope.ADMIN))
    stream.ends()


def test_silence_is_filled_with_keepalives(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    from llamaman.gateway import log_stream

    monkeypatch.setattr(log_stream, "KEEPALIVE_S", 0.3)
    instance_id, _ = launched(manager)
    stream = Stream(manager, instance_id, manager.key(Scope.MANAGE))
    stream.lines()
    assert [stream.answer.readline() for _ in range(2)] == [b": keepalive\n", b"\n"]
    stream.close()


@pytest.mark.parametrize("scope", [None, Scope.VIEW, Scope.INFERENCE])
def test_a_log_stream_is_for_those_who_manage(manager: Manager, scope: Scope | None) -> None:
    instance_id, _ = launched(manager)
    key = manager.key(scope) if scope else None
    status = manager.raw("GET", f"/api/instances/{instance_id}/logs/stream", key=key)[0]
    assert status == (403 if scope else 401)


def test_a_log_stream_of_no_instance_is_a_404(manager: Manager) -> None:
    status, body, _ = manager.raw("GET", "/api/instances/none/logs/stream", key=manager.key(Scope.MANAGE))
    assert (status, body) == (404, {"error": "Not found"})


def test_many_open_log_streams_leave_management_free_are_bounded_and_end_with_their_clients(
    manager: Manager,
) -> None:
    from llamaman.limits import STREAMS_PER_CALLER

    instance_id, log = launched(manager)
    log.write_text("x\n")
    key = manager.key(Scope.MANAGE)
    streams = [Stream(manager, instance_id, key) for _ in range(STREAMS_PER_CALLER)]
    assert len(streams) > THREADS
    for stream in streams:
        assert stream.lines() == ["x\n"]
    assert manager.call("GET", "/api/instances", key=key)[0] == 200
    path = f"/api/instances/{instance_id}/logs/stream"
    assert manager.raw("GET", path, key=key)[0] == 429
    for stream in streams:
        stream.close()

    def opens_again() -> bool:
        connection, answer = manager.open("GET", path, key=key)
        connection.close()
        return answer.status == 200

    eventually(opens_again, "the closed streams still count")
