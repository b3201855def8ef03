"""Models in Ollama's words: every member that its clients demand, and nothing that makes one of them fail."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llamaman import EngineFacts, ModelDetails, find_model
from llamaman.records import State
from llamaman.testing.dialect_script import MODELS
from llamaman.testing.views import instance_view
from llamaman_api_ollama.describe import full_name, parameter_size, ps, show, tags

ALPHA, BETA, FOLDER = MODELS
NOW = 1_750_000_000.0
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "8.0B",
    "quantization_level": "Q4_K_M",
}


def at(text: str) -> float:
    """Epoch seconds of a time that must have a zone."""
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo is not None
    return moment.timestamp()


def shown(model: Any = ALPHA, *running: Any, preset: dict[str, Any] | None = None, agent: bytes = b"") -> Any:
    return show(model, verbose=False, user_agent=agent, running=running, preset=preset)


def known(**changes: Any) -> Any:
    """The first model with other details."""
    assert ALPHA.details is not None
    return replace(ALPHA, details=replace(ALPHA.details, **changes))


# --- tags -----------------------------------------------------------------------------------------------


def test_a_tag_has_every_member_of_ollamas() -> None:
    entry = tags((ALPHA,))["models"][0]
    assert at(entry.pop("modified_at")) == ALPHA.modified
    assert entry == {
        "name": "alpha:latest",
        "model": "alpha:latest",
        "size": 1000,
        "digest": "a" * 64,
        "details": {**DETAILS, "context_length": 8192, "embedding_length": 64},
        "capabilities": ["completion", "insert", "thinking", "tools", "vision"],
    }


def test_tags_are_the_models_that_can_run_newest_first() -> None:
    assert [entry["name"] for entry in tags(MODELS)["models"]] == ["beta:latest", "alpha:latest"]
    assert tags(()) == {"models": []}


def test_a_model_of_which_nothing_is_known_is_listed_all_the_same() -> None:
    entry = tags((replace(ALPHA, details=None, quant=None, context_length=None, modified=0.0),))["models"][0]
    assert re.fullmatch("[0-9a-f]{64}", entry["digest"])
    assert entry["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "unknown",
    }
    assert entry["capabilities"] == ["completion"]


@pytest.mark.parametrize("modified", [-1e18, -1.0, 1e18, float("inf"), float("nan")])
def test_a_file_with_an_absurd_time_is_no_reason_to_fail(modified: float) -> None:
    year = datetime.fromisoformat(tags((replace(ALPHA, modified=modified),))["models"][0]["modified_at"]).year
    assert 1969 <= year <= 9999


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (8_030_261_248, "8.0B"),
        (268_098_176, "268.10M"),
        (7_000_000_000, "7B"),
        (30_000_000, "30M"),
        (123_456, "123K"),
        (999, "999"),
        (0, "0"),
        (None, ""),
    ],
)
def test_how_many_parameters_are_written_as_ollama_writes_them(count: int | None, text: str) -> None:
    assert parameter_size(count) == text


# --- names ----------------------------------------------------------------------------------------------

ODD = (
    "my model (1)",
    "größe",
    "-x",
    ".hidden",
    "a" * 120,
    "日本",
    "a/b",
    "qwen3:",
    "a:b:c",
    "x@y",
    "a_" + "?" * 100,
)


@pytest.mark.parametrize("name", ["qwen2.5-7b-q4_k_m", "_x", "7b"])
def test_a_name_within_the_grammar_is_listed_with_its_tag(name: str) -> None:
    assert full_name(name) == f"{name}:latest"


def test_a_name_that_is_a_name_with_a_tag_keeps_it() -> None:
    assert full_name("qwen3:8b") == "qwen3:8b"


@pytest.mark.parametrize("name", ODD)
def test_any_other_name_is_listed_within_the_grammar_and_found_by_what_is_listed(name: str) -> None:
    models = tuple(replace(ALPHA, name=each) for each in (*ODD, "plain"))
    listed = full_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}:latest", listed)
    assert [full_name(model.name) for model in models].count(listed) == 1
    for typed in (listed, listed.upper(), listed.removesuffix(":latest")):
        assert find_model(typed, models).name == name


# --- show -----------------------------------------------------------------------------------------------


def test_a_shown_model_has_every_member_that_clients_read() -> None:
    answer = shown()
    assert answer["details"] == DETAILS
    assert answer["model_info"] == {
        "general.architecture": "llama",
        "llama.context_length": 8192,
        "llama.embedding_length": 64,
        "general.parameter_count": 8_030_261_248,
        "general.basename": "Alpha",
    }
    assert answer["capabilities"] == ["completion", "insert", "thinking", "tools", "vision"]
    assert at(answer["modified_at"]) == ALPHA.modified
    assert answer["modelfile"].startswith("# ")
    assert "\nFROM alpha:latest\n" in answer["modelfile"]
    assert {"license", "system", "parameters", "projector_info"}.isdisjoint(answer)


def test_no_answer_holds_a_path_of_the_machine() -> None:
    view = instance_view(ALPHA)
    for answer in (shown(ALPHA, view, preset={"ctx_size": 512}), tags(MODELS), ps(MODELS, (view,), NOW)):
        assert "/models" not in json.dumps(answer)


def test_the_models_own_context_is_the_first_key_of_that_name() -> None:
    metadata = {
        "llama.rope.scaling.original_context_length": 4096,
        "general.name": "Alpha",
        "tokenizer.chat_template": "x",
        "general.parameter_count": "many",
        "llama.context_length": "long",
        "tokenizer.ggml.tokens": None,
        "general.license": "mit",
    }
    answer = shown(known(metadata=metadata))
    info = answer["model_info"]
    assert next(key for key in info if "context_length" in key) == "llama.context_length"
    assert (info["llama.context_length"], info["general.parameter_count"]) == (8192, 8_030_261_248)
    assert info["tokenizer.ggml.tokens"] is None
    assert {"general.name", "tokenizer.chat_template"}.isdisjoint(info)
    assert answer["license"] == "mit"


@pytest.mark.parametrize(
    ("running", "preset", "context"),
    [
        ((), None, 8192),
        ((), {"ctx_size": 2048}, 2048),
        ((instance_view(ALPHA, context_length=1024),), {"ctx_size": 2048}, 1024),
        ((instance_view(ALPHA, State.SLEEPING, options={"ctx_size": 512}),), {"ctx_size": 2048}, 512),
    ],
)
def test_the_context_is_the_one_in_effect(running: Any, preset: Any, context: int) -> None:
    answer = shown(ALPHA, *running, preset=preset)
    assert answer["model_info"]["llama.context_length"] == context
    assert answer.get("parameters") == (
        f"num_ctx                        {context}" if context < 8192 else None
    )


def test_parameters_are_lines_of_a_name_a_blank_and_a_value() -> None:
    preset = {
        "ctx_size": 2048,
        "threads": 2,
        "proxy_sampling_override_enabled": True,
        "proxy_sampling_temperature": 0.7,
        "proxy_sampling_top_k": 40,
    }
    text = shown(preset=preset)["parameters"]
    assert text == text.strip()
    for line in text.split("\n"):
        assert re.fullmatch(r"[a-z_]+ +[0-9.]+", line)
        assert line[30] == " "
        assert line[31] != " "
    assert dict(line.split() for line in text.split("\n")) == {
        "num_ctx": "2048",
        "num_thread": "2",
        "temperature": "0.7",
        "top_k": "40",
    }
    assert (
        "temperature" not in shown(preset={**preset, "proxy_sampling_override_enabled": False})["parameters"]
    )


def test_the_template_shows_by_its_words_what_the_model_can_do() -> None:
    assert ".Suffix" in shown()["template"]
    assert "tools" in shown()["template"]
    plain = shown(known(capabilities=frozenset({"completion"}), template="{{ x }}"))
    assert plain["template"] == "{{ x }}"
    assert "template" not in shown(known(capabilities=frozenset({"completion"}), template=None))


def test_a_running_engine_knows_better_than_the_files_what_a_model_can_do() -> None:
    facts = EngineFacts(frozenset(), None, {"supports_tools": False})
    assert shown(ALPHA, instance_view(ALPHA, facts=facts))["capabilities"] == [
        "completion",
        "insert",
        "thinking",
    ]


def test_a_model_that_runs_for_embeddings_is_not_said_to_chat() -> None:
    assert shown(BETA)["capabilities"] == ["embedding"]
    assert shown(preset={"embedding_model": True})["capabilities"] == ["embedding", "vision"]


def test_copilot_is_shown_the_name_of_the_model() -> None:
    answer = shown(agent=b"GitHubCopilotChat/0.31")
    assert answer["model_info"]["general.basename"] == "alpha:latest"


def test_a_projector_has_its_own_keys() -> None:
    answer = shown(known(projector={"general.architecture": "clip", "clip.has_vision_encoder": True}))
    assert answer["projector_info"] == {"general.architecture": "clip", "clip.has_vision_encoder": True}


def test_what_hostile_files_claim_is_text_in_json() -> None:
    nasty = 'x"\n\x00\u2028"""</script>'
    model = known(
        template=nasty, metadata={nasty: nasty, "general.basename": 5, "general.license": 7}, name=None
    )
    answer = json.loads(json.dumps(shown(model)))
    assert answer["template"].startswith(nasty)
    assert "TEMPLATE" not in answer["modelfile"]  # it would end in the middle of the text
    assert answer["model_info"][nasty] == nasty
    assert answer["model_info"]["general.basename"] == "alpha"
    assert "license" not in answer


