"""``/metrics``: what the front door counts and what runs now, as Prometheus reads it.

Everything is put together here, in a thread of management: the event loop is not asked, so that a scrape holds no
stream up and is answered also while the loop is late.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, request

from llamaman.access import Access, access
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.gateway import metrics_table as table
from llamaman.gateway.metrics import Series
from llamaman.gateway.metrics_table import FAMILIES, Family
from llamaman.gateway.spread import Spread
from llamaman.records import RouteSet, State
from llamaman.version import __version__

if TYPE_CHECKING:
    from prometheus_client import Metric

_WAITS = ("queue", "load")
_OPENMETRICS = "application/openmetrics-text"


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    @access(Access.VIEW)
    @operation(
        "Show figures for Prometheus: requests, tokens, times, queues, states, loads, the event loop's lag.",
        answers={200: ("Its text format, or OpenMetrics where that is accepted.", None)},
        media="text/plain",
    )
    def metrics() -> Response:
        body, kind = exposition(figures(kernel), request.headers.get("Accept", ""))
        return Response(body, content_type=kind)

    return RouteSet(blueprint)


def figures(kernel: Services) -> dict[Family, Series]:
    """Every series now: what was counted, what is in flight and the state of every instance."""
    found = {family: dict(series) for family, series in kernel.metrics.read().items()}
    for (model, phase), count in kernel.requests.counts().items():
        found[table.IN_FLIGHT][model, phase] = count
        if phase in _WAITS:
            found[table.QUEUED][model,] = found[table.QUEUED].get((model,), 0) + count  # type: ignore[operator] # a number
    for view in kernel.instances.views():
        for state in State:
            found[table.STATE][view.id, view.model, state.value] = int(view.state is state)
        if view.slots is not None:
            found[table.SLOTS][view.id, view.model] = view.slots
        found[table.ACTIVE][view.id, view.model] = view.active
    found[table.BUILD][__version__, platform.python_version(), kernel.config.node_name] = 1
    return found


def exposition(series: Mapping[Family, Series], accept: str) -> tuple[bytes, str]:
    """The answer's body and its content type.

    :param accept: the header. The library's own reading of it fails on a version that is no number.
    """
    # Here, not above: a manager that nobody scrapes does not pay for it.
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.openmetrics import exposition as openmetrics

    class Figures:
        def collect(self) -> Iterator[Metric]:
            return (_family(family, series.get(family, {})) for family in FAMILIES)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures())
    accepted = {each.partition(";")[0].strip().lower() for each in accept.split(",")}
    if _OPENMETRICS in accepted:
        body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call] # it has no types
        return body, f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"
    return generate_latest(registry), "text/plain; version=0.0.4; charset=utf-8"


def _family(family: Family, series: Series) -> Metric:
    from prometheus_client import metrics_core

    if family.kind == "histogram":
        spread = metrics_core.HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, value in series.items():
            assert isinstance(value, Spread)
            spread.add_metric([_text(each) for each in labels], _buckets(family, value), value.sum)
        return spread
    if family.kind == "info":
        info = metrics_core.InfoMetricFamily(family.name.removesuffix("_info"), family.help)
        for labels in series:
            info.add_metric([], dict(zip(family.labels, map(_text, labels), strict=True)))
        return info
    kinds: dict[str, Any] = {
        "counter": metrics_core.CounterMetricFamily,
        "gauge": metrics_core.GaugeMetricFamily,
    }
    found: Metric = kinds[family.kind](family.name, family.help, labels=family.labels)
    for labels, value in series.items():
        found.add_metric([_text(each) for each in labels], value)  # type: ignore[attr-defined] # of both kinds
    return found


def _buckets(family: Family, spread: Spread) -> list[tuple[str, float]]:
    """The counts as Prometheus wants them: of everything up to each bound."""
    found, so_far = [], 0
    for bound, count in zip((*family.buckets, float("inf")), spread.counts, strict=True):
        so_far += count
        found.append(("+Inf" if bound == float("inf") else str(bound), float(so_far)))
    return found


def _text(value: str) -> str:
    """A label's value that UTF-8 can hold, whatever bytes the name of a file had."""
    return value.encode("utf-8", "backslashreplace").decode()
