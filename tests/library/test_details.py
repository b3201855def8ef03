"""What files promise: capabilities, and which projector belongs to which model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaman.library.details import Evidence, capabilities, describe, projector_for
from llamaman.library.gguf import Header, header_of

WRITES = {"completion"}


def header(architecture: str = "llama", template: str | None = None, **more: Any) -> Header:
    metadata = more.pop("metadata", {})
    numbers = more.pop("numbers", {})
    answer = {
        "general": {"general.architecture": architecture},
        "numbers": numbers,
        "metadata": metadata,
        "tensors": 1,
        "template": template,
        "header_bytes": 1,
        "nextn_bytes": 0,
        **more,
    }
    made = header_of(answer, "d" * 64)
    assert isinstance(made, Header)
    return made


CAN: dict[str, tuple[Header, set[str]]] = {
    "a model that writes": (header(), WRITES),
    "a template": (header(template="{{ messages }}"), WRITES),
    "tools": (header(template="{% if tools %}"), WRITES | {"tools"}),
    "tool calls": (header(template="{% if message.tool_calls %}"), WRITES | {"tools"}),
    "thoughts": (header(template="<think> </think>"), WRITES | {"thinking"}),
    "thoughts cut": (header(template="content.split('</think>')[-1]"), WRITES | {"thinking"}),
    "thoughts that the engine cuts": (
        header(template="content.split('</think>')[-1] if reasoning_content"),
        WRITES,
    ),
    "half a tag": (header(template="<think>"), WRITES),
    "gpt-oss": (header("gpt-oss", template="x"), WRITES | {"thinking"}),
    "tokens to fill in": (header(fills_in=True), WRITES | {"insert"}),
    "ids to fill in": (
        header(metadata={"tokenizer.ggml.fim_pre_token_id": 1, "tokenizer.ggml.fim_suf_token_id": 2}),
        WRITES | {"insert"},
    ),
    "older ids": (
        header(metadata={"tokenizer.ggml.prefix_token_id": 1, "tokenizer.ggml.suffix_token_id": 2}),
        WRITES | {"insert"},
    ),
    "half of the ids": (header(metadata={"tokenizer.ggml.fim_pre_token_id": 1}), WRITES),
    "eyes of its own": (header(metadata={"llama.vision.block_count": 2}), WRITES | {"vision"}),
    "ears of its own": (header(metadata={"llama.audio.block_count": 2}), WRITES | {"audio"}),
    "pooling": (header(numbers={"pooling_type": 1}, template="tools"), {"embedding"}),
    "pooling that is none": (header(numbers={"pooling_type": 0}), {"embedding"}),
    "ranking": (header(numbers={"pooling_type": 4}), {"embedding", "rerank"}),
    "an encoder": (header("bert"), {"embedding"}),
}


@pytest.mark.parametrize(("model", "expected"), CAN.values(), ids=CAN.keys())
def test_what_a_model_can_do_by_its_files(model: Header, expected: set[str]) -> None:
    assert capabilities(model) == expected


@pytest.mark.parametrize(
    ("metadata", "senses"),
    [
        ({}, {"vision"}),
        ({"clip.has_vision_encoder": True}, {"vision"}),
        ({"clip.has_audio_encoder": True}, {"audio"}),
        ({"clip.has_vision_encoder": True, "clip.has_audio_encoder": True}, {"vision", "audio"}),
        ({"clip.has_vision_encoder": False}, set()),
    ],
)
def test_a_projector_gives_senses(metadata: dict[str, Any], senses: set[str]) -> None:
    assert capabilities(header(), header("clip", metadata=metadata)) == WRITES | senses


def test_a_preset_may_make_it_an_embedding_model() -> None:
    assert capabilities(header(template="tools"), embeds=True) == {"embedding"}


@pytest.mark.parametrize(
    ("model", "others", "projectors", "expected"),
    [
        # a folder of one model in several quantisations, and a projector without a name
        ("gemma-3-4b-it-Q4_K_M", ["gemma-3-4b-it-Q8_0"], ["mmproj-F16"], "mmproj-F16"),
        ("gemma-3-4b-it-Q4_K_M", [], ["mmproj-model-f16"], "mmproj-model-f16"),
        ("big-Q4-00001-of-00002", [], ["mmproj-BF16"], "mmproj-BF16"),
        # projectors with names
        ("gemma-3-4b-it-Q4_K_M", ["other-7b"], ["mmproj-gemma-3-4b-it-f16"], "mmproj-gemma-3-4b-it-f16"),
        (
            "Qwen2.5-VL-7B-Instruct-Q8_0",
            ["x"],
            ["Qwen2.5-VL-7B-Instruct-mmproj-f16"],
            "Qwen2.5-VL-7B-Instruct-mmproj-f16",
        ),
        ("gemma-3-4b-it-Q4_K_M", ["x"], ["gemma-3-4b-it.mmproj-Q8_0"], "gemma-3-4b-it.mmproj-Q8_0"),
        ("gemma_3_4b_it-Q4_0", ["x"], ["mmproj.gemma-3-4b-it"], "mmproj.gemma-3-4b-it"),
        # the longest name counts, then the first one
        ("a-b-c-Q4_0", ["x"], ["mmproj-a-f16", "mmproj-a-b-f16"], "mmproj-a-b-f16"),
        ("a-Q4_0", [], ["mmproj-BF16", "mmproj-F16", "mmproj-F32"], "mmproj-BF16"),
        # none of them
        ("a-Q4_0", ["b-Q4_0"], ["mmproj-F16"], None),
        ("gemma-3-27b-it-Q4_0", ["x"], ["mmproj-gemma-3-4b-it-f16"], None),
        ("gemma-3-4b-it-Q4_0", [], ["mmproj-gemma-3-27b-it-f16"], None),
        ("gemma-34b", [], ["mmproj-gemma-3-f16"], None),
        ("a", [], [], None),
    ],
)
def test_which_projector_belongs_to_a_model(
    model: str, others: list[str], projectors: list[str], expected: str | None
) -> None:
    def paths(names: list[str]) -> list[Path]:
        return [Path(f"/m/{name}.gguf") for name in names]

    found = projector_for(*paths([model]), paths([model, *others]), paths(projectors))
    assert (found and found.stem) == expected


def test_the_digest_stays_and_changes_with_everything_that_makes_the_model() -> None:
    plain, files = header(), (("a.gguf", 1, 2),)
    first = describe("a", Evidence(plain, 1, files)).digest
    assert describe("a", Evidence(header(), 1, files)).digest == first
    assert len(first) == 64
    assert int(first, 16) >= 0
    others = {
        describe("b", Evidence(plain, 1, files)).digest,
        describe("a", Evidence(plain, 1, (("a.gguf", 9, 2),))).digest,
        describe("a", Evidence(plain, 1, (("a.gguf", 1, 9),))).digest,
        describe("a", Evidence(plain, 1, files), header("clip"), ("mmproj", 1, 2)).digest,
        describe("a", Evidence(plain, 1, files), header("clip"), ("mmproj", 1, 3)).digest,
        describe("a", Evidence(plain, 1, files), embeds=True).digest,
        describe("a", Evidence(header(fills_in=True), 1, files)).digest,
    }
    assert len(others | {first}) == 8
