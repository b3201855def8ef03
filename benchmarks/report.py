"""From rounds to rows: medians, ratios, targets and how they are printed. Pure, but for the machine's facts.

Read by :mod:`benchmarks.__main__`. Guarantees that a target holds only when it was measured, on answers
that all succeeded: what is missing prints as ``-`` and "not measured", what failed prints as missed with
the failures.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.columns import DIRECT, LLAMAMAN, NGINX, Results
from benchmarks.containers import Wakes
from benchmarks.doors import LOGINS, STREAMS, Locked, Logins, Revoked, Stormy
from benchmarks.load import Result
from benchmarks.startup import Startup

COLUMNS = (DIRECT, NGINX, LLAMAMAN)
Pick = Callable[[Result], float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line. ``holds`` is null without a target, and where it could not be measured."""

    title: str
    unit: str
    values: dict[str, float | None]
    ratio: float | None = None
    """LlamaMan by nginx, the median of the rounds' ratios."""
    target: str = ""
    holds: bool | None = None
    failures: dict[str, str] = field(default_factory=dict)
    """By column: answers that were not a complete 200, by what happened."""


def comparison_rows(results: Results) -> list[Row]:
    """The rows of the scenarios that were run, in a fixed order."""
    rows: list[Row] = []
    if "calls16" in results:
        rows.append(_row(results, "calls16", "small calls, 16 connections", "req/s", _rate, at_least=0.30))
    for name, label in (("calls1", "1 connection"), ("calls16", "16 connections")):
        if name in results:
            limit = 0.5 if name == "calls1" else None
            rows += [
                _row(results, name, f"latency p50, {label}", "ms", lambda r: r.latency_p50),
                _added(results, name, f"added p50, {label}", lambda r: r.latency_p50, limit),
                _added(results, name, f"added p99, {label}", lambda r: r.latency_p99, None),
            ]
    if "streams16" in results:
        title = "16 streams, a token a send"
        rows.append(_row(results, "streams16", title, "chunks/s", _events, at_least=1.0))
    if "streams16-burst" in results:
        title = "16 streams, 4 tokens a send"
        rows.append(_row(results, "streams16-burst", title, "chunks/s", _events, at_least=1.0))
    if "paced400" in results:
        rows += [
            _row(results, "paced400", "400 paced streams, TTFT p50", "ms", lambda r: r.ttft_p50),
            _row(results, "paced400", "400 paced streams, TTFT p99", "ms", lambda r: r.ttft_p99, at_most=3.0),
        ]
    return rows


def startup_rows(startup: Startup | None) -> list[Row]:
    """The rows that only LlamaMan has; with null, the targets as not measured."""

    def row(title: str, unit: str, value: float | None, limit: float | None = None) -> Row:
        target = f"<= {limit:g} {unit}" if limit else ""
        holds = value <= limit if limit and value is not None else None
        return Row(title, unit, {LLAMAMAN: value}, None, target, holds)

    if startup is None:
        return [row("start to first answer", "s", None, 1.0), row("idle memory (VmRSS)", "MB", None, 90)]
    return [
        row("start to /health", "s", startup.health_seconds),
        row("start to first answer", "s", startup.answer_seconds, 1.0),
        row("idle memory (VmRSS)", "MB", startup.idle_mb, 90),
        row("the same, one instance", "MB", startup.serving_mb),
    ]


def own_row(
    title: str,
    unit: str,
    value: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    errors: Mapping[str, int] | None = None,
) -> Row:
    """A row of LlamaMan alone."""
    failures = {LLAMAMAN: _counted(errors)} if errors else {}
    target, holds = "", None
    if at_least is not None:
        target, holds = f">= {at_least:g} {unit}".rstrip(), None if value is None else value >= at_least
    if at_most is not None:
        target, holds = f"<= {at_most:g} {unit}".rstrip(), None if value is None else value <= at_most
    return Row(title, unit, {LLAMAMAN: value}, None, target, holds and not failures, failures)


def auth_rows(locked: Locked | None) -> list[Row]:
    """Small calls with ``require_auth`` on beside off."""
    title = "small calls, require_auth on/off"
    if locked is None:
        return [Row(title, "", {}, None, ">= 0.9")]
    return [
        own_row("small calls, require_auth on", "req/s", locked.on),
        own_row("small calls, require_auth off", "req/s", locked.off),
        own_row(title, "", locked.ratio, at_least=0.9, errors=locked.errors),
        own_row("the same, by processor time", "", locked.processor),
    ]


def storm_rows(stormy: Stormy | None) -> list[Row]:
    """What 1,000 logins at once do to memory, to the loop and to streams."""
    memory, streams = f"memory for {LOGINS:,} logins", f"{STREAMS} streams beside them, loss"
    lag = f"loop lag, {LOGINS:,} logins, p99"
    if stormy is None:
        missing = ((memory, "MB", "<= 200 MB"), (streams, "%", "<= 10 %"), (lag, "ms", "<= 50 ms"))
        return [Row(title, unit, {}, None, target) for title, unit, target in missing]
    return [
        own_row(memory, "MB", stormy.memory_mb, at_most=200),
        own_row("loop lag, idle, p99", "ms", stormy.idle_lag_p99),
        own_row("loop lag, idle, longest", "ms", stormy.idle_lag_max),
        own_row(lag, "ms", stormy.lag_p99, at_most=50),
        own_row("the same, longest", "ms", stormy.lag_max, at_most=50),
        own_row("until the last was answered", "s", stormy.answered_s),
        own_row(f"{STREAMS} streams alone", "chunks/s", stormy.chunks_before),
        own_row(f"{STREAMS} streams beside the logins", "chunks/s", stormy.chunks_during),
        own_row(streams, "%", 100 * stormy.loss, at_most=10),
    ]


