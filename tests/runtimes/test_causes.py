"""Why an engine died: every sentence from a real death where one can be had, and never a path or a port."""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from llamaman.records import Engine, Exit
from llamaman.runtimes import logfiles
from llamaman.runtimes.causes import (
    CONTAINER_KILLED,
    CONTAINER_REMOVED,
    CONTAINER_STOPPED,
    DAEMON_RESTARTED,
    START_MARK,
    cause,
    out_of_memory,
)
from llamaman.testing import write_tiny_model
from llamaman.testing.engines import available_engines

from .conftest import Lab

DIED = Exit(1, None, 0.0)

NO_MODEL = (
    "0.01 E srv    load_model: failed to load model, '/srv/models/x.gguf'",
    "0.01 E srv  llama_server: exiting due to model loading error",
)


def cut(share: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return spoil


def other_architecture(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"llama", b"alpac"))


#: How a model file is spoiled -> words that the cause must have.
SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no GGUF": (lambda path: path.write_bytes(b"hello world" * 1000), "not a GGUF file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "tensors cut": (cut(0.9), "incomplete"),
    "header cut": (cut(0.01), "incomplete"),
    "newer version": (lambda path: path.write_bytes(b"GGUF\x09\0\0\0" + b"\0" * 16), "GGUF version 9"),
    "architecture": (other_architecture, "architecture 'alpac'"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_model_file(real_lab: Lab, engine: Engine, tmp_path: Path, how: str) -> None:
    model = write_tiny_model(tmp_path / "private-folder.gguf")
    spoil, words = SPOILED[how]
    spoil(model)
    check_death(real_lab, engine, words, model_path=model)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--spec-type draft-mtp", "no MTP layers"),
        ("--flash-attn off --cache-type-v q8_0", "flash attention"),
        ("--mmproj {bad}", "mmproj"),
        ("--lora {bad}", "LoRA"),
    ],
)
def test_settings_that_the_model_does_not_bear(
    real_lab: Lab, engine: Engine, tmp_path: Path, flags: str, words: str
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model" * 100)
    check_death(real_lab, engine, words, flags=tuple(flags.format(bad=bad).split()))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--nonesuch", "does not know the flag --nonesuch"),
        ("--ctx-size many", "refuses the value of --ctx-size"),
        ("--draft 3", "--draft was removed"),
        ("--device CUDA7", "device"),
    ],
)
@pytest.mark.real("llama-server")
def test_flags_that_llama_server_refuses(lab: Lab, flags: str, words: str) -> None:
    # The embedded engine refuses such flags before anything is started.
    server = available_engines()[0]
    if server.missing:
        pytest.skip(server.missing)
    engine = Engine("llama-server", "binary", str(server.binary))
    check_death(lab, engine, words, flags=tuple(flags.split()))


