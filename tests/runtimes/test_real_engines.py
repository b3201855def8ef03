"""Real engines through the process runtime: both must look the same from outside."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from llamaman.records import Engine
from llamaman.runtimes import procfs
from llamaman.testing import write_slow_model, write_tiny_model

from .conftest import KEY, Lab, until

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


def test_it_answers_chat_completions_and_embeddings(real_lab: Lab, engine: Engine) -> None:
    handle = real_lab.launch(engine)
    status, answer = real_lab.call(handle, "/v1/chat/completions", CHAT)
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["model"] == "tiny"
    status, answer = real_lab.call(handle, "/v1/completions", {"prompt": "a b", "max_tokens": 4})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 4)


def test_it_streams(real_lab: Lab, engine: Engine) -> None:
    handle = real_lab.launch(engine)
    body = json.dumps(CHAT | {"stream": True}).encode()
    url = f"http://127.0.0.1:{handle.address.port}/v1/chat/completions"
    request = urllib.request.Request(
        url, body, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert len(events) >= 8


def test_its_side_doors_open_with_the_key_and_only_with_it(real_lab: Lab, engine: Engine) -> None:
    handle = real_lab.launch(engine)
    for path in ("/v1/models", "/props", "/slots", "/metrics"):
        assert real_lab.call(handle, path)[0] == 200, path
        assert real_lab.call(handle, path, key=None)[0] == 401, path
        assert real_lab.call(handle, path, key="wrong")[0] == 401, path
    assert real_lab.call(handle, "/health", key=None) == (200, {"status": "ok"})
    assert real_lab.call(handle, "/v1/chat/completions", CHAT, key="wrong")[0] == 401
    assert real_lab.call(handle, "/", key=None)[0] != 200  # no web page of its own


def test_context_and_slots_are_those_of_the_flags(real_lab: Lab, engine: Engine) -> None:
    flags = ("--ctx-size", "4096", "--threads", "1", "--parallel", "2", "--kv-unified")
    handle = real_lab.launch(engine, flags=flags)
    slots = real_lab.call(handle, "/slots")[1]
    assert [slot["n_ctx"] for slot in slots] == [4096, 4096]


def test_an_embedding_model_embeds(real_lab: Lab, engine: Engine, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "embed.gguf", embedding=True)
    flags = ("--ctx-size", "2048", "--threads", "1", "--parallel", "1", "--embeddings")
    handle = real_lab.launch(engine, model_path=model, flags=flags)
    status, answer = real_lab.call(handle, "/v1/embeddings", {"input": ["one", "two"]})
    assert status == 200
    vectors = [item["embedding"] for item in answer["data"]]
    assert len(vectors) == 2
    assert len(vectors[0]) == 64
    assert vectors[0] != vectors[1]


def test_every_launch_option_is_taken(real_lab: Lab, engine: Engine) -> None:
    flags = """--ctx-size 4096 --threads 1 --parallel 2 --kv-unified --n-gpu-layers all --flash-attn on
        --cache-type-k q8_0 --cache-type-v q8_0 --n-cpu-moe 1 --split-mode layer --tensor-split 1,2
        --load-mode none --cache-ram 16 --temp 0.5 --top-k 3 --seed 7 --batch-size 256 --ubatch-size 128
        --cache-reuse 16 --reasoning-format none --chat-template chatml --no-warmup"""
    handle = real_lab.launch(engine, flags=tuple(flags.split()))
    props = real_lab.call(handle, "/props")[1]
    sampling = props["default_generation_settings"]["params"]
    assert sampling["top_k"] == 3
    assert sampling["temperature"] == pytest.approx(0.5)
    assert props["total_slots"] == 2
    assert "im_start" in props["chat_template"]
    assert real_lab.call(handle, "/v1/chat/completions", CHAT)[0] == 200


def test_it_says_503_while_it_loads_and_ends_at_once_when_asked_then(
    real_lab: Lab, engine: Engine, tmp_path: Path
) -> None:
    model = write_slow_model(tmp_path / "large.gguf", layers=250, width=128)
    handle = real_lab.start(real_lab.plan(engine, model_path=model))

    def status() -> int:
        try:
            return real_lab.call(handle, "/health")[0]
        except OSError:
            return 0

    assert until(status) == 503
    exit_ = real_lab.runtime.stop(handle, 60)
    assert exit_.signal == signal.SIGTERM, "it had to be killed"


def test_it_ends_when_asked(real_lab: Lab, engine: Engine) -> None:
    handle = real_lab.launch(engine)
    exit_ = real_lab.runtime.stop(handle, 60)
    # It answers /health an instant before it takes over the signal, so both are an orderly end.
    assert exit_.code == 0 or exit_.signal == signal.SIGTERM


def test_it_ends_soon_while_it_streams(real_lab: Lab, engine: Engine, slow_model: Path) -> None:
    # llama-server b11434 would wait for the reader, who stays; the second request to end does not let it.
    handle = real_lab.launch(engine, model_path=slow_model, flags=("--ctx-size", "8192", "--threads", "1"))
    body = json.dumps(CHAT | {"max_tokens": 6000, "stream": True}).encode()
    url = f"http://127.0.0.1:{handle.address.port}/v1/chat/completions"
    request = urllib.request.Request(
        url, body, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.readline().startswith(b"data: ")
        exit_ = real_lab.runtime.stop(handle, 60)
        try:
            rest = answer.read()
        except (OSError, http.client.HTTPException):
            rest = b""
    # Asked twice, it leaves while its threads still work, and now and then aborts over that.
    assert exit_.code in (0, 1) or exit_.signal == signal.SIGABRT, "it had to be killed"
    assert b"[DONE]" not in rest


def test_it_ends_within_the_grace_time_whatever_it_does(
    real_lab: Lab, engine: Engine, slow_model: Path
) -> None:
    handle = real_lab.launch(engine, model_path=slow_model, flags=("--ctx-size", "8192", "--threads", "1"))
    failures: list[Exception] = []

    def ask() -> None:
        try:
            real_lab.call(handle, "/v1/chat/completions", CHAT | {"max_tokens": 6000})
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: any(slot["is_processing"] for slot in real_lab.call(handle, "/slots")[1]))
    exit_ = real_lab.runtime.stop(handle, 1)
    assert exit_.code == 0 or exit_.signal == signal.SIGKILL
    thread.join(60)
    assert len(failures) == 1


def test_a_busy_port_ends_it_with_status_1(real_lab: Lab, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        handle = real_lab.start(real_lab.plan(engine, port=taken.getsockname()[1]))
        assert real_lab.end_of(handle).code == 1


def test_it_listens_on_a_unix_socket(real_lab: Lab, engine: Engine, tmp_path: Path) -> None:
    path = f"/tmp/{os.getpid()}-{engine.name}.sock"  # the test's own folder may be too long for an address
    handle = real_lab.start(real_lab.plan(engine, host=path, port=0))
    assert handle.address.path == path

    def healthy() -> bool:
        assert real_lab.runtime.inspect(handle) is None, real_lab.log()
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(path)
            except OSError:
                return False
            client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b" 200 " in client.recv(100)

    try:
        until(healthy)
        assert real_lab.runtime.find("test-node", real_lab.folder.name) == [handle]
    finally:
        real_lab.runtime.stop(handle, 5)
        Path(path).unlink(missing_ok=True)


def test_it_is_found_again_by_its_marks(real_lab: Lab, engine: Engine) -> None:
    handle = real_lab.launch(engine, generation=9)
    assert real_lab.runtime.find("test-node", real_lab.folder.name) == [handle]


def test_a_settings_file_of_the_user_changes_nothing(
    real_lab: Lab, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "config" / "llama.cpp"
    settings.mkdir(parents=True)
    (settings / "config.ini").write_text("[*]\nctx-size = 512\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "512")
    handle = real_lab.launch(engine)
    assert real_lab.call(handle, "/slots")[1][0]["n_ctx"] == 2048


def test_it_needs_little_memory_for_a_tiny_model(real_lab: Lab, engine: Engine) -> None:
    handle = real_lab.launch(engine)
    status = Path(f"/proc/{handle.pid}/status").read_text()
    resident: Any = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident) < 120_000  # kB


def test_no_secret_is_in_the_argument_vector_or_the_log(real_lab: Lab, engine: Engine) -> None:
    handle = real_lab.launch(engine)
    real_lab.call(handle, "/v1/chat/completions", CHAT)
    assert KEY not in " ".join(procfs.command_line(handle.pid or 0))
    assert KEY not in real_lab.log()
