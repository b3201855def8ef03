"""The benchmark's instruments: a stand-in that speaks llama-server, and a load generator that counts right.

What they measure is not tested here: figures belong to ``make bench``.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import columns, dialects, doors, hammered, llamaman_proc, load, report, standin, storm
from benchmarks.load import Client, Job, Result
from llamaman.testing import processes, wire

CHAT = "/v1/chat/completions"
KEY = "sk-standin"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a stand-in started the way a manager starts an engine."""
    folder = tmp_path_factory.mktemp("standin")
    wrapper = standin.write_wrapper(folder / "llama-server")
    port = processes.free_ports(1)[0]
    flags = ["-m", "/models/bench.gguf", "--alias", "bench", "--port", str(port), "-np", "3", "-c", "2048"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(wrapper), *flags, "--no-such-flag", "7", "--metrics"],
            env={"PATH": os.environ["PATH"], "LLAMA_API_KEY": f"other,{KEY}"},
            stdout=log,
            stderr=log,
        )
    try:
        processes.wait_until(lambda: processes.accepts(port), "the stand-in", process, folder / "log")
        yield port
    finally:
        processes.stop(process)
    assert process.returncode == 0, "SIGTERM is a clean exit, as llama-server's is"


def get(port: int, path: str, key: str = KEY) -> tuple[int, Any]:
    return parsed(wire.call(port, "GET", path, key=key))


def post(port: int, body: object, path: str = CHAT) -> tuple[int, Any]:
    return parsed(wire.call(port, "POST", path, key=KEY, body=body))


def parsed(answer: wire.Answer) -> tuple[int, Any]:
    """The status and the JSON, or the text where it is none."""
    try:
        return answer.status, answer.json()
    except ValueError:
        return answer.status, answer.text


def raw_request(body: dict[str, object], path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    fields = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(data)}"
    head = f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n"
    return head.encode() + data


def events(text: str) -> list[Any]:
    parts = text.removesuffix("\n\n").split("\n\n")
    assert all(part.startswith("data: ") for part in parts)
    assert parts[-1] == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


