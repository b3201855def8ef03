"""Names: unique, stable, and found the way people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaman.core.model_names import find_model, find_name, known_names, plain_name
from llamaman.errors import ModelNotFound
from llamaman.library.names import quant_of, split_shard, unique_names
from llamaman.records import ModelView

NAMES = ("qwen2.5-0.5b-instruct-q2_k", "qwen2.5-7b-q4_k_m", "gemma-3", "gemma-3-270m", "a:b", "hf-model")
RUNNABLE = NAMES[:-1]
KNOWN = {name: name for name in NAMES}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("gemma-3", "gemma-3"),  # exact before prefix
        ("GEMMA-3", "gemma-3"),
        ("gemma-3:latest", "gemma-3"),
        ("Gemma-3:LATEST", "gemma-3"),
        ("gemma-3-270m.gguf", "gemma-3-270m"),
        ("qwen2.5-0.5b-instruct-q2", "qwen2.5-0.5b-instruct-q2_k"),
        ("qwen2.5-7b:latest", "qwen2.5-7b-q4_k_m"),
        ("a:b", "a:b"),
        ("hf-model", "hf-model"),
        (" gemma-3 ", "gemma-3"),
    ],
)
def test_a_name_is_found(given: str, found: str) -> None:
    assert find_name(given, KNOWN, RUNNABLE) == found


@pytest.mark.parametrize(
    "given",
    ["", " ", ":latest", "llama", "emma-3", "gemma-3:other", "x" * 200, "gem\nma", "hf-mod", "gemma-3 270m"],
)
def test_anything_else_is_not_found(given: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_name(given, KNOWN, RUNNABLE)
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()
    assert caught.value.candidates == ()


def test_an_ambiguous_prefix_lists_the_candidates() -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_name("qwen2.5", KNOWN, RUNNABLE)
    assert caught.value.candidates == ("qwen2.5-0.5b-instruct-q2_k", "qwen2.5-7b-q4_k_m")


def model(name: str, *aliases: str, runnable: bool = True) -> ModelView:
    return ModelView(name, Path(f"/m/{name}"), 1, None, 0.0, runnable=runnable, aliases=aliases)


def test_a_name_counts_before_an_alias_and_an_alias_before_a_stand_in() -> None:
    odd = "größe"
    models = (
        model("a", "b"),
        model("b", "c"),
        model("d", "c", plain_name(odd)),
        model(odd),
        model("e", "E:latest"),
    )
    found = {name: find_model(name, models).name for name in ("a", "b", "c", plain_name(odd), odd, "e")}
    assert found == {"a": "a", "b": "b", "c": "b", plain_name(odd): "d", odd: odd, "e": "e"}
    assert known_names(models)["c"] == "b"  # of two that claim it, the first one


@pytest.mark.parametrize(
    "given", ["a:latest", " A:Latest ", "library/a:latest", "registry.ollama.ai/library/a"]
)
def test_the_tag_and_the_parts_that_ollama_leaves_out_may_be_written(given: str) -> None:
    assert find_model(given, (model("a"), model("ab"))).name == "a"


def test_a_name_that_ends_like_a_tag_is_itself() -> None:
    models = (model("a"), model("a:latest"))
    assert [find_model(name, models).name for name in ("a", "a:latest")] == ["a", "a:latest"]


def test_what_cannot_run_is_found_by_its_whole_name_alone() -> None:
    models = (model("broken", runnable=False), model("b"))
    assert find_model("broken", models).name == "broken"
    with pytest.raises(ModelNotFound):
        find_model("brok", models)


def test_the_second_file_of_a_stem_gets_its_folder() -> None:
    stems = [
        ("Qwen", Path("/m")),
        ("qwen", Path("/m/unsloth")),
        ("qwen", Path("/m/x/unsloth")),
        ("qwen", Path("/m/Bartowski")),
        ("other", Path("/m/x")),
    ]
    assert unique_names(stems) == ["qwen", "unsloth-qwen", "x-unsloth-qwen", "bartowski-qwen", "other"]


def test_names_stay_unique_when_folders_do_not_help() -> None:
    names = unique_names(
        [("a", Path("/")), ("a", Path("/")), ("a", Path("/")), ("x" * 300, Path("/")), ("x" * 300, Path("/"))]
    )
    assert len(set(names)) == 5
    assert all(len(name) <= 128 for name in names)


@pytest.mark.parametrize(
    ("stem", "quant"),
    [
        ("qwen2.5-0.5b-instruct-q2_k", "Q2_K"),
        ("Mistral-7B-Instruct-v0.3-Q4_K_M", "Q4_K_M"),
        ("model-UD-IQ2_XXS", "IQ2_XXS"),
        ("model.Q8_0", "Q8_0"),
        ("gpt-oss-20b-mxfp4", "MXFP4"),
        ("model-fp16", "F16"),
        ("model-BF16", "BF16"),
        ("model-Q4_K_XL", "Q4_K_XL"),
        ("eq4-model", None),
        ("model", None),
    ],
)
def test_the_quantisation_in_a_file_name(stem: str, quant: str | None) -> None:
    assert quant_of(stem) == quant


def test_shard_suffixes() -> None:
    assert split_shard("big-Q4-00002-of-00003") == ("big-Q4", 2, 3)
    assert split_shard("big-2-of-3") is None