def test_a_model_without_any_header_still_has_model_info() -> None:
    assert shown(replace(ALPHA, details=ModelDetails()))["model_info"] == {
        "general.architecture": "",
        "general.basename": "alpha",
    }


# --- ps -------------------------------------------------------------------------------------------------


def test_a_loaded_model_has_every_member_of_ollamas() -> None:
    view = instance_view(ALPHA, memory_estimate=2000, size_vram=1500, expires=NOW + 300)
    (entry,) = ps(MODELS, (view,), NOW)["models"]
    assert at(entry.pop("expires_at")) == NOW + 300
    assert entry == {
        "name": "alpha:latest",
        "model": "alpha:latest",
        "size": 2000,
        "digest": "a" * 64,
        "details": DETAILS,
        "size_vram": 1500,
        "context_length": 4096,
    }


@pytest.mark.parametrize("state", sorted(set(State) - {State.READY, State.DRAINING}))
def test_what_is_not_loaded_is_not_listed(state: State) -> None:
    assert ps(MODELS, (instance_view(ALPHA, state),), NOW) == {"models": []}


def test_never_is_some_three_hundred_years_from_now() -> None:
    (entry,) = ps(MODELS, (instance_view(ALPHA),), NOW)["models"]
    assert datetime.fromisoformat(entry["expires_at"]).astimezone(UTC).year == 2317


