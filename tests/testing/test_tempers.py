"""The stand-ins misbehave exactly as they say, and otherwise pass for llama-server."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamaman.runtimes.engines import parse_help, parse_version
from llamaman.testing import KINDS, write_temper
from llamaman.testing.processes import free_ports


@contextmanager
def running(binary: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    (port,) = free_ports(1)
    arguments = ["--model", "m.gguf", "--host", "127.0.0.1", "--port", str(port), "--alias", "a", "-c", "-1"]
    child = subprocess.Popen(
        [str(binary), *arguments], env={"LLAMA_API_KEY": "k"}, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and child.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.01)
        yield child, port
    finally:
        child.kill()
        child.communicate()


def call(port: int, path: str, body: object = None, timeout: float = 20) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"X-Api-Key": "k"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_tells_flags_and_version_like_llama_server(tmp_path: Path, kind: str) -> None:
    binary = write_temper(tmp_path, kind)
    help_ = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True, env={}).stdout
    assert {"--model", "-m", "--ctx-size", "--no-ui", "--parallel", "--kv-unified"} <= parse_help(help_)
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, env={})
    assert parse_version(version.stdout + version.stderr) == "b11434"


def test_an_unknown_kind_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never_ready"):
        write_temper(tmp_path, "angry")


def test_polite_answers_plainly_and_streamed(tmp_path: Path) -> None:
    with running(write_temper(tmp_path, "polite")) as (_, port):
        chat = {"messages": [], "max_tokens": 3}
        plain = json.loads(call(port, "/v1/chat/completions", chat)[1])
        assert plain["usage"]["completion_tokens"] == 3
        streamed = call(port, "/v1/chat/completions", chat | {"stream": True})[1]
        assert streamed.count("word ") == 3
        assert streamed.rstrip().endswith("data: [DONE]")


def test_never_ready_stays_at_503(tmp_path: Path) -> None:
    with running(write_temper(tmp_path, "never_ready")) as (_, port):
        assert [call(port, path)[0] for path in ("/health", "/health", "/v1/models")] == [503] * 3


def test_dies_loading_leaves_its_tell_tale(tmp_path: Path) -> None:
    binary = write_temper(tmp_path, "dies_loading", after_ms=10, exit_code=7, lines=["E cannot load {model}"])
    with running(binary) as (child, _):
        assert "E cannot load m.gguf" in child.communicate(timeout=20)[1]
        assert child.returncode == 7


@pytest.mark.parametrize("body", [{"stream": True}, {}])
def test_dies_mid_stream_breaks_the_answer_off(tmp_path: Path, body: dict[str, bool]) -> None:
    with running(write_temper(tmp_path, "dies_mid_stream", signal="SIGABRT")) as (child, port):
        with pytest.raises((OSError, http.client.HTTPException)):
            call(port, "/v1/chat/completions", body)
        assert child.wait(20) == -6


def test_slow_is_slow_to_load_and_to_answer(tmp_path: Path) -> None:
    with running(write_temper(tmp_path, "slow", load_ms=60_000)) as (_, port):
        assert call(port, "/health")[0] == 503


def test_ignores_sigterm_goes_on(tmp_path: Path) -> None:
    with running(write_temper(tmp_path, "ignores_sigterm")) as (child, port):
        child.terminate()
        assert call(port, "/health")[0] == 200


def test_hangs_takes_the_request_and_stays_healthy(tmp_path: Path) -> None:
    with running(write_temper(tmp_path, "hangs")) as (_, port):
        with pytest.raises(OSError):
            call(port, "/v1/chat/completions", {}, timeout=0.3)
        assert call(port, "/health")[0] == 200
        assert json.loads(call(port, "/slots")[1])[0]["is_processing"]


def test_crash_on_request_answers_until_the_nth(tmp_path: Path) -> None:
    with running(write_temper(tmp_path, "crash_on_request", nth=2)) as (child, port):
        assert call(port, "/v1/completions", {})[0] == 200
        with pytest.raises(OSError):
            call(port, "/v1/completions", {})
        assert child.wait(20) == -11
