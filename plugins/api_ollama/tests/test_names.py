"""Names of models by Ollama's grammar, and how they find models here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamaman.errors import Forbidden, InvalidField, ModelNotFound
from llamaman.testing.dialect_script import MODEL, MODELS
from llamaman_api_ollama import names
from llamaman_api_ollama.names import Name

HF = replace(MODEL, name="qwen3-8b-q4_k_m", path=Path("/models/Qwen3-8B-Q4_K_M.gguf"))
ALL = (*MODELS, HF)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("x", Name("registry.ollama.ai", "library", "x", "latest")),
        ("x:8b", Name("registry.ollama.ai", "library", "x", "8b")),
        (" me/x ", Name("registry.ollama.ai", "me", "x", "latest")),
        ("hf.co/user/repo:Q4_K_M", Name("hf.co", "user", "repo", "Q4_K_M")),
        ("https://host:5000/a/b", Name("host:5000", "a", "b", "latest")),
    ],
)
def test_a_name_is_read_from_the_right(text: str, name: Name) -> None:
    assert names.parse(text) == name
    assert name.is_valid


@pytest.mark.parametrize(
    "text",
    [
        "x!",
        "foo:",
        "/foo",
        "foo/",
        "a//b",
        "-x",
        ".x",
        "x@sha256:abc",
        "a.b/x",
        "x:y z",
        "x" * 81,
        "ä",
        "",
        ":x",
    ],
)
def test_what_breaks_the_grammar_is_no_name(text: str) -> None:
    assert not names.parse(text).is_valid
    with pytest.raises(InvalidField) as error:
        names.resolve(text, ALL)
    assert (error.value.status, error.value.message) == (400, "invalid model name")


@pytest.mark.parametrize(
    ("text", "display"),
    [
        ("qwen3", "qwen3:latest"),
        ("me/x:1", "me/x:1"),
        ("hf.co/u/r:Q4", "hf.co/u/r:Q4"),
        ("u/r", "u/r:latest"),
    ],
)
def test_the_display_form_drops_defaults_and_keeps_the_tag(text: str, display: str) -> None:
    assert names.parse(text).display == display


def test_the_full_name_has_every_part() -> None:
    assert names.parse("x").full == "registry.ollama.ai/library/x:latest"


@pytest.mark.parametrize(
    "text",
    ["alpha", "ALPHA", "Alpha:latest", " alpha ", "alpha:LATEST", "alpha:local", "library/alpha",
     "registry.ollama.ai/library/alpha:latest"],
)  # fmt: skip
def test_every_spelling_finds_the_model(text: str) -> None:
    found = names.resolve(text, ALL)
    assert found is not None
    assert found.name == "alpha"


@pytest.mark.parametrize(
    "text",
    [
        "hf.co/unsloth/Qwen3-8B-GGUF:Q4_K_M",
        "huggingface.co/unsloth/Qwen3-8B-GGUF:q4_k_m",
        "hf.co/u/Qwen3-8B-GGUF",
    ],
)
def test_a_repository_of_huggingface_finds_its_file(text: str) -> None:
    assert names.resolve(text, ALL) is HF


def test_a_good_name_that_means_nothing_here_is_nothing() -> None:
    assert names.resolve("nobody", ALL) is None


def test_a_name_that_means_several_says_which() -> None:
    twins = (replace(MODEL, name="gemma-a"), replace(MODEL, name="gemma-b"))
    with pytest.raises(ModelNotFound, match="gemma-a, gemma-b"):
        names.resolve("gemma", twins)


@pytest.mark.parametrize("text", ["x:cloud", "gpt-oss:120b-cloud", "me/x:CLOUD"])
def test_models_of_the_cloud_are_refused(text: str) -> None:
    with pytest.raises(Forbidden, match="ollama cloud is disabled: remote model is unavailable"):
        names.resolve(text, ALL)


@pytest.mark.parametrize("text", ["x:cloud:local", "x:8b-cloud:local"])
def test_a_name_cannot_be_local_and_in_the_cloud(text: str) -> None:
    with pytest.raises(InvalidField, match="use either :local or :cloud, not both"):
        names.resolve(text, ALL)
