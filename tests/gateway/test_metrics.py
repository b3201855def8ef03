"""What is counted of a request, of an instance's life and of the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamaman.core.instance import Instance
from llamaman.errors import ModelUnavailable
from llamaman.gateway import loop_lag, metrics
from llamaman.gateway import metrics_table as table
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.limits import Surface
from llamaman.gateway.loop_lag import LoopLag
from llamaman.gateway.metrics import Metrics
from llamaman.gateway.native import Native
from llamaman.gateway.spread import Histogram, Spread
from llamaman.records import NOBODY, Exit, ModelView, State

Run = Callable[[Coroutine[Any, Any, Any]], Any]
TINY = ModelView("tiny", Path("/models/tiny.gguf"), 1, None, 0.0)
DIALECT = Native().name


async def _nowhere(message: dict[str, Any]) -> None:
    raise AssertionError(f"nothing is sent here: {message}")


def over(
    *, model: ModelView | None = TINY, status: int = 200, answered: bool = True, stream: bool = True
) -> Exchange:
    """A request that is over."""
    request: Any = SimpleNamespace(
        surface=Surface("proxy"), answered=answered, is_gone=not answered, task=None
    )
    exchange = Exchange(request, _nowhere, Native(), NOBODY, "/completion")
    exchange.model, exchange.status, exchange.stream, exchange.instance_id = model, status, stream, "i"
    return exchange


def total(value: float | Spread) -> int:
    assert isinstance(value, Spread)
    return sum(value.counts)


# --- requests -------------------------------------------------------------------------------------------


def test_a_request_is_counted_by_dialect_model_status_class_and_outcome() -> None:
    counted = Metrics()
    for _ in range(2):
        counted.observe(over())
    counted.observe(over(status=404))
    counted.observe(over(status=0, answered=False))
    cut = over()
    cut.ended_by = ModelUnavailable("gone")
    counted.observe(cut)
    assert counted.read()[table.REQUESTS] == {
        (DIALECT, "tiny", "2xx", "complete"): 2,
        (DIALECT, "tiny", "4xx", "error"): 1,
        (DIALECT, "tiny", "none", "cancelled"): 1,
        (DIALECT, "tiny", "2xx", "error"): 1,
    }


def test_times_land_in_the_bucket_that_holds_them() -> None:
    counted = Metrics()
    exchange = over()
    exchange.meter.started = time.monotonic() - 3.0
    exchange.meter.first = exchange.meter.started + 0.2
    exchange.queued_s = 0.04
    counted.observe(exchange)
    found = counted.read()
    for family, bound, seconds in (
        (table.DURATION, 5.0, 3.0),
        (table.FIRST_TOKEN, 0.25, 0.2),
        (table.QUEUE_WAIT, 0.05, 0.04),
    ):
        spread = found[family]["tiny",]
        assert isinstance(spread, Spread)
        assert spread.counts.index(1) == family.buckets.index(bound), family.name
        assert total(spread) == 1
        assert spread.sum == pytest.approx(seconds, abs=1.5)


def test_only_a_stream_has_a_first_token_and_only_a_granted_request_a_wait() -> None:
    counted = Metrics()
    whole = over(stream=False)
    whole.meter.first = whole.meter.started
    refused = over(status=429)
    refused.instance_id = None
    for each in (whole, refused):
        counted.observe(each)
    found = counted.read()
    assert total(found[table.FIRST_TOKEN]["tiny",]) == 0
    assert total(found[table.QUEUE_WAIT]["tiny",]) == 1
    assert total(found[table.DURATION]["tiny",]) == 2


def test_tokens_are_summed_and_never_fall() -> None:
    counted = Metrics()
    for prompt, cached, generated in ((10, 4, 7), (5, None, 1), (-9, -9, -9), (None, None, None)):
        exchange = over()
        meter = exchange.meter
        meter.prompt_tokens, meter.cached_tokens, meter.completion_tokens = prompt, cached, generated
        counted.observe(exchange)
    found = counted.read()
    assert found[table.PROMPT_TOKENS] == {(DIALECT, "tiny"): 15}
    assert found[table.CACHED_TOKENS] == {(DIALECT, "tiny"): 4}
    assert found[table.COMPLETION_TOKENS] == {(DIALECT, "tiny"): 8}


def test_a_model_that_is_not_there_is_counted_without_its_name() -> None:
    counted = Metrics()
    for _ in range(3):
        counted.observe(over(model=None, status=404))
    found = counted.read()
    assert found[table.REQUESTS] == {(DIALECT, "", "4xx", "error"): 3}
    assert found[table.DURATION] == {}


def test_a_thousand_models_are_kept_and_the_one_out_of_use_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "MOST_MODELS", 3)
    ticks = iter(range(100))
    counted = Metrics(clock=lambda: next(ticks))
    for name in ("a", "b", "c", "a", "d"):
        counted.observe(over(model=replace(TINY, name=name)))
    assert {model for _, model, _, _ in counted.read()[table.REQUESTS]} == {"a", "c", "d"}
    assert table.MOST_MODELS == 1000


# --- the life of an instance ----------------------------------------------------------------------------


class Life:
    """An instance whose states are told to the counter."""

    def __init__(self) -> None:
        self.counted = Metrics()
        self.instance = Instance(
            "i", "tiny", TINY.path, 8000, "process", Path("/logs/i.log"), overrides={}, options={}
        )

    def goes(self, *states: State, actor: str = "gateway") -> Life:
        for state in states:
            previous, self.instance.state, self.instance.actor = self.instance.state, state, actor
            self.counted.instance_changed(self.instance, previous)
        return self

    def loads(self) -> Life:
        self.instance.load_seconds = 0.4
        return self.goes(State.PREPARING, State.STARTING, State.READY)

    def dies(self, into: State) -> Life:
        self.instance.last_exit = Exit(1, None, 0.0)
        return self.goes(into, actor="supervisor")

    def now(self, family: table.Family) -> metrics.Series:
        return self.counted.read()[family]


def test_a_load_is_counted_with_its_time() -> None:
    life = Life().loads()
    assert life.now(table.LOADS) == {("tiny", "ready"): 1}
    assert life.now(table.LOAD_TIME)["tiny",] == Spread((0, 1, *[0] * 11), 0.4)
    assert life.now(table.CRASHES) == {("tiny",): 0}


def test_an_adopted_instance_was_not_loaded() -> None:
    assert Life().goes(State.STARTING, State.READY, actor="boot").now(table.LOADS) == {}


def test_a_load_that_fails_is_a_failure_and_a_crash_only_if_an_engine_died() -> None:
    refused = Life().goes(State.PREPARING, State.FAILED)
    assert (refused.now(table.LOADS), refused.now(table.CRASHES)) == (
        {("tiny", "failed"): 1},
        {("tiny",): 0},
    )
    died = Life().goes(State.PREPARING, State.STARTING).dies(State.FAILED)
    assert (died.now(table.LOADS), died.now(table.CRASHES)) == ({("tiny", "failed"): 1}, {("tiny",): 1})


def test_a_load_that_somebody_stops_is_no_failure() -> None:
    life = Life().goes(State.PREPARING, State.STARTING, State.STOPPING, State.STOPPED, actor="key:a")
    assert life.now(table.LOADS) == {}
    assert life.goes(State.FAILED, actor="supervisor").now(table.LOADS) == {}, "it is over, and stays so"


def test_each_death_of_a_running_engine_is_one_crash() -> None:
    life = Life().loads().dies(State.BACKOFF)
    life.instance.last_exit = None
    life.loads().dies(State.FAILED)
    assert life.now(table.CRASHES) == {("tiny",): 2}
    assert life.now(table.LOADS) == {("tiny", "ready"): 2}


@pytest.mark.parametrize("end", [State.SLEEPING, State.STOPPED])
def test_an_eviction_is_counted_when_the_instance_has_left(end: State) -> None:
    life = Life().loads().goes(State.DRAINING, State.STOPPING, actor="admission")
    assert life.now(table.EVICTIONS) == {("tiny",): 0}, "it may still be kept"
    assert life.goes(end, actor="admission").now(table.EVICTIONS) == {("tiny",): 1}


def test_sleep_and_a_stop_by_hand_are_no_evictions() -> None:
    life = Life().loads().goes(State.STOPPING, State.SLEEPING, actor="idle")
    life.loads().goes(State.STOPPING, State.STOPPED, actor="key:a")
    assert life.now(table.EVICTIONS) == {("tiny",): 0}


# --- histograms and the loop ----------------------------------------------------------------------------


def test_a_value_on_a_bound_is_at_most_that_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (-1.0, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    assert histogram.read() == Spread((2, 2, 1), 13.5)


def test_a_loop_that_is_held_up_shows_how_long_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "EVERY_S", 0.02)
    lag = LoopLag(table.LAG.buckets)

    async def main() -> None:
        lag.start()
        await asyncio.sleep(0.05)
        time.sleep(0.3)
        await asyncio.sleep(0.05)
        lag.stop()

    run(main())
    assert lag.longest >= 0.25
    late = table.LAG.buckets.index(0.25)
    assert sum(lag.histogram.read().counts[late:]) >= 1  # a busy machine may hold it up besides


def test_a_loop_that_is_stuck_has_its_place_in_the_log_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_lag, "EVERY_S", 0.02)
    monkeypatch.setattr(loop_lag, "STUCK_S", 0.1)
    lag = LoopLag(table.LAG.buckets)
    told = threading.Event()

    def the_culprit() -> None:
        assert told.wait(60)
        time.sleep(0.25)  # in which it would be told again

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    handler = Heard()
    loop_lag.log.addHandler(handler)

    async def main() -> None:
        lag.start()
        the_culprit()
        lag.stop()

    run(main())
    loop_lag.log.removeHandler(handler)
    assert len(caplog.messages) == 1, caplog.messages
    assert "stuck for" in caplog.text
    assert "the_culprit" in caplog.text
