"""The counters of a real manager after real requests, read the way a collector reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client.parser import text_string_to_metric_families

from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager

Counted = Callable[..., float]


def scraped(manager: Manager, key: str) -> Counted:
    """A function that adds up the samples of a name that have these labels."""
    answer = manager.http("GET", "/metrics", key=key)
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    samples = [each for family in text_string_to_metric_families(answer.text) for each in family.samples]

    def total(name: str, **labels: str) -> float:
        return sum(s.value for s in samples if s.name == f"llamaman_{name}" and has(s.labels, labels))

    return total


def has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


def test_what_clients_did_is_what_a_collector_counts(plain_manager: Manager) -> None:
    manager = plain_manager
    key = manager.key("view").secret
    before = scraped(manager, key)
    instance = manager.launch("tiny", **ENDLESS)["id"]
    assert manager.chat("tiny", max_tokens=3).status == 200
    assert manager.chat("tiny", max_tokens=4, stream=True).status == 200
    assert manager.chat("no-such-model\n").status == 404
    with manager.ask("tiny", stream=True, max_tokens=FOR_EVER) as stream:
        next(stream.events())
        running = scraped(manager, key)
        assert running("requests_in_flight", model="tiny", phase="generate") == 1
        assert running("instance_slots_in_use", instance=instance) == 1
    manager.until(lambda: not manager.manage("GET", "/api/requests"), "the stream to be over")
    manager.until(
        lambda: scraped(manager, key)("instance_slots_in_use", instance=instance) == 0, "its slot to be free"
    )
    lag = "event_loop_lag_seconds_count"
    manager.until(lambda: scraped(manager, key)(lag) > before(lag), "the loop to be looked at")
    now = scraped(manager, key)

    def more(name: str, **labels: str) -> float:
        return now(name, **labels) - before(name, **labels)

    assert more("requests_total", dialect="openai", model="tiny", status="2xx", outcome="complete") == 2
    assert more("requests_total", dialect="openai", model="tiny", outcome="cancelled") == 1
    assert more("requests_total", model="", status="4xx", outcome="error") == 1
    assert more("requests_total") == 4
    assert more("prompt_tokens_total", model="tiny") > 0
    assert more("completion_tokens_total", model="tiny") == 7, "the stream that was left did not say"
    assert more("request_duration_seconds_count", model="tiny") == 3
    assert more("time_to_first_token_seconds_count", model="tiny") == 2
    assert more("queue_wait_seconds_count", model="tiny") == 3
    assert more("model_loads_total", model="tiny", outcome="ready") == 1
    assert more("model_load_seconds_count", model="tiny") == 1
    assert now("instance_state", instance=instance, model="tiny", state="ready") == 1
    assert now("instance_state", instance=instance) == 1, "one state and no other"
    assert now("requests_in_flight") == now("instance_slots_in_use", instance=instance) == 0
    assert now("build_info") == 1
