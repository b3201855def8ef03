"""The entries of the model list: what OpenAI's clients demand, and what we add to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llamaman import EngineFacts, ModelNotFound
from llamaman.records import State
from llamaman.testing.dialect_script import MODELS
from llamaman.testing.views import instance_view
from llamaman_api_openai.models import entries, one

ALPHA, BETA, FOLDER = MODELS


def entry(*instances: Any, preset: dict[str, Any] | None = None) -> dict[str, Any]:
    return entries((ALPHA,), instances, {ALPHA.path: preset} if preset else None)[0]


def test_an_entry_has_openais_fields_and_ours() -> None:
    assert entries(MODELS) == [
        {
            "id": "alpha",
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "local",
            "state": "not_loaded",
            "capabilities": ["completion", "insert", "thinking", "tools", "vision"],
            "context_length": 4096,
            "aliases": [],
        },
        {
            "id": "beta",
            "object": "model",
            "created": 1_700_000_001,
            "owned_by": "local",
            "state": "not_loaded",
            "capabilities": ["embedding"],
            "context_length": 512,
            "aliases": [],
        },
    ]


def test_openais_own_client_takes_an_entry_under_strict_validation() -> None:
    openai_types = pytest.importorskip("openai.types")
    for item in entries(MODELS, (instance_view(ALPHA),)):
        openai_types.Model.model_validate(item, strict=True)


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ((), "not_loaded"),
        ((State.SLEEPING,), "sleeping"),
        ((State.STOPPED, State.STARTING), "starting"),
        ((State.SLEEPING, State.READY, State.FAILED), "healthy"),
        ((State.FAILED, State.STOPPED), "failed"),
    ],
)
def test_the_state_is_that_of_the_instance_nearest_to_answering(states: tuple[State, ...], word: str) -> None:
    assert entry(*(instance_view(ALPHA, state) for state in states))["state"] == word


def test_an_instance_of_another_model_says_nothing() -> None:
    assert entry(instance_view(BETA))["state"] == "not_loaded"


@pytest.mark.parametrize(
    ("instances", "preset", "tokens"),
    [
        ((), None, 4096),  # the default of a launch
        ((), {"ctx_size": 2048}, 2048),
        ((), {"ctx_size": 100_000}, 8192),  # no model goes beyond its training
        ((instance_view(ALPHA, context_length=1024),), {"ctx_size": 2048}, 1024),
        ((instance_view(ALPHA, State.SLEEPING, options={"ctx_size": 512}),), {"ctx_size": 2048}, 512),
        ((instance_view(ALPHA, State.STOPPED, options={"ctx_size": 512}),), {"ctx_size": 2048}, 2048),
    ],
)
def test_the_context_is_what_a_request_gets(
    instances: tuple[Any, ...], preset: dict[str, Any] | None, tokens: int
) -> None:
    assert entry(*instances, preset=preset)["context_length"] == tokens


def test_a_running_engine_knows_better_than_the_files() -> None:
    facts = EngineFacts(frozenset({"audio"}), None, {"supports_tools": False, "supports_tool_calls": False})
    assert entry(instance_view(ALPHA, facts=facts))["capabilities"] == [
        "audio",
        "completion",
        "insert",
        "thinking",
    ]
    silent = instance_view(ALPHA, facts=EngineFacts())
    assert entry(silent)["capabilities"] == entry()["capabilities"]
    asleep = instance_view(ALPHA, State.SLEEPING, facts=facts)
    assert entry(asleep)["capabilities"] == entry()["capabilities"]


def test_what_runs_or_will_run_as_an_embedding_model_cannot_chat() -> None:
    assert entry(preset={"embedding_model": True})["capabilities"] == ["embedding", "vision"]
    running = instance_view(ALPHA, options={"embedding_model": True})
    assert entry(running)["capabilities"] == ["embedding", "vision"]


def test_one_model_is_found_like_everywhere_and_keeps_the_name_that_was_asked_for() -> None:
    models = (replace(ALPHA, aliases=("GPT-4o",)), BETA, FOLDER)
    for name in ("alpha", "Alpha:latest", "gpt-4o", "alp"):
        found = one(name, models, (instance_view(ALPHA),))
        assert (found["id"], found["created"], found["state"]) == (name, 1_700_000_000, "healthy")
        assert found["aliases"] == ["GPT-4o"]


def test_what_cannot_run_or_is_not_there_is_not_found() -> None:
    for name in ("folder", "gamma", ""):
        with pytest.raises(ModelNotFound):
            one(name, MODELS)
    twins = (replace(ALPHA, name="alpha-1"), replace(ALPHA, name="alpha-2"))
    with pytest.raises(ModelNotFound) as caught:
        one("alpha", twins)
    assert caught.value.candidates == ("alpha-1", "alpha-2")
