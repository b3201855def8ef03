"""``llamaman stats``: the table, JSON, and watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prepared_answers import StandIn, stand_in

from llamaman.cli import stats

Run = Callable[..., Any]
USE = {
    "cpu_pct": 151.3, "num_cpus": 2.5, "mem_used_mb": 1536.0, "mem_limit_mb": 4096.0, "gpus": [], "cpu_quota": 2.5,
}  # fmt: skip
UNKNOWN = dict.fromkeys(USE, None) | {"gpus": []}


@pytest.fixture
def answering(environment: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as state:
        environment.setenv("LLAMAMAN_URL", state.url)
        environment.setenv("LLAMAMAN_API_KEY", "llm-" + "k" * 40)
        state.answers["GET /api/instances"] = [
            {"id": "abcdef1234567890", "model": "tiny\x1b[2J"},
            {"id": "0000111122223333", "model": "other"},
        ]
        state.answers["GET /api/instances/container-stats"] = {
            "abcdef1234567890": USE,
            "0000111122223333": UNKNOWN,
        }
        yield state


def test_a_row_names_the_model_and_what_it_uses(answering: StandIn, llamaman: Run) -> None:
    outcome = llamaman("stats")
    assert outcome.status == 0
    _, first, second = outcome.out.splitlines()
    assert first.split() == [
        "abcdef12", "tiny\\x1b[2J", "151.3", "2.5", "1.5", "GiB", "4.0", "GiB", "38", "-",
    ]  # fmt: skip
    assert second.split() == ["00001111", "other", *"------"]


def test_json_is_the_managers_answer(answering: StandIn, llamaman: Run) -> None:
    assert llamaman("stats", "--json").json == {"abcdef1234567890": USE, "0000111122223333": UNKNOWN}


def test_nothing_running_leaves_the_heads(answering: StandIn, llamaman: Run) -> None:
    answering.answers["GET /api/instances/container-stats"] = {}
    assert llamaman("stats").out.startswith("ID")


def test_watching_goes_on_until_interrupted(
    answering: StandIn, llamaman: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(stats.time, "sleep", wait)
    outcome = llamaman("stats", "--watch")
    assert outcome.status == 130
    assert outcome.out.count("abcdef12") == 3