def test_what_is_being_put_to_sleep_has_a_time_that_is_over() -> None:
    (entry,) = ps(MODELS, (instance_view(ALPHA, State.DRAINING),), NOW)["models"]
    assert at(entry["expires_at"]) <= NOW


@pytest.mark.parametrize(
    ("changes", "size", "on_gpus"),
    [
        ({}, 1000, 1000),
        ({"options": {"n_gpu_layers": 0}}, 1000, 0),
        ({"memory_estimate": 5000, "options": {"n_gpu_layers": -1}}, 5000, 5000),
        ({"memory_estimate": 5000, "size_vram": 0}, 5000, 0),
        ({"size_vram": 3000}, 3000, 3000),
    ],
)
def test_sizes_are_the_best_that_is_known(changes: dict[str, Any], size: int, on_gpus: int) -> None:
    (entry,) = ps(MODELS, (instance_view(ALPHA, **changes),), NOW)["models"]
    assert (entry["size"], entry["size_vram"]) == (size, on_gpus)


def test_each_model_is_listed_once_and_the_one_that_stays_longest_first() -> None:
    views = (
        instance_view(ALPHA, id="1", expires=NOW + 10, context_length=512),
        instance_view(ALPHA, id="2", expires=NOW + 20, context_length=1024),
        instance_view(BETA, id="3", expires=NOW + 15),
    )
    first, second = ps(MODELS, views, NOW)["models"]
    assert (first["name"], first["size"], first["context_length"]) == ("alpha:latest", 2000, 512)
    assert at(first["expires_at"]) == NOW + 20
    assert second["name"] == "beta:latest"


def test_an_instance_whose_file_is_gone_is_not_listed() -> None:
    view = instance_view(replace(ALPHA, path=Path("/models/gone.gguf")))
    assert ps(MODELS, (view,), NOW) == {"models": []}


# --- what clients make of it ----------------------------------------------------------------------------


def test_ollamas_own_python_client_takes_the_answers() -> None:
    ollama = pytest.importorskip("ollama")
    listed = ollama.ListResponse.model_validate_json(json.dumps(tags(MODELS)))
    assert [model.model for model in listed.models] == ["beta:latest", "alpha:latest"]
    assert (
        ollama.ShowResponse.model_validate_json(json.dumps(shown())).modelinfo["llama.context_length"] == 8192
    )
    running = ollama.ProcessResponse.model_validate_json(json.dumps(ps(MODELS, (instance_view(ALPHA),), NOW)))
    assert running.models[0].expires_at.year == 2317
