"""A key that may use some models only: it learns of no others, by no name and through no port."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaman.access import Scope
from llamaman.core.model_names import find_model
from llamaman.errors import Forbidden, LlamaManError, ModelNotFound
from llamaman.gateway.dialect import JSON_HEADERS, Intent, Reply, Request
from llamaman.gateway.request_checks import resolve
from llamaman.records import Identity, ModelView

from .fleet import MODEL
from .small_pipeline import Scripted, house, whole

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Shelf:
    """The library's part in resolving names."""

    def __init__(self, *names: str) -> None:
        self._models = tuple(replace(MODEL, name=name, path=Path(f"/models/{name}.gguf")) for name in names)

    def models(self) -> Sequence[ModelView]:
        return self._models

    def find(self, name: str) -> ModelView:
        return find_model(name, self._models)


SHELF = Shelf("alpha-7b", "alpha-secret", "beta", "quiet-merger")


def key(*models: str) -> Identity:
    return Identity("key", "k", Scope.INFERENCE, "k1", frozenset(models))


def found(name: str, who: Identity) -> str:
    return resolve(SHELF, Intent(name, needs="chat"), None, who).name  # type: ignore[arg-type] # what it needs of it


@pytest.mark.parametrize("name", ["alpha-7b", "ALPHA-7B:latest", "alpha", "a", "alpha-7"])
def test_a_beginning_means_a_model_of_the_keys_own(name: str) -> None:
    assert found(name, key("alpha-7b")) == "alpha-7b"


@pytest.mark.parametrize("name", ["q", "quiet", "quiet-merge", "alpha-s", "z", "quiet-merger.gguf"])
def test_no_beginning_tells_of_a_model_of_others(name: str) -> None:
    with pytest.raises(ModelNotFound) as refusal:
        found(name, key("alpha-7b"))
    assert not refusal.value.candidates
    assert "merger" not in refusal.value.message.replace(name, "")
    assert "secret" not in refusal.value.message.replace(name, "")


def test_a_whole_name_is_refused_as_it_was_written() -> None:
    with pytest.raises(Forbidden) as refusal:
        found("Quiet-Merger:latest", key("beta"))
    assert refusal.value.message == "this key may not use model 'Quiet-Merger:latest'"


class Telling(Scripted):
    """Answers with what it was told of models, as lists do."""

    def __init__(self) -> None:
        super().__init__(lambda: iter(()))  # type: ignore[arg-type, return-value] # never asked

    def open(self, request: Request) -> Reply:
        own = request.own_model
        names = [model.name for model in request.models] + ([own.name] if own else [])
        return Reply(200, JSON_HEADERS, json.dumps(names).encode())

    def error(self, error: LlamaManError, *, started: bool) -> Reply:
        return Reply(error.status, JSON_HEADERS, error.message.encode())


@pytest.mark.parametrize(("model", "status"), [(MODEL.name, 200), ("another", 403)])
def test_an_instances_port_tells_a_key_nothing_of_a_model_that_it_may_not_use(
    run: Run, model: str, status: int
) -> None:
    async def main() -> None:
        async with house(Telling(), lambda path, writer: None, who=key(model), on_its_port=True) as place:  # type: ignore[arg-type, return-value] # never asked
            got, raw = await whole(place.port)
            assert got == status
            assert (MODEL.name in raw.decode()) == (status == 200)

    run(main())
