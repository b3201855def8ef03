"""options: what llama-server is told, in its own words and with Ollama's defaults."""

from __future__ import annotations

from typing import Any

import pytest

from llamaman.errors import InvalidField
from llamaman_api_ollama import options

DEFAULTS = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "seed": 0xFFFFFFFF,
    "n_keep": 4,
    "n_predict": 40960,
    "cache_prompt": True,
}


def fields(context: int | None = 4096, **given: Any) -> dict[str, Any]:
    return options.fields(options.read(given), context)


def test_every_sampler_is_sent_with_the_default_of_ollama() -> None:
    assert fields() == DEFAULTS
    assert fields(None) == {**DEFAULTS, "n_predict": -1}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1, "top_p": 1, "top_k": 20.0}, {"temperature": 1, "top_p": 1, "top_k": 20}),
        ({"num_predict": 7}, {"n_predict": 7}),
        ({"num_predict": 0}, {"n_predict": 0}),
        ({"num_predict": -2}, {"n_predict": 4096}),
        ({"num_predict": -9}, {"n_predict": 4096}),
        ({"num_predict": 10**9}, {"n_predict": 40960}),
        ({"seed": 0}, {"seed": 0}),
        ({"seed": 42.0}, {"seed": 42}),
        ({"seed": -7}, {"seed": 0xFFFFFFFF}),
        ({"seed": 2**62 + 5}, {"seed": 5}),
        ({"seed": 2**63 - 1}, {"seed": 0xFFFFFFFE}),
        ({"repeat_last_n": -1}, {"repeat_last_n": 4096}),
        ({"repeat_last_n": 0}, {"repeat_last_n": 0}),
        ({"repeat_last_n": 2**40}, {"repeat_last_n": 4096}),
        ({"num_keep": -5}, {"n_keep": -1}),
        ({"top_k": 2**60}, {"top_k": 2**31 - 1}),
        ({"stop": ["a", "", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"stop": []}, {}),
        ({"mirostat": 2, "mirostat_tau": 4}, {"mirostat": 2, "mirostat_tau": 4}),
        ({"mirostat": 3}, {}),
        ({"temperature": None, "stop": None, "use_mmap": None}, {}),
        ({"num_gpu": 99, "num_thread": 4, "num_batch": 1, "use_mmap": True, "numa": True, "tfs_z": 1, "new": {}}, {}),
    ],
)  # fmt: skip
def test_an_option_becomes_a_field(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert fields(**given) == {**DEFAULTS, **sent}


def test_without_a_known_context_windows_stay_bounded() -> None:
    assert fields(None, repeat_last_n=-1)["repeat_last_n"] == 4096
    assert fields(None, repeat_last_n=-1, num_ctx=100)["repeat_last_n"] == 100
    assert fields(None, num_predict=-2)["n_predict"] == -1


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("temperature", "hot", "float32"),
        ("temperature", True, "float32"),
        ("min_p", 1e39, "float32"),
        ("top_p", [], "float32"),
        ("num_predict", "5", "integer"),
        ("num_ctx", 1.5, "integer"),
        ("seed", True, "integer"),
        ("mirostat", {}, "integer"),
        ("use_mmap", 1, "boolean"),
        ("stop", 1, "array"),
        ("stop", ["a", 1], "array of strings"),
    ],
)
def test_an_option_of_a_wrong_type_is_named(name: str, value: Any, kind: str) -> None:
    with pytest.raises(InvalidField) as error:
        options.read({name: value})
    assert error.value.message == f'option "{name}" must be of type {kind}'
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("given", "context"), [({}, None), ({"num_ctx": 0}, None), ({"num_ctx": 8192}, 8192)]
)
def test_num_ctx_is_what_the_kernel_is_told(given: dict[str, Any], context: int | None) -> None:
    assert options.read(given).context == context
