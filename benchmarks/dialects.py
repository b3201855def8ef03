"""What translation costs: each client API beside the pass-through of OpenAI's, and beside the engine itself.

Read by :mod:`benchmarks.__main__`. Guarantees that all columns stream the same tokens of the same stand-in, in one
session and interleaved, each round in an order that rotates. OpenAI's API is relayed as the engine writes it; the
others are parsed, translated and written anew, token by token.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import columns, llamaman_proc, load
from benchmarks.columns import DIRECT
from benchmarks.llamaman_proc import CHAT, MODEL, Manager
from benchmarks.load import Result
from benchmarks.standin import WISH
from llamaman.testing.wire import call

OPENAI, OLLAMA, ANTHROPIC = "openai", "ollama", "anthropic"
COLUMNS = (DIRECT, OPENAI, OLLAMA, ANTHROPIC)
STREAMS = (1, 16, 400)
PACE_MS = 20


@dataclass(frozen=True, slots=True)
class Api:
    """How a stream is asked for, and what each of its tokens has once."""

    path: str
    pattern: str
    body: Callable[[str, int], dict[str, object]]
    """From what the user says and the number of tokens."""


def _openai(said: str, tokens: int) -> dict[str, object]:
    return {"model": MODEL, "messages": _messages(said), "max_tokens": tokens, "stream": True}


def _ollama(said: str, tokens: int) -> dict[str, object]:
    return {"model": MODEL, "messages": _messages(said), "options": {"num_predict": tokens}}


def _messages(said: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": said}]


APIS: Mapping[str, Api] = {
    DIRECT: Api(CHAT, load.EVENT, _openai),
    OPENAI: Api(CHAT, load.EVENT, _openai),
    OLLAMA: Api("/api/chat", '"done":', _ollama),
    ANTHROPIC: Api("/v1/messages", "event: content_block_delta\n", _openai),
}


@dataclass(frozen=True, slots=True)
class Dialects:
    """What every round saw, by number of streams and column."""

    full_speed: Mapping[int, Mapping[str, Sequence[Result]]]
    """Streams without a pace: tokens a second."""
    paced: Mapping[int, Mapping[str, Sequence[Result]]]
    """Streams of a token each 20 ms (1 and 16 of them, short and one after the other), or each 50 to 100 ms (400)."""


def measure(rounds: int, seconds: float, progress: Callable[[str], None]) -> Dialects:
    """Fill the table, round by round.

    :raises processes.NotReady, llamaman_proc.ManagerError, load.LoadError: it could not be measured.
    """
    full: dict[int, dict[str, list[Result]]] = {n: {name: [] for name in COLUMNS} for n in STREAMS}
    paced: dict[int, dict[str, list[Result]]] = {n: {name: [] for name in COLUMNS} for n in STREAMS}
    with tempfile.TemporaryDirectory(prefix="llamaman-bench-") as folder, contextlib.ExitStack() as stack:
        direct = columns.open_direct(stack, Path(folder))
        manager = stack.enter_context(llamaman_proc.prepare(Path(folder) / "llamaman"))
        ours = columns.launched(manager)
        for number in range(rounds):
            turn = number % len(COLUMNS)
            for streams in STREAMS:
                for name in (*COLUMNS[turn:], *COLUMNS[:turn]):
                    progress(f"round {number + 1}/{rounds}: {streams} streams, {name}")
                    column = direct if name == DIRECT else ours
                    paced[streams][name].append(load.run(_paced(name, column, streams, seconds)))
                    full[streams][name].append(load.run(_full_speed(name, column, streams, seconds)))
                    # What the clients left in the middle is not to be the next one's trouble.
                    manager.until(lambda: _is_idle(manager, direct), "everything to be idle", 60)
    return Dialects(full, paced)


def _is_idle(manager: Manager, direct: columns.Column) -> bool:
    stats = call(direct.port, "GET", "/standin/stats").json()
    return not stats["active"] and not any(each["queue"]["active"] for each in manager.instances())


def body(name: str, tokens: int, **wish: object) -> str:
    """A request of one API that the stand-in answers as wished."""
    return json.dumps(APIS[name].body(WISH + json.dumps(wish), tokens))


def _full_speed(name: str, column: columns.Column, streams: int, seconds: float) -> load.Job:
    bodies = [body(name, 4000, burst=1)]
    warmup = 0.3 if streams < 100 else 1.0
    return job(name, column, bodies, streams, seconds, mode="calls", warmup=warmup)


def _paced(name: str, column: columns.Column, streams: int, seconds: float) -> load.Job:
    if streams < 100:
        bodies = [body(name, 5, pace_ms=PACE_MS)]
        return job(name, column, bodies, streams, seconds, mode="calls", warmup=0.3)
    bodies = [body(name, 4500 // pace, pace_ms=pace) for pace in range(50, 101)]
    return job(name, column, bodies, streams, max(30.0, seconds), mode="paced", stagger=2.0)


def job(
    name: str,
    column: columns.Column,
    bodies: list[str],
    streams: int,
    seconds: float,
    *,
    mode: load.Mode,
    warmup: float = 0.0,
    stagger: float = 0.0,
) -> load.Job:
    """Streams of one API; lengths are seconds."""
    api = APIS[name]
    return load.Job(
        mode,
        column.port,
        api.path,
        bodies,
        streams,
        seconds,
        warmup=warmup,
        stagger=stagger,
        headers=column.headers,
        pattern=api.pattern,
    )


# --- the table --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line: medians by column, and the medians of the rounds' ratios (to the pass-through, to direct)."""

    title: str
    unit: str
    values: Mapping[str, float | None]
    by_openai: Mapping[str, float | None]
    by_direct: Mapping[str, float | None]
    failures: Mapping[str, str]


