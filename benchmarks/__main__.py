"""``python -m benchmarks``: LlamaMan beside a direct connection and beside nginx, in one run.

Exit status 0 also when a target is missed, unless --strict; 1 then; 2 when a part did not come up.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks import (
    columns,
    containers,
    cycles,
    dialects,
    doors,
    hammered,
    llamaman_proc,
    load,
    report,
    startup,
)
from llamaman.testing import processes
from llamaman.testing.visitor import NoForm

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
FAILURES = (processes.NotReady, llamaman_proc.ManagerError, load.LoadError, NoForm)
DOORS = ("auth", "storm", "logins", "revoke")
ONLY = (
    *(scenario.name for scenario in columns.SCENARIOS),
    "startup",
    "dialects",
    "hammered",
    *DOORS,
    "containers",
    "cycles",
)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds instead of five; 50 cycles")
    parser.add_argument("--seconds", type=float, help="measured seconds per scenario, column and round")
    parser.add_argument("--rounds", type=int, help="how often each is measured; medians are reported")
    parser.add_argument(
        "--only", action="append", choices=ONLY, help="run this part; may be given several times"
    )
    parser.add_argument(
        "--cycles", type=int, help="launch/stop cycles of the leak check (default 1000, 50 with --quick)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write everything that was measured there"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 when a target is missed or not measured"
    )
    return parser.parse_args(argv)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(argv: Sequence[str]) -> int:
    """Run what was asked for and print the report."""
    wish = _arguments(argv)
    rounds = wish.rounds or (2 if wish.quick else 5)
    seconds = wish.seconds or (1.0 if wish.quick else 3.0)
    parts = wish.only or ONLY
    count = wish.cycles if wish.cycles is not None else 50 if wish.quick else 1000
    facts = report.machine_facts()
    sys.stdout.write(
        f"{facts}\nEverybody on this machine is in these figures: only the ratios of one run count.\n\n"
    )
    absent = llamaman_proc.unavailable()
    broken: dict[str, str] = {}

    def part(name: str, measure: Callable[[], T]) -> T | None:
        """Measure one part of LlamaMan; when it does not come up, the other parts still count."""
        if name not in parts or absent:
            return None
        try:
            return measure()
        except (*FAILURES, OSError) as problem:
            broken[name] = str(problem)
            return None

    try:
        results, missing = _compare(
            [s for s in columns.SCENARIOS if s.name in parts], rounds, seconds, broken
        )
    except FAILURES as problem:
        _say(f"the benchmark could not be run: {problem}")
        return 2
    started = part("startup", lambda: startup.measure(2 if wish.quick else 5))
    spoken = part("dialects", lambda: dialects.measure(rounds, seconds, _say))
    knocked = part("hammered", lambda: hammered.measure(rounds, _say))
    locked = part("auth", lambda: doors.auth(rounds, seconds, _say))
    stormy = part("storm", lambda: doors.logins_at_once(rounds, max(3.0, seconds), _say))
    logins = part("logins", lambda: doors.refused_logins(10 if wish.quick else 40, _say))
    revoked = part("revoke", lambda: doors.revoking(3 if wish.quick else 10, _say))
    woken = part("containers", lambda: containers.measure(5 if wish.quick else 20, _say))
    leaks = part("cycles", lambda: cycles.run(count, _say))
    rows = report.comparison_rows(results)
    if "startup" in parts:
        rows += report.startup_rows(started)
    for name, more in (
        ("hammered", hammered.rows(knocked)),
        ("auth", report.auth_rows(locked)),
        ("storm", report.storm_rows(stormy)),
        ("logins", report.login_rows(logins)),
        ("revoke", report.revoke_rows(revoked)),
        ("containers", report.wake_rows(woken)),
    ):
        rows += more if name in parts else []
    if rows:
        sys.stdout.write(report.table(rows) + "\n")
    if spoken is not None:
        sys.stdout.write(f"\n{dialects.text(spoken)}\n\n")
    if started is not None and started.refused_with:
        sys.stdout.write(f"statuses before the first answer: {', '.join(map(str, started.refused_with))}\n")
    if knocked is not None:
        answers = ", ".join(f"{times} x {what}" for what, times in sorted(hammered.told(knocked).items()))
        sys.stdout.write(f"management beside 400 streams: {answers}\n")
    for where, weather in _weather(stormy):
        told = (*sorted(weather.statuses.items()), *sorted(weather.errors.items()))
        answers = ", ".join(f"{times} x {what}" for what, times in told)
        sys.stdout.write(f"logins {where}: {answers}\n")
    if absent:
        missing[columns.LLAMAMAN] = absent
    for name, why in missing.items():
        sys.stdout.write(f"column {name} is left out: {why}\n")
    for name, why in broken.items():
        sys.stdout.write(f"{name} could not be measured: {why}\n")
    if leaks is not None:
        sys.stdout.write(cycles.text(leaks) + "\n")
    sys.stdout.write(f"at the end: {report.machine_facts()}\n")
    measured: dict[str, DataclassInstance | None] = {
        "startup": started,
        "dialects": spoken,
        "hammered": knocked,
        "auth": locked,
        "storm": stormy,
        "logins": logins,
        "revoke": revoked,
        "containers": woken,
        "cycles": leaks,
    }
    if wish.json:
        _write(wish.json, facts, results, rows, measured)
    bad = any(row.target and not row.holds for row in rows) or (leaks is not None and bool(leaks.leaked))
    return 2 if broken else 1 if wish.strict and bad else 0


def _weather(stormy: doors.Stormy | None) -> list[tuple[str, doors.Answers]]:
    if stormy is None:
        return []
    return [("on a quiet manager", stormy.weather), ("beside streams", stormy.streaming_weather)]


def _compare(
    scenarios: Sequence[columns.Scenario], rounds: int, seconds: float, broken: dict[str, str]
) -> tuple[columns.Results, dict[str, str]]:
    """The rounds, and why a column is left out; a LlamaMan that does not come up is ``broken``, not left out."""
    if not scenarios:
        return {}, {}
    with tempfile.TemporaryDirectory(prefix="llamaman-bench-") as folder, contextlib.ExitStack() as stack:
        opened, missing = columns.open_columns(stack, Path(folder))
        if columns.LLAMAMAN not in missing:
            try:
                opened.append(columns.open_llamaman(stack, Path(folder) / "llamaman"))
            except (*FAILURES, OSError) as problem:
                broken[columns.LLAMAMAN] = str(problem)
        return columns.measure(opened, scenarios, rounds, seconds, _say), missing


def _write(
    path: Path,
    facts: str,
    results: columns.Results,
    rows: Sequence[report.Row],
    parts: Mapping[str, DataclassInstance | None],
) -> None:
    rounds = {
        name: {column: [dataclasses.asdict(one) for one in many] for column, many in by_column.items()}
        for name, by_column in results.items()
    }
    everything = {
        "machine": facts,
        "rows": [dataclasses.asdict(row) for row in rows],
        "rounds": rounds,
        **{name: dataclasses.asdict(part) if part else None for name, part in parts.items()},
    }
    path.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