def login_rows(logins: Logins | None) -> list[Row]:
    """How long a refusal takes where the user exists, and where not."""
    title = "known/unknown user, difference"
    if logins is None:
        return [Row(title, "%", {}, None, "<= 10 %")]
    return [
        own_row("refused login, known user", "ms", logins.known),
        own_row("refused login, unknown user", "ms", logins.unknown),
        own_row(title, "%", 100 * logins.apart, at_most=10),
    ]


def revoke_rows(revoked: Revoked | None) -> list[Row]:
    """How long a stream outlives its credential."""
    return [
        own_row(title, "s", value, at_most=1)
        for title, value in (
            ("key revoked to stream's end", revoked.key if revoked else None),
            ("user disabled to stream's end", revoked.user if revoked else None),
        )
    ]


def wake_rows(wakes: Wakes | None) -> list[Row]:
    """What waking a model in a container costs beside Docker and llama.cpp."""
    start, byte = "container: request to start call", "container: ready to first byte"
    if wakes is None:
        return [Row(start, "ms", {}, None, "<= 50 ms"), Row(byte, "ms", {}, None, "<= 60 ms")]
    return [
        own_row(start, "ms", wakes.to_start, at_most=50),
        own_row(f"the same, worst of {wakes.count}", "ms", wakes.to_start_worst),
        own_row(byte, "ms", wakes.to_byte, at_most=60),
        own_row(f"the same, worst of {wakes.count}", "ms", wakes.to_byte_worst),
        own_row("that request on the ready engine", "ms", wakes.own),
    ]


def _counted(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{times} x {what}" for what, times in sorted(errors.items()))


def _rate(result: Result) -> float:
    return result.answers_per_second


def _events(result: Result) -> float:
    return result.events_per_second


def _row(
    results: Results,
    name: str,
    title: str,
    unit: str,
    pick: Pick,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    by_column = results[name]
    ratio = _median(_paired(by_column, LLAMAMAN, NGINX, pick, lambda ours, theirs: ours / theirs))
    failures = _failures(by_column)
    target, holds = "", None
    if at_least is not None:
        target, holds = f">= {at_least:.2f} x nginx", None if ratio is None else ratio >= at_least
    if at_most is not None:
        target, holds = f"<= {at_most:.2f} x nginx", None if ratio is None else ratio <= at_most
    if holds and LLAMAMAN in failures:
        holds = False
    return Row(title, unit, _medians(by_column, pick), ratio, target, holds, failures)


def _added(results: Results, name: str, title: str, pick: Pick, limit: float | None) -> Row:
    by_column = results[name]
    values: dict[str, float | None] = {
        column: _median(_paired(by_column, column, DIRECT, pick, lambda through, direct: through - direct))
        for column in (NGINX, LLAMAMAN)
    }
    failures, ours = _failures(by_column), values[LLAMAMAN]
    if limit is None:
        return Row(title, "ms", values, failures=failures)
    holds = None if ours is None else ours <= limit and LLAMAMAN not in failures
    return Row(title, "ms", values, None, f"<= {limit:g} ms", holds, failures)


def _paired(
    by_column: dict[str, list[Result]],
    left: str,
    right: str,
    pick: Pick,
    join: Callable[[float, float], float],
) -> list[float]:
    """``join`` of two columns round by round, so that both sides saw the same neighbours."""
    pairs = zip(by_column.get(left, []), by_column.get(right, []), strict=False)
    values = [(pick(a), pick(b)) for a, b in pairs]
    return [join(a, b) for a, b in values if a is not None and b]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _medians(by_column: dict[str, list[Result]], pick: Pick) -> dict[str, float | None]:
    return {
        column: _median([value for value in map(pick, rounds) if value is not None])
        for column, rounds in by_column.items()
    }


def _failures(by_column: dict[str, list[Result]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for column, rounds in by_column.items():
        total: dict[str, int] = {}
        for result in rounds:
            for what, times in result.errors.items():
                total[what] = total.get(what, 0) + times
        if total:
            found[column] = _counted(total)
    return found


def verdict(row: Row) -> str:
    """What stands behind a row's target."""
    if not row.target:
        return ""
    return "not measured" if row.holds is None else "holds" if row.holds else "MISSED"


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'':<33}{'unit':>9}" + "".join(f"{name:>12}" for name in COLUMNS) + f"{'/nginx':>9}  target"]
    failures: dict[str, None] = {}
    for row in rows:
        cells = "".join(f"{_number(row.values.get(name)):>12}" for name in COLUMNS)
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        tail = f"{row.target}: {verdict(row)}" if row.target else ""
        lines.append(f"{row.title:<33}{row.unit:>9}{cells}{ratio:>9}  {tail}".rstrip())
        for column, what in row.failures.items():
            failures[f"failures in {column}, {row.title}: {what}"] = None
    return "\n".join([*lines, *failures])


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def machine_facts() -> str:
    """What this machine is, and how busy it is right now."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    cores = len(os.sched_getaffinity(0))
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{cores} cores of {model}, {system}, load {load}"
