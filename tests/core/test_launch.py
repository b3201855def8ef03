"""Launch options: strict in, exact flags out."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llamaman.core import launch
from llamaman.core.config import Config
from llamaman.core.launch import Flags, ModelFacts
from llamaman.errors import InvalidField

ENGINE = os.environ.get("LLAMA_SERVER_BIN", "")

#: The documented launch body, verbatim, without model_path and port.
DOCUMENTED_BODY: dict[str, Any] = {
    "n_gpu_layers": -1,
    "ctx_size": 4096,
    "threads": None,
    "memory_limit": None,
    "parallel": None,
    "extra_args": "--flash-attn",
    "gpu_devices": "",
    "idle_timeout_min": 0,
    "max_concurrent": 0,
    "max_queue_depth": 200,
    "share_queue": False,
    "proxy_sampling_override_enabled": False,
    "proxy_sampling_temperature": 0.8,
    "proxy_sampling_top_k": 40,
    "proxy_sampling_top_p": 0.95,
    "proxy_sampling_presence_penalty": 0.0,
    "proxy_sampling_repeat_penalty": 0.0,
}


def projector(text: str) -> Path | None:
    return Path("/models/mm.gguf") if text == "mm.gguf" else None


def flags(known: frozenset[str] | None = None, facts: ModelFacts | None = None, **options: Any) -> Flags:
    return launch.to_flags(
        launch.resolve(launch.validate(options)),
        known=known,
        facts=facts or ModelFacts(),
        model_file=projector,
        cores=8,
    )


def pairs(tokens: tuple[str, ...]) -> dict[str, str]:
    """flag -> the word behind it."""
    return dict(zip(tokens, (*tokens[1:], ""), strict=True))


def test_the_documented_body_is_taken_as_it_stands() -> None:
    assert launch.validate(DOCUMENTED_BODY) == DOCUMENTED_BODY
    tokens = flags(**DOCUMENTED_BODY).tokens
    assert pairs(tokens)["--flash-attn"] == "on"


def test_the_documented_defaults_hold() -> None:
    documented = {name: value for name, value in DOCUMENTED_BODY.items() if name != "extra_args"}
    assert documented.items() <= launch.defaults().items()
    assert launch.defaults()["extra_args"] == ""
    assert launch.defaults()["spec_draft_n_max"] == 2
    assert launch.defaults()["embedding_model"] is False


def test_only_given_options_come_back() -> None:
    assert launch.validate({"ctx_size": 1}) == {"ctx_size": 1}


def test_layers_go_over_one_another() -> None:
    resolved = launch.resolve({"ctx_size": 1, "threads": 2, "note": "x"}, {"ctx_size": 3})
    assert (resolved["ctx_size"], resolved["threads"]) == (3, 2)
    assert resolved.keys() == launch.BY_NAME.keys()


@pytest.mark.parametrize("option", launch.OPTIONS, ids=lambda option: option.name)
def test_every_option_refuses_other_types_by_name(option: launch.LaunchOption) -> None:
    wrong: list[object] = [[], {}, float("nan"), float("inf"), "a\x07b", b"x"]
    wrong += [True, "abc\n"] if option.kind != "bool" else [0, 1, "true", None]
    for value in wrong:
        with pytest.raises(InvalidField) as caught:
            launch.validate({option.name: value})
        assert caught.value.field == option.name
        assert option.name in caught.value.message


@pytest.mark.parametrize("option", launch.OPTIONS, ids=lambda option: option.name)
def test_every_option_takes_its_default_and_keeps_to_its_range(option: launch.LaunchOption) -> None:
    assert launch.validate({option.name: option.default}) == {option.name: option.default}
    if option.nullable:
        assert launch.validate({option.name: None}) == {option.name: None}
        assert launch.validate({option.name: " "}) == {option.name: None}
    if option.kind in ("int", "float"):
        assert option.minimum is not None
        assert option.maximum is not None
        for edge in (option.minimum, option.maximum):
            assert launch.validate({option.name: edge}) == {option.name: edge}
        for beyond in (option.minimum - 1, option.maximum + 1):
            with pytest.raises(InvalidField):
                launch.validate({option.name: beyond})
    for choice in option.choices:
        assert launch.validate({option.name: choice}, partial=True) == {option.name: choice}


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"ctx_size": "abc"}, "ctx_size", "must be an integer"),
        ({"ctx_size": 0}, "ctx_size", "must be greater than 0"),
        ({"ctx_size": None}, "ctx_size", "must be an integer"),
        ({"ctx_sise": 1}, "ctx_sise", "did you mean ctx_size"),
        ({"port": 8000}, "port", "not a launch option"),
        ({"memory_limit": "32x"}, "memory_limit", "32g"),
        ({"memory_limit": "1k"}, "memory_limit", "from 6m"),
        ({"memory_limit": 32}, "memory_limit", "string"),
        ({"gpu_devices": "0;1"}, "gpu_devices", "0,1"),
        ({"n_gpu_layers": "many"}, "n_gpu_layers", "auto"),
        ({"n_gpu_layers": -2}, "n_gpu_layers", "-1"),
        ({"tensor_split": "a,b"}, "tensor_split", "3,1"),
        ({"engine": "/bin/sh"}, "engine", "not a path"),
        ({"engine": "a/../b"}, "engine", "not a path"),
        ({"extra_args": "--host x"}, "extra_args", "owned"),
        ({"extra_args": "'open"}, "extra_args", "extra_args"),
        ({"cache_type_v": "q8_0", "flash_attn": "off"}, "cache_type_v", "flash"),
        ({"spec_enabled": True, "embedding_model": True}, "spec_enabled", "embedding"),
    ],
)
def test_refusals_say_what_is_wrong(given: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(InvalidField) as caught:
        launch.validate(given)
    assert caught.value.field == field
    assert words in caught.value.message


def test_contradictions_wait_until_the_whole_set_is_known() -> None:
    part = launch.validate({"cache_type_v": "q8_0", "flash_attn": "off"}, partial=True)
    with pytest.raises(InvalidField):
        launch.to_flags(launch.resolve(part), known=None, facts=ModelFacts(), model_file=projector)


@pytest.mark.parametrize(
    ("given", "size"), [("32g", 32 << 30), ("8192M", 8192 << 20), ("10485760", 10485760), ("1TiB", 1 << 40)]
)
def test_memory_limits_are_read_in_powers_of_1024(given: str, size: int) -> None:
    assert launch.memory_limit_bytes(launch.validate({"memory_limit": given})) == size


def test_no_memory_limit_is_not_a_limit_of_zero() -> None:
    assert launch.memory_limit_bytes(launch.defaults()) is None


@pytest.mark.parametrize(("given", "kept"), [("", ""), (None, ""), ("ALL", "all"), ("0, 1,0", "0,1")])
def test_gpu_devices_are_normalised(given: object, kept: str) -> None:
    assert launch.validate({"gpu_devices": given})["gpu_devices"] == kept


class TestPort:
    CONFIG = Config.from_environ({"LLAMAMAN_NODE_NAME": "srv1"})

    def test_the_pool_is_allowed_and_none_stays_none(self) -> None:
        assert launch.validate_port(8000, self.CONFIG) == 8000
        assert launch.validate_port(None, self.CONFIG) is None

    @pytest.mark.parametrize("value", [22, 8021, True, "8000", 8000.0, []])
    def test_anything_else_is_refused(self, value: object) -> None:
        with pytest.raises(InvalidField) as caught:
            launch.validate_port(value, self.CONFIG)
        assert caught.value.field == "port"


class TestFlags:
    def test_a_plain_launch(self) -> None:
        tokens = ("--ctx-size", "4096", "--n-gpu-layers", "all", "--parallel", "1")
        assert flags() == Flags(tokens, ())

    @pytest.mark.parametrize(
        ("given", "passed"), [(-1, "all"), ("all", "all"), ("auto", "auto"), (0, "0"), (7, "7")]
    )
    def test_gpu_layers(self, given: object, passed: str) -> None:
        tokens = flags(n_gpu_layers=given).tokens
        assert pairs(tokens)["--n-gpu-layers"] == passed
        assert ("--device" in tokens) is (given == 0)

    def test_no_gpu_layer_means_no_device_unless_one_is_named(self) -> None:
        assert pairs(flags(n_gpu_layers=0).tokens)["--device"] == "none"
        assert pairs(flags(n_gpu_layers=0, extra_args="-dev CUDA0").tokens)["-dev"] == "CUDA0"

    def test_slots_share_the_whole_context(self) -> None:
        tokens = flags(parallel=4).tokens
        assert pairs(tokens)["--parallel"] == "4"
        assert "--kv-unified" in tokens
        assert launch.slots({"parallel": 4}) == 4
        assert launch.slots({"parallel": None}) == 1

    def test_threads_are_clamped_to_the_host_and_it_is_said(self) -> None:
        clamped = flags(threads=64)
        assert pairs(clamped.tokens)["--threads"] == "8"
        assert any("64" in note and "8" in note for note in clamped.notes)
        assert flags(threads=8).notes == ()

    def test_embeddings_and_the_advanced_options(self) -> None:
        given = {
            "cache_type_k": "q8_0",
            "cache_type_v": "q4_0",
            "n_cpu_moe": 3,
            "split_mode": "row",
            "tensor_split": "3,1",
            "load_mode": "mlock",
            "cache_ram": 0,
            "flash_attn": "on",
            "mmproj": "mm.gguf",
        }
        tokens = flags(embedding_model=True, **given).tokens
        assert "--embeddings" in tokens
        expected = {
            "--cache-type-k": "q8_0",
            "--cache-type-v": "q4_0",
            "--n-cpu-moe": "3",
            "--split-mode": "row",
            "--tensor-split": "3,1",
            "--load-mode": "mlock",
            "--cache-ram": "0",
            "--flash-attn": "on",
            "--mmproj": "/models/mm.gguf",
        }
        assert expected.items() <= pairs(tokens).items()

    def test_a_projector_must_be_a_scanned_file(self) -> None:
        with pytest.raises(InvalidField, match="mmproj"):
            flags(mmproj="/etc/passwd")

    def test_extra_args_win_over_the_flash_attention_field(self) -> None:
        made = flags(flash_attn="off", extra_args="-fa")
        assert "--flash-attn" not in made.tokens
        assert made.tokens[-2:] == ("-fa", "on")
        assert made.notes

    def test_what_only_the_runtime_knows_is_never_passed(self) -> None:
        owned = {"--host", "--port", "--model", "-m", "--alias", "-a", "--api-key", "--api-key-file"}
        assert not owned & set(flags(parallel=2, threads=1, spec_enabled=True).tokens)

    def test_more_context_than_trained_is_said(self) -> None:
        facts = ModelFacts(context_length=2048)
        assert any("2048" in note for note in flags(facts=facts).notes)
        assert launch.request_context({"ctx_size": 4096}, facts) == 2048
        assert launch.request_context({"ctx_size": 4096}, ModelFacts()) == 4096


class TestSpeculation:
    def test_on_a_model_with_mtp_layers(self) -> None:
        tokens = flags(facts=ModelFacts(nextn_layers=1), spec_enabled=True).tokens
        assert pairs(tokens)["--spec-type"] == "draft-mtp"
        assert pairs(tokens)["--spec-draft-n-max"] == "2"

    def test_a_blank_draft_length_is_the_engines(self) -> None:
        assert "--spec-draft-n-max" not in flags(spec_enabled=True, spec_draft_n_max=None).tokens

    def test_a_model_without_mtp_layers_is_refused(self) -> None:
        with pytest.raises(InvalidField) as caught:
            flags(facts=ModelFacts(nextn_layers=0), spec_enabled=True)
        assert caught.value.field == "spec_enabled"

    def test_two_ways_of_speculating_contradict(self) -> None:
        with pytest.raises(InvalidField, match="spec-type"):
            flags(spec_enabled=True, extra_args="--spec-type ngram-mod")


class TestOlderBuilds:
    OLD = frozenset(
        {"--ctx-size", "--gpu-layers", "--parallel", "--embedding", "--no-mmap", "--mlock", "--draft-max"}
    )

    def test_older_spellings_are_used(self) -> None:
        tokens = flags(known=self.OLD, embedding_model=True).tokens
        assert "--gpu-layers" in tokens
        assert "--embedding" in tokens

    @pytest.mark.parametrize(
        ("mode", "switches"), [("none", {"--no-mmap"}), ("mmap", set()), ("mmap+mlock", {"--mlock"})]
    )
    def test_load_modes_become_switches(self, mode: str, switches: set[str]) -> None:
        tokens = flags(known=self.OLD, load_mode=mode).tokens
        assert {"--no-mmap", "--mlock", "--load-mode"} & set(tokens) == switches

    def test_what_cannot_be_expressed_is_refused_by_field(self) -> None:
        for field, value in (("load_mode", "dio"), ("cache_ram", 1), ("extra_args", "--temp 1")):
            with pytest.raises(InvalidField) as caught:
                flags(known=self.OLD, **{field: value})
            assert caught.value.field == field

    def test_a_split_context_is_said(self) -> None:
        assert any("splits the context" in note for note in flags(known=self.OLD, parallel=2).notes)


def test_the_schema_is_plain_data() -> None:
    schema = launch.schema()
    assert [row["name"] for row in schema] == list(launch.BY_NAME)
    assert all(row["help"] for row in schema)


def test_what_applies_live() -> None:
    assert {
        "idle_timeout_min",
        "max_concurrent",
        "max_queue_depth",
        "share_queue",
        *(name for name in launch.BY_NAME if name.startswith("proxy_sampling_")),
    } <= launch.LIVE
    assert not {"ctx_size", "threads", "parallel", "extra_args", "n_gpu_layers"} & launch.LIVE


def test_a_reranker_is_launched_as_one() -> None:
    reranker = ModelFacts(reranks=True)
    build = frozenset({"--embeddings", "--n-gpu-layers", "--ctx-size", "--parallel"})
    assert "--reranking" in flags(facts=reranker, embedding_model=True).tokens
    assert "--embeddings" not in flags(facts=reranker, embedding_model=True).tokens
    assert "--reranking" not in flags(facts=reranker).tokens
    assert "--embeddings" in flags(known=build, facts=reranker, embedding_model=True).tokens
    forced = flags(embedding_model=True, extra_args="--reranking").tokens
    assert [word for word in forced if "rerank" in word or "embed" in word] == ["--reranking"]


def test_the_engines_own_page_is_asked_for_in_the_builds_words() -> None:
    def asked(known: frozenset[str] | None, *, web_ui: bool) -> list[str]:
        made = launch.to_flags(
            launch.resolve({}), known=known, facts=ModelFacts(), model_file=Path, web_ui=web_ui
        ).tokens
        return [word for word in made if word in ("--ui", "--webui", "--no-ui", "--no-webui")]

    build = frozenset({"--n-gpu-layers", "--ctx-size", "--parallel"})
    assert asked(build | {"--ui", "--no-ui"}, web_ui=True) == ["--ui"]
    assert asked(build | {"--webui"}, web_ui=True) == ["--webui"]
    assert asked(build | {"--ui", "--no-ui"}, web_ui=False) == []
    assert asked(build, web_ui=True) == []


def without_gpu(known: frozenset[str] | None = None, **options: Any) -> tuple[str, ...]:
    return launch.to_flags(
        launch.resolve(options), known=known, facts=ModelFacts(), model_file=Path, gpu=False
    ).tokens


def test_where_there_is_no_gpu_a_prompt_can_be_left_every_128_tokens() -> None:
    assert pairs(without_gpu())["--batch-size"] == "128"
    assert pairs(flags(n_gpu_layers=0).tokens)["--batch-size"] == "128"
    assert "--batch-size" not in flags().tokens


def test_a_batch_size_that_was_asked_for_or_is_needed_whole_stays() -> None:
    assert "--batch-size" not in without_gpu(embedding_model=True)
    assert "--batch-size" not in without_gpu(known=frozenset({"--n-gpu-layers", "--ctx-size", "--parallel"}))
    for spelling in ("-b 512", "--batch-size 512"):
        assert "128" not in without_gpu(extra_args=spelling)


@pytest.mark.real
@pytest.mark.skipif(not ENGINE, reason="LLAMA_SERVER_BIN is not set")
def test_the_engine_takes_every_flag_we_make() -> None:
    help_text = subprocess.run(
        [ENGINE, "--help"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    known = frozenset(re.findall(r"(?<![\w-])--?[A-Za-z][\w.-]*", help_text))
    made = flags(
        known=known,
        facts=ModelFacts(nextn_layers=1, context_length=512),
        n_gpu_layers=0,
        threads=1,
        parallel=3,
        spec_enabled=True,
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        n_cpu_moe=1,
        split_mode="layer",
        tensor_split="1,1",
        load_mode="none",
        cache_ram=0,
        flash_attn="on",
        mmproj="mm.gguf",
        extra_args="--temp 0.1 --no-warmup",
    )
    done = subprocess.run(
        [ENGINE, *made.tokens, "--version"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
