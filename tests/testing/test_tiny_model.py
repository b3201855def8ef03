"""The tiny model is what tests take it for: small, quick, endless and repeatable."""

from __future__ import annotations

from pathlib import Path

import gguf

from llamaman.testing import write_slow_model, write_tiny_model


def value(path: Path, key: str) -> object:
    field = gguf.GGUFReader(path).get_field(key)
    return field.contents() if field else None


def test_it_is_small_and_names_itself(tiny_model: Path) -> None:
    assert tiny_model.stat().st_size < 1 << 20
    assert value(tiny_model, "general.architecture") == "llama"
    assert value(tiny_model, "general.name") == "tiny"
    assert value(tiny_model, "llama.context_length") == 16_384
    assert "message" in str(value(tiny_model, "tokenizer.chat_template"))


def test_the_same_arguments_give_the_same_file(tmp_path: Path, tiny_model: Path) -> None:
    again = write_tiny_model(tmp_path / "tiny.gguf")
    assert again.read_bytes() == tiny_model.read_bytes()
    other = write_tiny_model(tmp_path / "tiny.gguf", seed=2)
    assert other.read_bytes() != tiny_model.read_bytes()


def test_an_embedding_model_is_marked_as_one(tmp_path: Path, tiny_model: Path) -> None:
    model = write_tiny_model(tmp_path / "e.gguf", embedding=True, metadata={"llama.nextn_predict_layers": 1})
    assert value(model, "llama.pooling_type") == 1
    assert value(model, "llama.nextn_predict_layers") == 1
    assert value(tiny_model, "llama.pooling_type") is None


def test_the_slow_one_is_deep(tmp_path: Path) -> None:
    model = write_slow_model(tmp_path / "s.gguf", layers=3, context_length=512)
    assert value(model, "llama.block_count") == 3
    assert value(model, "llama.context_length") == 512