def test_a_port_that_is_taken(real_lab: Lab, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check_death(real_lab, engine, "internal port is in use", port=taken.getsockname()[1])


def test_a_context_that_no_memory_holds(real_lab: Lab, engine: Engine) -> None:
    plan = real_lab.plan(
        engine, flags=("--ctx-size", "8000000", "--threads", "1", "--parallel", "1", "--fit", "off")
    )
    handle = real_lab.start(plan)
    assert handle.pid is not None
    resource.prlimit(handle.pid, resource.RLIMIT_AS, (2 << 30, 2 << 30))
    died(real_lab, handle, "not enough memory")


def check_death(lab: Lab, engine: Engine, words: str, **changes: object) -> None:
    died(lab, lab.start(lab.plan(engine, **changes)), words)


def died(lab: Lab, handle: object, words: str) -> None:
    exit_ = lab.end_of(handle)  # type: ignore[arg-type]
    said = cause(exit_, logfiles.tail(lab.folder / "logs" / "engine.log"))
    assert words in said, lab.log()
    assert "/" not in re.sub("context/|GGUF/", "", said)
    assert exit_.code == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0.1 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 5000.00 MiB on device 0: cudaMalloc failed: "
         "out of memory", "not enough GPU memory"),
        ("CUDA error: out of memory", "not enough GPU memory"),
        ("ggml_vulkan: Device memory allocation failed: ErrorOutOfDeviceMemory", "not enough GPU memory"),
        ("CUDA error: an illegal memory access was encountered", "GPU driver"),
        ("llama-server: error while loading shared libraries: libcuda.so.1: cannot open shared object file",
         "library libcuda.so.1"),
        ("gguf_init_from_file: failed to open GGUF file '/srv/x.gguf' (No such file or directory)", "not there"),
        ("gguf_init_from_file: failed to open GGUF file '/srv/x.gguf' (Permission denied)", "may not read"),
        ("terminate called after throwing: failed to reload model after sleeping", "after sleeping"),
        ("ModuleNotFoundError: No module named 'xllamacpp'", "embedded engine's package"),
        ("error: embedded engine cannot express 'n_ctx': an integer is required", "cannot do 'n_ctx'"),
        ('error while handling environment variable "LLAMA_ARG_FIT": bad', "LLAMA_ARG_FIT"),
        ("llama_model_load: error loading model: unknown pre-tokenizer type: 'x'", "tokenizer"),
        ("llama_model_load: error loading model: missing tensor 'blk.0.attn_q.weight'", "another version"),
    ],
)  # fmt: skip
def test_tell_tales_that_cannot_be_had_here(line: str, words: str) -> None:
    said = cause(DIED, ["0.00 I something before", line, *NO_MODEL])
    assert words in said
    assert "/srv" not in said


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (Exit(None, 9, 0.0, oom=True), "memory ran out"),
        (Exit(None, 9, 0.0), "maybe because memory ran out"),
        (Exit(137, None, 0.0), "maybe because memory ran out"),
        (Exit(137, None, 0.0, oom=True), "the operating system killed it"),
        (Exit(None, 9, 0.0, oom=False), "it was killed (SIGKILL)"),
        (Exit(None, 11, 0.0), "crashed (SIGSEGV)"),
        (Exit(139, None, 0.0), "crashed (SIGSEGV)"),
        (Exit(134, None, 0.0), "SIGABRT"),
        (Exit(None, 10, 0.0), "SIGUSR1"),
        (Exit(None, 60, 0.0), "signal 60"),
        (Exit(0, None, 0.0), "by itself"),
        (Exit(3, None, 0.0), "exit status 3"),
        (Exit(None, None, 0.0), "nobody saw how"),
        (None, "nobody saw how"),
    ],
)
def test_without_a_tell_tale_the_exit_speaks(exit_: Exit | None, words: str) -> None:
    assert words in cause(exit_, ["0.00 I srv  a line of no meaning"])


def test_a_failed_load_without_a_known_cause_is_called_that() -> None:
    assert cause(DIED, NO_MODEL) == "the model could not be loaded"


def test_what_an_earlier_run_said_is_not_the_cause() -> None:
    earlier = "gguf_init_from_reader: invalid magic characters: 'x'"
    assert cause(Exit(3, None, 0.0), [earlier, f"{START_MARK} i generation 2 ===", "fine"]).endswith(
        "status 3"
    )
    assert "GGUF" in cause(DIED, [f"{START_MARK} i generation 1 ===", earlier])


@pytest.mark.parametrize(
    "known",
    [CONTAINER_KILLED, CONTAINER_STOPPED, CONTAINER_REMOVED, DAEMON_RESTARTED, out_of_memory(2 << 30)],
)
def test_what_the_runtime_knows_stands_before_what_the_log_says(known: str) -> None:
    assert cause(Exit(137, None, 0.0, cause=known), NO_MODEL) == known


def test_a_runtime_that_knows_nothing_leaves_it_to_the_log() -> None:
    assert cause(Exit(1, None, 0.0, oom=False, cause=None), NO_MODEL) == "the model could not be loaded"


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (2 << 30, "killed: its limit is 2 GB;"),
        (3 << 29, "killed: its limit is 1.5 GB;"),
        (96 << 20, "killed: its limit is 96 MB;"),
        (None, "killed: it reached its memory limit;"),
        (0, "killed: it reached its memory limit;"),
    ],
)
def test_a_reached_memory_limit_is_named(limit: int | None, words: str) -> None:
    assert words in out_of_memory(limit)
