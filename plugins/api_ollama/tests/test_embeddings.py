"""Vectors: their order and length, and inputs that are too long."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ollama_script import (
    opened,
    replied,
    saying,
    sent,
    served,
)

from llamaman.gateway.dialect import Call, Result
from llamaman.testing.dialect_script import LEASE
from llamaman_api_ollama.dialect import EMBED, EMBEDDINGS

INPUTS = {"model": "beta", "input": ["first", "second"]}


def vectors(*made: list[float], tokens: int = 7) -> Callable[[Call], Result]:
    """An engine that gives these vectors, not in their order."""
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(made)][::-1]
    return lambda call: Result(200, json.dumps({"data": data, "usage": {"prompt_tokens": tokens}}).encode())


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    found = replied(served(EMBED, INPUTS, answer=vectors([1.0, 0.0], [0.0, 1.0])))
    assert found.pop("total_duration") >= found.pop("load_duration") >= 1
    assert found == {"model": "beta", "embeddings": [[1.0, 0.0], [0.0, 1.0]], "prompt_eval_count": 7}
    assert sent(EMBED, INPUTS)["input"] == ["first", "second"]
    assert sent(EMBED, {**INPUTS, "input": "a"})["input"] == ["a"]


def test_every_input_is_a_task_of_the_engines() -> None:
    for given, tasks in (("a", 1), (["a", "b", "c"], 3), ([], 1)):
        assert opened(EMBED, {"model": "beta", "input": given}).tasks == tasks


def test_the_old_endpoint_gives_one_vector_alone() -> None:
    asked = {"model": "beta", "prompt": "x"}
    assert replied(served(EMBEDDINGS, asked, answer=vectors([1.0, 0.0]))) == {"embedding": [1.0, 0.0]}


@pytest.mark.parametrize("given", ["", [], None])
def test_no_input_loads_the_model(given: Any) -> None:
    intent = opened(EMBED, {"model": "beta", "input": given})
    assert (intent.action, intent.needs) == ("load", "embedding")
    assert replied(served(EMBED, {"model": "beta", "input": given})) == {"model": "beta", "embeddings": []}
    assert replied(served(EMBEDDINGS, {"model": "beta", "prompt": given or ""})) == {"embedding": []}


@pytest.mark.parametrize(
    ("size", "vector"),
    [(1, [1.0]), (2, [0.6, 0.8]), (3, [0.3, 0.4, 0.5]), (9, [0.3, 0.4, 0.5]), (0, [0.3, 0.4, 0.5])],
)
def test_fewer_dimensions_are_cut_and_made_one_long_again(size: int, vector: list[float]) -> None:
    found = replied(served(EMBED, {**INPUTS, "dimensions": size}, answer=vectors([0.3, 0.4, 0.5])))
    assert found["embeddings"] == [pytest.approx(vector)]


def test_a_vector_of_zeros_stays_one() -> None:
    found = replied(served(EMBED, {**INPUTS, "dimensions": 1}, answer=vectors([0.0, 1.0])))
    assert found["embeddings"] == [[0.0]]


def test_large_answers_are_read_off_the_event_loop() -> None:
    done = served(EMBED, INPUTS, answer=vectors([0.123456789] * 20_000))
    assert any(type(op).__name__ == "Work" for op in done.ops)
    assert len(replied(done)["embeddings"][0]) == 20_000


def too_long(limit: int, kind: str = "batch") -> Callable[[Call], Result]:
    """An engine of one token per character and one around each side; it takes ``limit`` tokens."""

    def answer(call: Call) -> Result:
        body = json.loads(call.body)
        if call.path == "/tokenize":
            bare = [ord(char) for char in body["content"]]
            return Result(
                200, json.dumps({"tokens": [1, *bare, 2] if body["add_special"] else bare}).encode()
            )
        sizes = [len(each) + 2 if isinstance(each, str) else len(each) for each in body["input"]]
        if max(sizes) > limit and kind == "batch":
            message = f"input is too large to process. increase it (current batch size: {limit})"
            return saying(500, message)(call)
        if max(sizes) > limit:
            return saying(400, "input is larger than the context", "exceed_context_size_error")(call)
        return vectors(*([float(size), 0.0] for size in sizes))(call)

    return answer


@pytest.mark.parametrize("kind", ["batch", "context"])
def test_an_input_that_is_too_long_is_cut_within_what_stands_around_it(kind: str) -> None:
    lease = replace(LEASE, context_length=10)
    done = served(EMBED, {"model": "beta", "input": ["ab", "x" * 20]}, lease=lease, answer=too_long(10, kind))
    assert replied(done)["embeddings"] == [[4.0, 0.0], [10.0, 0.0]]
    assert json.loads(done.calls[-1].body)["input"] == ["ab", [1, *[120] * 8, 2]]


def test_an_input_that_must_not_be_cut_is_a_400() -> None:
    asked = {"model": "beta", "input": "x" * 20, "truncate": False}
    found = replied(served(EMBED, asked, answer=too_long(10)), 400)
    assert found == {"error": "the input length exceeds the context length"}


def test_an_input_of_which_nothing_can_stay_is_a_400() -> None:
    found = replied(served(EMBED, {"model": "beta", "input": "x" * 20}, answer=too_long(2)), 400)
    assert found == {"error": "input after truncation exceeds maximum context length"}


def test_any_other_refusal_is_told_for_the_whole_batch() -> None:
    assert replied(served(EMBED, INPUTS, answer=saying(500, "Compute error.")), 500) == {
        "error": "Compute error."
    }


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"data": [1]}', b"no"])
def test_an_answer_that_is_none_is_said_to_be(body: bytes) -> None:
    replied(served(EMBED, INPUTS, answer=lambda call: Result(200, body)), 502)