def eventually(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def paced(body_tokens: int, pace_ms: int, stream: bool = True) -> dict[str, object]:
    return {"max_tokens": body_tokens, "stream": stream, "standin": {"pace_ms": pace_ms}}


# --- the stand-in's command line


def test_wrapper_is_an_executable_that_lists_one_flag_a_line_and_its_version(tmp_path: Path) -> None:
    wrapper = standin.write_wrapper(tmp_path / "an engine")
    assert wrapper.stat().st_mode & stat.S_IXUSR
    shown = subprocess.run([str(wrapper), "--help"], capture_output=True, text=True, check=True).stdout
    flags = {
        word.strip(",") for line in shown.splitlines() if line.startswith("-") for word in line[:40].split()
    }
    assert {"--model", "--alias", "--host", "--port", "--ctx-size", "--n-gpu-layers", "--parallel"} <= flags
    assert {"--kv-unified", "--flash-attn", "--load-mode", "--cache-type-k", "--split-mode", "-ngl"} <= flags
    version = subprocess.run([str(wrapper), "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("version: ")


def test_a_port_that_is_no_number_ends_the_start_with_the_flag_named(tmp_path: Path) -> None:
    wrapper = standin.write_wrapper(tmp_path / "engine")
    done = subprocess.run([str(wrapper), "--port", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--port" in done.stderr


# --- the stand-in's answers


def test_health_needs_no_key_and_everything_else_does(engine: int) -> None:
    assert get(engine, "/health", key="") == (200, {"status": "ok"})
    for key in ("", "sk-wrong"):
        status, body = get(engine, "/props", key=key)
        assert status == 401
        assert body["error"]["type"] == "authentication_error"


def test_props_slots_and_models_show_what_the_flags_said(engine: int) -> None:
    props = get(engine, "/props")[1]
    assert props["total_slots"] == 3
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert props["model_path"] == "/models/bench.gguf"
    slots = get(engine, "/slots")[1]
    assert [(slot["id"], slot["is_processing"]) for slot in slots] == [(0, False), (1, False), (2, False)]
    assert [model["id"] for model in get(engine, "/v1/models")[1]["data"]] == ["bench"]


def test_unknown_path_and_unreadable_body_get_llama_servers_error_object(engine: int) -> None:
    assert get(engine, "/nowhere") == (
        404,
        {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}},
    )
    status, body = post(engine, [1])
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"


def test_a_whole_chat_answer_has_message_usage_and_timings(engine: int) -> None:
    status, body = post(engine, {"max_tokens": 3})
    assert status == 200
    assert (body["object"], body["model"]) == ("chat.completion", "bench")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": " llama llama llama"}
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == body["timings"]["predicted_n"] == 3


def test_a_chat_stream_is_role_then_tokens_then_finish_with_timings_then_done(engine: int) -> None:
    status, text = post(engine, {"max_tokens": 3, "stream": True})
    role, *tokens, finish = events(text)
    assert status == 200
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert [token["choices"][0]["delta"] for token in tokens] == [{"content": " llama"}] * 3
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "length")
    assert finish["timings"]["predicted_n"] == 3
    assert "usage" not in finish


def test_asked_for_usage_comes_in_an_event_of_its_own_and_takes_the_timings_along(engine: int) -> None:
    text = post(engine, {"max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}})[1]
    finish, usage = events(text)[-2:]
    assert finish["choices"][0]["finish_reason"] == "length"
    assert "timings" not in finish
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == usage["timings"]["predicted_n"] == 1


def test_text_completions_put_finish_usage_and_timings_into_one_last_event(engine: int) -> None:
    assert post(engine, {"max_tokens": 2}, "/v1/completions")[1]["choices"][0]["text"] == " llama llama"
    *tokens, last = events(post(engine, {"max_tokens": 2, "stream": True}, "/v1/completions")[1])
    assert [token["choices"][0]["text"] for token in tokens] == [" llama", " llama"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["usage"]["completion_tokens"] == last["timings"]["predicted_n"] == 2


@pytest.mark.parametrize("burst", [1, 16])
def test_at_full_speed_each_token_is_still_a_chunk_of_its_own(engine: int, burst: int) -> None:
    with socket.create_connection(("127.0.0.1", engine), timeout=60) as sock:
        sock.sendall(raw_request({"max_tokens": 100, "stream": True, "standin": {"burst": burst}}))
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += sock.recv(65536)
    body = data.partition(b"\r\n\r\n")[2]
    sizes = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        sizes.append(int(size, 16))
        body = rest[sizes[-1] + 2 :]
    first, *tokens, finish, done, end = sizes
    assert len(tokens) == 99
    assert set(tokens) == {tokens[0]}
    assert 200 < tokens[0] < 280 < finish
    assert (done, end) == (len("data: [DONE]\n\n"), 0)
    assert first > tokens[0]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_closes_or_half_closes_frees_its_slot(engine: int, stream: bool, half: bool) -> None:
    before = get(engine, "/standin/stats")[1]["cancelled"]
    with socket.create_connection(("127.0.0.1", engine), timeout=60) as sock:
        sock.sendall(raw_request(paced(10_000, 20, stream)))
        assert eventually(lambda: get(engine, "/slots")[1][0]["is_processing"])
        if half:
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    assert eventually(lambda: get(engine, "/standin/stats")[1]["active"] == 0)
    assert get(engine, "/standin/stats")[1]["cancelled"] == before + 1


def test_a_reader_that_stalls_at_full_speed_loses_nothing_and_holds_nobody_up(engine: int) -> None:
    with socket.socket() as sock:
        sock.settimeout(60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", engine))
        sock.sendall(raw_request({"max_tokens": 50_000, "stream": True}))
        assert eventually(lambda: get(engine, "/standin/stats")[1]["stalled"] == 1), "12 MB fit no socket"
        assert post(engine, {"max_tokens": 1})[0] == 200
        data = bytearray()
        while not data.endswith(b"0\r\n\r\n"):
            piece = sock.recv(1 << 20)
            assert piece, "the stream ended without its last chunk"
            data += piece
    assert data.count(b'" llama"') == 50_000


@pytest.mark.parametrize("shape", ["text", "parts"])
def test_a_last_message_may_say_how_to_answer_where_no_field_gets_through(engine: int, shape: str) -> None:
    said = standin.WISH + json.dumps({"pace_ms": 30})
    content: object = said if shape == "text" else [{"type": "text", "text": said}]
    begun = time.monotonic()
    status, body = post(engine, {"max_tokens": 4, "messages": [{"role": "user", "content": content}]})
    assert (status, body["usage"]["completion_tokens"]) == (200, 4)
    assert time.monotonic() - begun >= 0.12, "four tokens of 30 ms each"


def test_a_wish_that_is_no_json_is_refused_and_a_message_like_any_other_is_none(engine: int) -> None:
    for content, status in ((standin.WISH + "{", 400), ("the stand-in, standin: {", 200), (None, 200)):
        body = {"max_tokens": 1, "messages": [{"role": "user", "content": content}]}
        assert post(engine, body)[0] == status, content


# --- the load generator


def job(engine: int, body: dict[str, object], **changes: Any) -> Job:
    given: dict[str, Any] = {"mode": "calls", "connections": 3, "seconds": 0.3, **changes}
    return Job(
        port=engine, path=CHAT, bodies=[json.dumps(body)], headers={"Authorization": f"Bearer {KEY}"}, **given
    )


def test_calls_are_counted_as_the_engine_counted_them(engine: int) -> None:
    before = get(engine, "/standin/stats")[1]["requests"]
    result = load.run(job(engine, {"max_tokens": 2}))
    begun = get(engine, "/standin/stats")[1]["requests"] - before
    assert result.errors == {}
    assert result.connects == 3, "connections are kept"
    assert begun - 3 <= result.answers <= begun, "all but those under way at the end"
    assert result.latency_p50 is not None
    assert result.latency_p99 is not None
    assert 0 < result.latency_p50 <= result.latency_p99
    assert result.ttft_p50 is None, "no event was seen, so there is no time to the first one"


def test_every_event_of_every_stream_is_counted(engine: int) -> None:
    body = {"max_tokens": 20, "stream": True, "standin": {"pace_ms": 2}}
    result = load.run(job(engine, body, mode="paced", connections=40, seconds=60, stagger=0.1))
    assert (result.answers, result.errors) == (40, {})
    assert result.events == 40 * (1 + 20 + 1 + 1), "role, tokens, finish, [DONE]"
    assert result.ttft_p50 is not None
    assert result.latency_p50 is not None
    assert result.ttft_p50 < result.latency_p50


def test_the_pace_is_kept(engine: int) -> None:
    result = load.run(job(engine, paced(11, 20), mode="paced", connections=1, seconds=60))
    assert result.latency_p50 is not None
    assert result.latency_p50 >= 200, "ten gaps of 20 ms, then the end"


def test_answers_that_are_not_200_are_failures_not_answers(engine: int) -> None:
    asked = Job("calls", engine, CHAT, ["{}"], connections=1, seconds=1)
    result = load.run(asked)
    assert result.answers == 0
    assert list(result.errors) == ["status 401"]


def test_streams_that_do_not_end_in_time_are_failures(engine: int) -> None:
    result = load.run(job(engine, paced(10_000, 50), mode="paced", connections=2, seconds=1))
    assert (result.answers, result.errors) == (0, {"no whole answer in time": 2})


def test_a_port_where_nothing_listens_is_a_failure() -> None:
    asked = Job("paced", processes.free_ports(1)[0], CHAT, ["{}"], connections=2, seconds=1)
    result = load.run(asked)
    assert result.answers == 0
    assert sum(result.errors.values()) == 2


def test_an_event_that_straddles_reads_is_counted_once_wherever_it_is_cut() -> None:
    stream = b'data: {"a":"data"}\n\ndata: [DONE]\n\n'
    for first in range(len(stream)):
        for second in range(first, len(stream)):
            client = Client(b"")
            for part in (stream[:first], stream[first:second], stream[second:]):
                client.on_body(part)
            assert client.events == 2, (first, second)


@pytest.mark.parametrize(
    ("pattern", "stream"),
    [
        ('"done":', b'{"a":"done","done":false}\n{"done":true,"done_reason":"stop"}\n'),
        ("event: b\n", b"event: a\ndata: {}\n\nevent: b\ndata: {}\n\nevent: b\ndata: {}\n\n"),
        ("\n", b'{"done":false}\n{"done":true}\n'),
    ],
)
def test_the_same_for_events_that_are_told_by_something_else(pattern: str, stream: bytes) -> None:
    for first in range(len(stream)):
        for second in range(first, len(stream)):
            client = Client(b"", pattern)
            for part in (stream[:first], stream[first:second], stream[second:]):
                client.on_body(part)
            assert client.events == 2, (first, second)


def test_the_gaps_between_the_tokens_of_paced_streams_are_measured(engine: int) -> None:
    result = load.run(job(engine, paced(11, 20), mode="paced", connections=2, seconds=60))
    assert result.gap_p50 is not None
    assert result.gap_p99 is not None
    assert result.gap_max is not None
    assert 0 < result.gap_p50 <= result.gap_p99 <= result.gap_max
    assert result.gap_max > 10
    assert load.run(job(engine, paced(3, 5), seconds=0.1)).gap_p50 is None, "of paced jobs alone"


# --- the dialects and the hammer


def test_every_dialect_streams_each_token_of_the_stand_in_once(tmp_path: Path) -> None:
    with llamaman_proc.prepare(tmp_path / "manager") as manager:
        llamaman_proc.launch(manager, 4)
        key = {"Authorization": f"Bearer {manager.inference_key}"}
        column = columns.Column(columns.LLAMAMAN, manager.proxy_port, key)
        for name, more in ((dialects.OPENAI, 3), (dialects.OLLAMA, 1), (dialects.ANTHROPIC, 0)):
            bodies = [dialects.body(name, 7, pace_ms=1)]
            asked = dialects.job(name, column, bodies, 4, 20.0, mode="paced")
            result = load.run(asked)
            assert (result.answers, result.errors) == (4, {}), name
            assert result.events == 4 * (7 + more), f"{name}: the tokens, and what frames them"


def test_translations_are_shown_beside_the_pass_through_and_beside_direct() -> None:
    rounds = {
        "direct": [result(400), result(4000)],
        "openai": [result(200), result(2000)],
        "ollama": [result(50), result(500)],
        "anthropic": [result(100, errors={"status 503": 2}), result(1000)],
    }
    found = dialects.Dialects(
        dict.fromkeys(dialects.STREAMS, rounds), dict.fromkeys(dialects.STREAMS, rounds)
    )
    speed = dialects.lines(found)[0]
    assert speed.by_openai["ollama"] == pytest.approx(0.25)
    assert speed.by_direct["ollama"] == pytest.approx(0.125)
    assert len(dialects.lines(found)) == 3 * len(dialects.STREAMS)
    text = dialects.text(found)
    assert "275 (0.25, 0.12)" in text
    assert "failures in anthropic, 1 stream, full speed: 2 x status 503" in text
    nothing = {name: list[Result]() for name in dialects.COLUMNS}
    empty = dialects.Dialects(
        dict.fromkeys(dialects.STREAMS, nothing), dict.fromkeys(dialects.STREAMS, nothing)
    )
    assert dialects.lines(empty)[0].values["ollama"] is None


def test_a_hammer_asks_every_path_until_it_is_told_to_stop_and_counts_what_it_hears(engine: int) -> None:
    over = threading.Event()
    threading.Timer(0.2, over.set).start()
    knocks = hammered.knock(hammered.Hammer(engine, KEY), over)
    assert knocks.errors == {}
    assert {told.rpartition(" ")[0] for told in knocks.statuses} == set(hammered.PATHS)
    assert "/metrics 200" in knocks.statuses
    assert "/login 401" in knocks.statuses, "the stand-in asks a stranger for a key"
    assert knocks.per_second > 0
    assert knocks.latency_p99 is not None


def test_a_hammer_that_finds_nobody_says_so() -> None:
    over = threading.Event()
    threading.Timer(0.1, over.set).start()
    knocks = hammered.knock(hammered.Hammer(processes.free_ports(1)[0], KEY), over, connections=1)
    assert (knocks.statuses, set(knocks.errors)) == ({}, {"ConnectionRefusedError"})


def test_each_figure_is_shown_alone_and_while_the_dashboard_is_hammered() -> None:
    knocks = hammered.Knocks(2.0, {"/login 200": 10}, {}, 1.0, 5.0)
    alone = hammered.Side(result(100, p99=10), 1.0, 2.0, None)
    beside = hammered.Side(result(100, p99=30, errors={"status 503": 1}), 3.0, 4.0, knocks)
    rows = {row.title: row for row in hammered.rows(hammered.Hammered([alone], [beside]))}
    assert rows["400 streams, TTFT p99"].values["llamaman"] == 10
    assert rows["400 streams, TTFT p99, hammered"].values["llamaman"] == 30
    assert rows["loop lag, longest, hammered"].values["llamaman"] == 4
    assert rows["management answers meanwhile"].values["llamaman"] == 5
    assert "1 x status 503" in report.table(list(rows.values()))
    assert hammered.rows(None)[0].values["llamaman"] is None


# --- the report


def result(rate: float, p99: float = 1.0, errors: dict[str, int] | None = None) -> Result:
    return Result(int(rate), int(rate), 1.0, p99, p99, p99, p99, 0.5, 1, errors or {})


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    rounds = {
        "nginx": [result(100), result(1000), result(100)],
        "llamaman": [result(50), result(500), result(20)],
    }
    row = report.comparison_rows({"calls16": rounds})[0]
    assert row.ratio == pytest.approx(0.5)
    assert report.verdict(row) == "holds"


def test_a_missed_target_and_a_missing_column_are_printed_as_what_they_are() -> None:
    missed = {"nginx": [result(100)], "llamaman": [result(29)]}
    alone = {"direct": [result(100)]}
    assert report.verdict(report.comparison_rows({"calls16": missed})[0]) == "MISSED"
    row = report.comparison_rows({"calls16": alone})[0]
    assert report.verdict(row) == "not measured"
    assert row.values.get("llamaman") is None


def test_a_target_does_not_hold_on_answers_that_failed() -> None:
    rounds = {"nginx": [result(100)], "llamaman": [result(100, errors={"status 503": 2})]}
    row = report.comparison_rows({"calls16": rounds})[0]
    assert report.verdict(row) == "MISSED"
    assert "2 x status 503" in report.table([row])


def test_a_missed_target_of_the_locks_is_printed_and_one_that_was_not_measured_is_not_held() -> None:
    slow = doors.Locked(on=80, off=100, ratio=0.8, processor=0.9, errors={})
    failed = doors.Locked(on=95, off=100, ratio=0.95, processor=0.9, errors={"status 401": 3})
    assert [report.verdict(report.auth_rows(each)[2]) for each in (slow, failed)] == ["MISSED", "MISSED"]
    assert [report.verdict(row) for row in report.auth_rows(None)] == ["not measured"]
    apart = report.login_rows(doors.Logins(known=100, unknown=112))[-1]
    assert (apart.values["llamaman"], report.verdict(apart)) == (pytest.approx(12), "MISSED")
    calm = doors.Answers({"303": 1000}, {})
    stormy = doors.Stormy(
        memory_mb=150,
        chunks_before=1000,
        chunks_during=950,
        loss=0.05,
        lag_p99=20,
        lag_max=60,
        idle_lag_p99=1,
        idle_lag_max=2,
        answered_s=3,
        weather=calm,
        streaming_weather=calm,
    )
    rows = report.storm_rows(stormy)
    verdicts = {row.title: report.verdict(row) for row in rows if row.target}
    assert list(verdicts.values()) == ["holds", "holds", "MISSED", "holds"], verdicts
    assert {report.verdict(row) for row in report.storm_rows(None)} == {"not measured"}


# --- the storm of logins


@pytest.fixture
def login_page() -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """A port where every login is refused, and who came with what."""
    seen: list[tuple[str, bytes]] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self.rfile.readline()
            length = next(int(each[15:]) for each in head.splitlines() if each.startswith(b"Content-Length:"))
            seen.append((self.client_address[0], head + self.rfile.read(length)))
            if b"drop" not in seen[-1][1]:
                self.wfile.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], seen
        server.shutdown()


def test_every_login_of_a_storm_comes_from_an_address_of_its_own_with_its_form(
    login_page: tuple[int, list[tuple[str, bytes]]],
) -> None:
    port, seen = login_page
    forms = [{"csrf_token": "t", "username": "one"}, {"csrf_token": "t", "username": "two"}]
    weather = storm.result(storm.start(storm.Storm(port, 60, "a=b", forms, time.monotonic() + 0.5)))
    assert (weather.statuses, weather.errors) == ({"401": 60}, {})
    assert len({address for address, _ in seen}) == 60
    assert sum(data.endswith(b"username=two") for _, data in seen) == 30
    assert all(b"\r\nCookie: a=b\r\n" in data for _, data in seen)


def test_a_login_without_an_answer_is_a_failure(login_page: tuple[int, list[tuple[str, bytes]]]) -> None:
    weather = storm.run(storm.Storm(login_page[0], 2, "a=b", [{"username": "drop"}], 0.0))
    assert (weather.statuses, weather.errors) == ({}, {"closed without an answer": 2})
    assert weather.latency_p50 is None
