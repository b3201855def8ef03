"""Which model a request means, and what is said where it means none."""

from __future__ import annotations

from typing import Any

import pytest
from ollama_script import (
    BODIES,
    HELLO,
    opened,
    refusal,
)

from llamaman.testing.dialect_script import MODELS
from llamaman_api_ollama.asked import Asking
from llamaman_api_ollama.dialect import CHAT, EMBED, EMBEDDINGS, GENERATE, SHOW


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        (CHAT, 400, "model is required"),
        (GENERATE, 404, "model '' not found"),
        (EMBED, 404, "model '' not found"),
        (EMBEDDINGS, 400, "model is required"),
        (SHOW, 400, "model is required"),
    ],
)
@pytest.mark.parametrize("name", [{"model": ""}, {"model": None}, {"model": " ", "name": ""}, {}])
def test_no_name(path: str, status: int, text: str, name: dict[str, Any]) -> None:
    body = {key: value for key, value in BODIES[path].items() if key != "model"} | name
    assert refusal(path, body) == (status, text)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", ["x!", "foo:", "/foo"])
def test_a_name_that_breaks_the_grammar(path: str, name: str) -> None:
    assert refusal(path, {**BODIES[path], "model": name}) == (400, "invalid model name")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (EMBED, 'model "Nobody" not found, try pulling it first'),
        (EMBEDDINGS, 'model "Nobody" not found, try pulling it first'),
        (SHOW, "model 'Nobody:latest' not found"),
    ],
)
def test_a_model_that_is_not_there(path: str, text: str) -> None:
    assert refusal(path, {**BODIES[path], "model": "Nobody"}) == (404, text)


def test_a_model_that_is_not_there_is_the_kernels_404_elsewhere() -> None:
    for path in (CHAT, GENERATE):
        assert opened(path, {**BODIES[path], "model": "Nobody"}).model == "Nobody"


@pytest.mark.parametrize("path", BODIES)
def test_models_of_the_cloud(path: str) -> None:
    for name, status, text in (
        ("x:cloud", 403, "ollama cloud is disabled: remote model is unavailable"),
        ("x:cloud:local", 400, "use either :local or :cloud, not both"),
    ):
        assert refusal(path, {**BODIES[path], "model": name}) == (status, text)


@pytest.mark.parametrize("path", [CHAT, GENERATE, EMBED, EMBEDDINGS])
def test_the_old_field_for_the_name_counts_where_the_new_one_is_empty(path: str) -> None:
    body = {key: value for key, value in BODIES[path].items() if key != "model"}
    for given in ({"name": "alpha"}, {"name": "alpha", "model": ""}, {"name": "x", "model": "alpha"}):
        intent = opened(path, {**body, **given})
        assert isinstance(intent, Asking)
        assert (intent.model, intent.name) == ("alpha", "alpha")


def test_the_kernel_is_asked_for_the_models_own_name_and_the_answer_has_the_clients() -> None:
    intent = opened(CHAT, {**HELLO, "model": "ALPHA:local"})
    assert isinstance(intent, Asking)
    assert (intent.model, intent.name) == ("alpha", "ALPHA:local")


def test_an_instance_port_needs_no_name_and_judges_one_itself() -> None:
    assert opened(CHAT, {"messages": []}, own_model=MODELS[1]).model is None
    assert opened(CHAT, {**HELLO, "model": "nobody"}, own_model=MODELS[1]).model == "nobody"