def lines(found: Dialects) -> list[Line]:
    """Everything that was measured, in a fixed order."""
    made = []
    for streams in STREAMS:
        label = f"{streams} stream{'s' if streams > 1 else ''}"
        made += [
            _line(
                f"{label}, full speed", "tokens/s", found.full_speed[streams], lambda r: r.events_per_second
            ),
            _line(f"{label}, TTFT p50", "ms", found.paced[streams], lambda r: r.ttft_p50),
            _line(f"{label}, TTFT p99", "ms", found.paced[streams], lambda r: r.ttft_p99),
        ]
    return made


def _line(
    title: str, unit: str, by_column: Mapping[str, Sequence[Result]], pick: Callable[[Result], float | None]
) -> Line:
    values = {name: _median([pick(each) for each in rounds]) for name, rounds in by_column.items()}

    def ratios(base: str) -> dict[str, float | None]:
        return {
            name: _median(
                [
                    a / b
                    for ours, theirs in zip(rounds, by_column[base], strict=True)
                    if (a := pick(ours)) is not None and (b := pick(theirs))
                ]
            )
            for name, rounds in by_column.items()
            if name != base
        }

    failures = {}
    for name, rounds in by_column.items():
        counted: dict[str, int] = {}
        for each in rounds:
            for what, times in each.errors.items():
                counted[what] = counted.get(what, 0) + times
        if counted:
            failures[name] = ", ".join(f"{times} x {what}" for what, times in sorted(counted.items()))
    return Line(title, unit, values, ratios(OPENAI), ratios(DIRECT), failures)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def text(found: Dialects) -> str:
    """The table: each column's median, and in brackets its ratio to the pass-through and to direct."""
    heads = "".join(f"{name:>22}" for name in COLUMNS)
    shown = [f"{'(/openai, /direct)':<26}{'unit':>9}{heads}"]
    failures: dict[str, None] = {}
    for line in lines(found):
        cells = "".join(f"{_cell(line, name):>22}" for name in COLUMNS)
        shown.append(f"{line.title:<26}{line.unit:>9}{cells}")
        for name, what in line.failures.items():
            failures[f"failures in {name}, {line.title}: {what}"] = None
    return "\n".join([*shown, *failures])


def _cell(line: Line, name: str) -> str:
    value = line.values[name]
    if value is None:
        return "-"
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    ratios = [_ratio(line.by_openai, name), _ratio(line.by_direct, name)]
    told = ", ".join(each for each in ratios if each)
    return f"{shown} ({told})" if told else shown


def _ratio(ratios: Mapping[str, float | None], name: str) -> str:
    value = ratios.get(name)
    return "" if value is None else f"{value:.2f}"
