"""``/metrics`` as a collector sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from management_door import Manager
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from llamaman.access import Scope
from llamaman.core.instance import Instance
from llamaman.dashboard.rest.metrics import exposition, figures
from llamaman.gateway import metrics
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.limits import Surface
from llamaman.gateway.metrics_table import FAMILIES
from llamaman.gateway.native import Native
from llamaman.records import NOBODY, LaunchRequest, ModelView, State

HOSTILE = 'a"} 1\nllamaman_requests_total{model="forged\\'
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def text(manager: Manager, accept: str = "", scope: Scope = Scope.VIEW) -> tuple[int, str, str]:
    connection, answer = manager.open(
        "GET", "/metrics", headers={"Accept": accept} if accept else {}, key=manager.key(scope)
    )
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.getheader("Content-Type") or "", body


def samples(manager: Manager, name: str) -> dict[tuple[str, ...], float]:
    """Labels' values (in the order of their names) -> the value."""
    found = text_string_to_metric_families(text(manager)[2])
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in found
        for sample in family.samples
        if sample.name == name
    }


def answered(manager: Manager, name: str) -> None:
    """Count a request for a model of that name."""
    request: Any = SimpleNamespace(surface=Surface("proxy"), answered=True, is_gone=False, task=None)
    exchange = Exchange(request, None, Native(), NOBODY, "/completion")  # type: ignore[arg-type] # sends nothing
    exchange.model, exchange.status = ModelView(name, Path("/models/x.gguf"), 1, None, 0.0), 200
    exchange.meter.prompt_tokens, exchange.meter.completion_tokens = 3, 2
    manager.kernel.metrics.observe(exchange)


def families(body: str, accept: str) -> Iterator[Metric]:
    parse: Any = open_families if "openmetrics" in accept else text_string_to_metric_families
    return iter(parse(body))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("text/plain;version=0.0.4", "text/plain"),
        (OPENMETRICS, "application/openmetrics-text"),
        ("text/html, application/openmetrics-text; version=one;q=x", "application/openmetrics-text"),
    ],
)
def test_what_is_declared_is_shown_in_the_format_that_is_accepted(
    manager: Manager, accept: str, kind: str
) -> None:
    answered(manager, "tiny")
    manager.kernel.instances.launch(LaunchRequest(manager.model, {}), "test")
    status, content_type, body = text(manager, accept)
    assert (status, content_type.partition(";")[0]) == (200, kind)
    found = {family.name: family for family in families(body, accept)}
    for each in FAMILIES:
        name = each.name.removesuffix("_total" if each.kind == "counter" else "\n")
        shown = found.pop(name, None) or found.pop(name.removesuffix("_info"))
        assert shown.documentation == each.help
        for sample in shown.samples:
            assert set(sample.labels) - {"le"} == set(each.labels), each.name
    assert found == {}, "nothing that is not declared"


def test_a_view_key_reads_figures_and_an_inference_key_does_not(manager: Manager) -> None:
    assert text(manager, scope=Scope.VIEW)[0] == 200
    assert text(manager, scope=Scope.INFERENCE)[0] == 403
    status, _, _ = manager.raw("GET", "/metrics")
    assert status == 401


def test_counts_are_those_of_what_was_answered(manager: Manager) -> None:
    for _ in range(3):
        answered(manager, "tiny")
    dialect = Native().name
    assert samples(manager, "llamaman_requests_total") == {(dialect, "tiny", "complete", "2xx"): 3}
    assert samples(manager, "llamaman_prompt_tokens_total") == {(dialect, "tiny"): 9}
    buckets = samples(manager, "llamaman_request_duration_seconds_bucket")
    assert (
        buckets["+Inf", "tiny"] == samples(manager, "llamaman_request_duration_seconds_count")["tiny",] == 3
    )


def test_an_instance_is_in_one_state(manager: Manager) -> None:
    view = manager.kernel.instances.launch(LaunchRequest(manager.model, {}), "test")
    states = samples(manager, "llamaman_instance_state")
    assert {state: value for (_, _, state), value in states.items()} == {
        state.value: float(state is State.READY) for state in State
    }
    assert samples(manager, "llamaman_instance_slots") == {(view.id, view.model): 1}
    stopped = replace(view, state=State.STOPPED, slots=None)
    manager.kernel.instances.all[view.id] = stopped
    assert samples(manager, "llamaman_instance_slots") == {}, "unknown is absent, not 0"


def test_hostile_names_stay_in_their_label(manager: Manager) -> None:
    answered(manager, HOSTILE)
    answered(manager, "caf\udce9")  # the name of a file that is not UTF-8
    assert {model for _, model, _, _ in samples(manager, "llamaman_requests_total")} == {
        HOSTILE,
        "caf\\udce9",
    }


def test_the_number_of_series_is_bounded_however_many_models_there_were(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_MODELS", 20)
    for number in range(30):
        answered(manager, f"model-{number}")
    models = {model for _, model, _, _ in samples(manager, "llamaman_requests_total")}
    assert models == {f"model-{number}" for number in range(10, 30)}


def test_a_scrape_that_changes_nothing_is_the_same_twice(manager: Manager) -> None:
    manager.kernel.metrics.instance_changed(
        Instance("i", "tiny", manager.model, 1, "process", manager.model, {}, {}, state=State.READY), None
    )
    once, again = (exposition(figures(manager.kernel), "")[0] for _ in range(2))
    assert once == again
