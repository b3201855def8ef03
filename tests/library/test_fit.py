"""The memory estimate: exact caches, close buffers, the sum that a real server takes, and no guesses."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import launch
from llamaman.core.config import Config
from llamaman.library import Library, fit
from llamaman.library.fit import Run
from llamaman.library.gguf import Header, header_of
from llamaman.testing import write_tiny_model
from llamaman.testing.processes import free_ports

from .conftest import MemoryStore

MIB = 1 << 20


def header(architecture: str, **numbers: int | list[int]) -> Header:
    """The header of a file whose keys hold these numbers; ``attention__key_length`` is ``attention.key_length``."""
    answer = {
        "general": {"general.architecture": architecture},
        "numbers": {name.replace("__", "."): value for name, value in numbers.items()},
        "metadata": {},
        "tensors": 1,
        "tokens": 1000,
        "template": True,
        "header_bytes": 1000,
        "nextn_bytes": 0,
    }
    made = header_of(answer)
    assert isinstance(made, Header)
    return made


LLAMA = header(
    "llama",
    block_count=32,
    embedding_length=4096,
    feed_forward_length=14336,
    attention__head_count=32,
    attention__head_count_kv=8,
)
GEMMA_270M = header(
    "gemma3",
    block_count=18,
    embedding_length=640,
    feed_forward_length=2048,
    attention__head_count=4,
    attention__head_count_kv=1,
    attention__key_length=256,
    attention__value_length=256,
    attention__sliding_window=512,
)


def cache(given: Header, run: Run) -> float:
    """MiB."""
    found = fit.cache_bytes(given, run)
    assert found is not None
    return found / MIB


class TestCache:
    def test_every_token_of_the_context_has_keys_and_values_in_every_layer(self) -> None:
        assert cache(LLAMA, Run(8192)) == 32 * 8192 * 2 * 1024 * 2 / MIB

    def test_the_context_is_rounded_up_as_the_engine_does(self) -> None:
        assert cache(LLAMA, Run(4097)) == cache(LLAMA, Run(4352))
        split = Run(8192, slots=3, unified=False)
        assert cache(LLAMA, split) == cache(LLAMA, Run(3 * 2816))
        assert cache(LLAMA, replace(split, unified=True)) == cache(LLAMA, Run(8192))

    @pytest.mark.parametrize(
        ("kind", "share"), [("f32", 2), ("bf16", 1), ("q8_0", 0.53125), ("q4_0", 0.28125)]
    )
    def test_a_cache_type_sets_the_bytes_per_element(self, kind: str, share: float) -> None:
        whole = cache(LLAMA, Run(4096))
        assert cache(LLAMA, Run(4096, cache_k=kind, cache_v=kind)) == whole * share
        assert cache(LLAMA, Run(4096, cache_k=kind)) == whole * (1 + share) / 2

    @pytest.mark.parametrize(
        ("run", "figure"),
        [
            (Run(4096, slots=4), 12.0 + 37.5),
            (Run(8192), 24.0 + 15.0),
            (Run(8192, cache_k="q8_0", cache_v="q8_0"), 12.75 + 7.96875),
            (Run(8192, swa_full=True), 144.0),
        ],
    )
    def test_layers_with_a_window_keep_no_more_than_it(self, run: Run, figure: float) -> None:
        # The figures of a real server's log, for the three full layers and the fifteen others.
        assert cache(GEMMA_270M, run) == figure

    def test_a_pattern_in_the_header_says_which_layers_have_a_window(self) -> None:
        numbers = {"block_count": 4, "embedding_length": 256, "feed_forward_length": 512}
        numbers |= {"attention__head_count": 1, "attention__sliding_window": 256}
        listed = header("new", attention__sliding_window_pattern=[1, 1, 0, 1], **numbers)
        per_token = 2 * 256 * 2
        assert cache(listed, Run(4096)) == (4096 + 3 * (256 + 512)) * per_token / MIB
        periodic = header("new", attention__sliding_window_pattern=2, **numbers)
        assert cache(periodic, Run(4096)) == 2 * (4096 + 256 + 512) * per_token / MIB
        assert cache(header("new", **numbers), Run(4096)) == 4 * 4096 * per_token / MIB

    def test_heads_may_differ_from_layer_to_layer(self) -> None:
        numbers = {"block_count": 3, "embedding_length": 256, "attention__head_count": 4}
        uneven = header("deci", attention__head_count_kv=[4, 0, 2], **numbers)
        assert cache(uneven, Run(1024)) == 1024 * 6 * 64 * 2 * 2 / MIB
        # Without flash attention every layer's values are as wide as the widest.
        assert cache(uneven, Run(1024, flash_attention=False)) == 1024 * (6 + 8) * 64 * 2 / MIB

    def test_compressed_attention_keeps_one_row_for_keys_and_values(self) -> None:
        deepseek = header(
            "deepseek2",
            block_count=27,
            embedding_length=2048,
            attention__head_count=16,
            attention__head_count_kv=1,
            attention__key_length=576,
            attention__value_length=512,
            attention__key_length_mla=192,
        )
        assert cache(deepseek, Run(4096)) == 27 * 4096 * 576 * 2 / MIB

    def test_layers_that_share_a_cache_have_none(self) -> None:
        shared = replace(LLAMA, numbers=dict(LLAMA.numbers) | {"attention.shared_kv_layers": 12})
        assert cache(shared, Run(4096)) == cache(LLAMA, Run(4096)) * 20 / 32

    def test_layers_for_multi_token_prediction_count_when_they_are_used(self) -> None:
        numbers = dict(LLAMA.numbers) | {"block_count": 33, "nextn_predict_layers": 1}
        more = replace(LLAMA, numbers=numbers, block_count=33, nextn_layers=1, nextn_bytes=5000)
        assert cache(more, Run(4096)) == cache(LLAMA, Run(4096))
        assert cache(more, Run(4096, uses_nextn=True)) == cache(LLAMA, Run(4096)) * 33 / 32
        used = fit.estimate(more, 1 << 30, Run(4096, uses_nextn=True)) or 0
        unused = fit.estimate(more, 1 << 30, Run(4096)) or 0
        assert used - unused == 5000 + 4096 * 2048 * 2

    def test_recurrent_layers_keep_a_state_per_slot_whatever_the_context(self) -> None:
        mamba = header(
            "mamba",
            block_count=24,
            embedding_length=768,
            attention__head_count=0,
            attention__head_count_kv=0,
            ssm__conv_kernel=4,
            ssm__inner_size=1536,
            ssm__state_size=16,
        )
        state = 24 * (3 * 1536 + 16 * 1536) * 4 / MIB
        assert cache(mamba, Run(256)) == cache(mamba, Run(1 << 20)) == pytest.approx(state, abs=1e-5)
        assert cache(mamba, Run(256, slots=4)) == pytest.approx(4 * state, abs=1e-5)

    def test_hybrids_have_attention_in_one_layer_of_an_interval(self) -> None:
        numbers: dict[str, int] = {
            "block_count": 48,
            "embedding_length": 2048,
            "attention__head_count": 16,
            "attention__head_count_kv": 2,
            "attention__key_length": 256,
            "attention__value_length": 256,
            "ssm__conv_kernel": 4,
            "ssm__inner_size": 4096,
            "ssm__state_size": 128,
            "ssm__group_count": 16,
        }
        listed = [1, 1, 1, 0] * 12
        for made in (
            header("qwen3next", **numbers),
            header("new", full_attention_interval=4, **numbers),
            header("new", attention__recurrent_layers=listed, **numbers),
        ):
            state = 36 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096) * 4
            assert cache(made, Run(4096)) == (12 * 4096 * 1024 * 2 + state) / MIB

    def test_an_encoder_keeps_nothing(self) -> None:
        assert cache(header("bert", block_count=12, embedding_length=384), Run(512)) == 0


@pytest.mark.parametrize(("context", "figure"), [(2816, 22.75), (65_536, 84.0)])
def test_the_mask_of_the_context_is_most_of_the_compute_buffer(context: int, figure: float) -> None:
    # The figures of a real server's log.
    assert (fit.compute_bytes(GEMMA_270M, Run(context)) or 0) / MIB == pytest.approx(figure, abs=1)


class TestUnknown:
    @pytest.mark.parametrize("key", ["block_count", "attention.head_count", "embedding_length"])
    def test_without_a_needed_fact_there_is_no_estimate(self, key: str) -> None:
        numbers = {name: value for name, value in LLAMA.numbers.items() if name != key}
        bare = {
            "general": {"general.architecture": "llama"},
            "numbers": numbers,
            "metadata": {},
            "tensors": 1,
            "template": True,
        }
        bare |= {"tokens": None, "header_bytes": 1, "nextn_bytes": 0}
        if key == "attention.head_count":
            del numbers["attention.head_count_kv"]
        made = header_of(bare)
        assert isinstance(made, Header)
        assert fit.estimate(made, 1 << 30, Run(4096)) is None

    def test_an_architecture_with_another_kind_of_cache_has_no_estimate(self) -> None:
        indexed = replace(LLAMA, numbers=dict(LLAMA.numbers) | {"attention.indexer.key_length": 128})
        assert fit.estimate(indexed, 1 << 30, Run(4096)) is None
        assert fit.estimate(replace(LLAMA, architecture="t5"), 1 << 30, Run(4096)) is None

    @pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention__head_count_kv"])
    def test_a_header_that_claims_the_absurd_costs_nothing_and_says_nothing(self, key: str) -> None:
        numbers: dict[str, Any] = {name.replace(".", "__"): value for name, value in LLAMA.numbers.items()}
        assert fit.estimate(header("llama", **(numbers | {key: (1 << 47)})), 1 << 30, Run(1 << 30)) is None


class TestRun:
    def test_options_and_extra_arguments_decide(self) -> None:
        assert fit.run_of({}, ()) == Run(4096)
        given = {
            "ctx_size": 100,
            "parallel": 3,
            "cache_type_k": "q8_0",
            "flash_attn": "off",
            "spec_enabled": True,
        }
        expected = Run(100, 3, cache_k="q8_0", flash_attention=False, uses_nextn=True)
        assert fit.run_of(given, ()) == expected
        extra = ("-ub", "64", "--flash-attn", "on", "--swa-full", "-b", "4096", "--ubatch-size", "128")
        assert fit.run_of(given, extra) == replace(expected, batch=128, flash_attention=True, swa_full=True)
        assert fit.run_of({}, ("--spec-type", "draft-mtp,ngram-mod")).uses_nextn

    def test_a_processor_computes_in_the_batches_that_a_launch_gives_it(self) -> None:
        assert fit.run_of({"n_gpu_layers": 0}, ()).batch == launch.PROCESSOR_BATCH
        assert fit.run_of({"n_gpu_layers": 0, "embedding_model": True}, ()).batch == 512


@pytest.fixture
def library(tmp_path: Path) -> Library:
    for name, changes in (
        ("a", {}),
        ("draft", {"layers": 1}),
        ("lora", {"metadata": {"general.type": "adapter"}}),
    ):
        write_tiny_model(tmp_path / f"{name}.gguf", **changes)
    environ = {"LLAMAMAN_NODE_NAME": "n", "MODELS_DIR": str(tmp_path)}
    library = Library(Config.from_environ(environ), MemoryStore())
    library.rescan()
    return library


class TestLibrary:
    def test_other_files_of_a_launch_count_too(self, library: Library, tmp_path: Path) -> None:
        path, size = tmp_path / "a.gguf", (tmp_path / "lora.gguf").stat().st_size

        def bytes_of(**options: Any) -> int:
            found = library.memory_estimate(path, options)
            assert found is not None
            return found

        alone = bytes_of()
        assert alone > path.stat().st_size
        assert bytes_of(mmproj="lora.gguf") - alone == size
        assert bytes_of(extra_args="--lora lora.gguf,lora.gguf") - alone == 2 * size
        assert bytes_of(extra_args="--lora-scaled lora.gguf:0.5") - alone == size
        draft = library.memory_estimate(tmp_path / "draft.gguf", {})
        assert bytes_of(extra_args="-md draft.gguf") - alone == draft
        assert bytes_of(extra_args="-md draft.gguf -ctkd q8_0") - alone < (draft or 0)

    def test_what_is_not_known_is_not_guessed(self, library: Library, tmp_path: Path) -> None:
        (tmp_path / "bad.gguf").write_bytes(b"nothing")
        library.rescan()
        assert library.memory_estimate(tmp_path / "bad.gguf", {}) is None
        assert library.memory_estimate(tmp_path / "gone.gguf", {}) is None
        assert library.memory_estimate(tmp_path / "a.gguf", {"extra_args": "-md gone.gguf"}) is None
        assert library.memory_estimate(tmp_path / "a.gguf", {"mmproj": "gone.gguf"}) is None


SERVER = os.environ.get("LLAMA_SERVER_BIN")


def logged_bytes(path: Path, flags: list[str], folder: Path) -> dict[str, int]:
    """What a real server says that it has allocated, by the kind of buffer."""
    assert SERVER is not None
    (port,) = free_ports(1)
    log = folder / "log"
    argv = [SERVER, "-m", str(path), "--port", str(port), "-t", "1", "-lv", "4", "--no-warmup", *flags]
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as server:
        try:
            deadline = time.monotonic() + 60
            while "listening on" not in (text := log.read_text(errors="replace")):
                assert server.poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.02)
        finally:
            server.kill()
    found: dict[str, int] = {}
    for kind, size in re.findall(r"(model|KV|RS|compute|output) buffer size = +([0-9.]+) MiB", text):
        found[kind] = found.get(kind, 0) + round(float(size) * MIB)
    return found


@pytest.mark.real("llama-server")
@pytest.mark.skipif(SERVER is None, reason="LLAMA_SERVER_BIN names no llama-server")
@pytest.mark.parametrize(
    "options",
    [
        {"ctx_size": 4096},
        {"ctx_size": 5000, "parallel": 3, "cache_type_k": "q8_0", "cache_type_v": "q4_0"},
        {"ctx_size": 40_000, "n_gpu_layers": 0, "cache_type_k": "f32", "cache_type_v": "bf16"},
        {"ctx_size": 4096, "flash_attn": "off"},
    ],
)
def test_a_real_server_takes_what_was_estimated(tmp_path: Path, options: dict[str, Any]) -> None:
    # Large enough that what every server takes, whatever the model, does not count.
    path = write_tiny_model(tmp_path / "a.gguf", layers=12, width=512)
    library = Library(
        Config.from_environ({"LLAMAMAN_NODE_NAME": "n", "MODELS_DIR": str(tmp_path)}), MemoryStore()
    )
    library.rescan()
    resolved = launch.resolve({}, options)
    flags = launch.to_flags(resolved, known=None, facts=library.facts(path), model_file=library.model_file)
    taken = logged_bytes(path, list(flags.tokens), tmp_path)
    found = library.header(path)
    assert found is not None
    # The log has two decimals of a MiB.
    assert fit.cache_bytes(found, fit.run_of(resolved, ())) == pytest.approx(taken["KV"], abs=0.006 * MIB)
    assert library.memory_estimate(path, resolved) == pytest.approx(sum(taken.values()), rel=0.25)
