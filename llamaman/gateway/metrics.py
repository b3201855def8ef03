"""Counting what passes, for ``/metrics``: plain numbers, written on the event loop alone.

:meth:`Metrics.observe` stands at the end of every inference request, so it takes microseconds and knows nothing of
Prometheus. :meth:`Metrics.read` may be called from any thread: it copies each series in one step, and may see a
request's bucket a moment before its sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from llamaman.core.instance import Instance
from llamaman.gateway import metrics_table as table
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.loop_lag import LoopLag
from llamaman.gateway.metrics_table import MOST_MODELS, Family
from llamaman.gateway.spread import Histogram, Spread
from llamaman.records import State

#: Whom the supervisor names for the stop of an instance that makes room for another.
EVICTOR = "admission"

_CLASSES = {0: "none", 1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}
_RAN = frozenset({State.STARTING, State.READY, State.DRAINING})

#: Values of a metric's labels, in their order -> what it is now.
Series = dict[tuple[str, ...], "float | Spread"]


class _Model:
    """What is counted of one model. ``requests`` is by dialect, status class and outcome; ``tokens`` by dialect:
    read, cached, generated."""

    __slots__ = (
        "crashes",
        "duration",
        "evictions",
        "first",
        "load_time",
        "loads",
        "requests",
        "tokens",
        "used",
        "wait",
    )

    def __init__(self) -> None:
        self.used = 0.0
        self.requests: dict[tuple[str, str, str], int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.duration = Histogram(table.DURATION.buckets)
        self.first = Histogram(table.FIRST_TOKEN.buckets)
        self.wait = Histogram(table.QUEUE_WAIT.buckets)
        self.loads: dict[str, int] = {}
        self.load_time = Histogram(table.LOAD_TIME.buckets)
        self.evictions = 0
        self.crashes = 0


class Metrics:
    """Everything that is counted, and the lag of the loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: dict[str, _Model] = {}
        self._loading: set[str] = set()
        self.lag = LoopLag(table.LAG.buckets)

    # --- on the loop ---------------------------------------------------------------------------------

    def observe(self, exchange: Exchange) -> None:
        """A request is over."""
        known, meter, dialect = exchange.model, exchange.meter, exchange.dialect.name
        model = self._of(known.name if known else "")
        ended = (dialect, _CLASSES.get(exchange.status // 100, "other"), exchange.outcome)
        model.requests[ended] = model.requests.get(ended, 0) + 1
        if known is None:
            return
        model.duration.add(model.used - meter.started)
        if exchange.stream and meter.first is not None:
            model.first.add(meter.first - meter.started)
        if exchange.instance_id:
            model.wait.add(exchange.queued_s)
        if meter.prompt_tokens is None and meter.completion_tokens is None:
            return
        tokens = model.tokens.get(dialect)
        if tokens is None:
            tokens = model.tokens[dialect] = [0, 0, 0]
        tokens[0] += max(0, meter.prompt_tokens or 0)
        tokens[1] += max(0, meter.cached_tokens or 0)
        tokens[2] += max(0, meter.completion_tokens or 0)

    def instance_changed(self, instance: Instance, previous: State | None) -> None:
        """An instance has come into another state."""
        state = instance.state
        if state is previous:
            return
        if state is State.PREPARING:
            self._loading.add(instance.id)
        elif state is State.READY:
            if self._ends_loading(instance):
                self._loaded(instance, "ready")
                if instance.load_seconds is not None:
                    self._of(instance.model).load_time.add(instance.load_seconds)
        elif state in (State.FAILED, State.BACKOFF):
            if instance.last_exit is not None and previous in _RAN:
                self._of(instance.model).crashes += 1
            if self._ends_loading(instance):
                self._loaded(instance, "failed")
        elif state in (State.SLEEPING, State.STOPPED):
            self._ends_loading(instance)
            if instance.actor == EVICTOR:
                self._of(instance.model).evictions += 1

    def _loaded(self, instance: Instance, outcome: str) -> None:
        loads = self._of(instance.model).loads
        loads[outcome] = loads.get(outcome, 0) + 1

    def _ends_loading(self, instance: Instance) -> bool:
        """Whether it was being loaded until now; one that was adopted or found again was not."""
        if instance.id not in self._loading:
            return False
        self._loading.remove(instance.id)
        return True

    def _of(self, name: str) -> _Model:
        model = self._models.get(name)
        if model is None:
            if len(self._models) >= MOST_MODELS:
                del self._models[min(self._models, key=lambda each: self._models[each].used)]
            model = self._models[name] = _Model()
        model.used = self._clock()
        return model

    # --- from any thread -----------------------------------------------------------------------------

    def read(self) -> dict[Family, Series]:
        """Every series that is counted, by its metric."""
        found: dict[Family, Series] = {family: {} for family in table.FAMILIES}
        for name, model in list(self._models.items()):
            for (dialect, status, outcome), count in list(model.requests.items()):
                found[table.REQUESTS][dialect, name, status, outcome] = count
            for dialect, tokens in list(model.tokens.items()):
                found[table.PROMPT_TOKENS][dialect, name] = tokens[0]
                found[table.CACHED_TOKENS][dialect, name] = tokens[1]
                found[table.COMPLETION_TOKENS][dialect, name] = tokens[2]
            for outcome, count in list(model.loads.items()):
                found[table.LOADS][name, outcome] = count
            if not name:
                continue
            for family, histogram in (
                (table.DURATION, model.duration),
                (table.FIRST_TOKEN, model.first),
                (table.QUEUE_WAIT, model.wait),
                (table.LOAD_TIME, model.load_time),
            ):
                found[family][name,] = histogram.read()
            found[table.EVICTIONS][name,] = model.evictions
            found[table.CRASHES][name,] = model.crashes
        found[table.LAG][()] = self.lag.histogram.read()
        found[table.LONGEST_LAG][()] = self.lag.longest
        return found
