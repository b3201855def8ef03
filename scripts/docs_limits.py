"""The page of limits: every number that a client, an operator or a plugin can run into, read from the code.

What a client runs into is declared in ``llamaman/limits.py``; the inner workings are constants of their rooms. A
constant that is renamed or removed fails the generation, so the page cannot keep a number that is gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from docs_markdown import PACKAGE, code, number, size, table

from llamaman.limits import TABLE, Limit

Unit = Literal["bytes", "s", ""]


@dataclass(frozen=True, slots=True)
class Bound:
    """One constant of the code: its room, so that it may move within it, and its name.

    ``unit`` tells how to show it; a pair is shown as a range.
    """

    room: str
    name: str
    unit: Unit
    meaning: str


SECTIONS: dict[str, tuple[Bound, ...]] = {
    "Answers and streams": (
        Bound("gateway", "MAX_ANSWER", "bytes", "An engine's answer that is not streamed."),
        Bound("gateway", "MAX_EVENT_BYTES", "bytes", "One event of an engine's stream."),
        Bound("gateway", "HEARTBEAT_S", "s", "A stream that waits gets a comment this often."),
        Bound("gateway", "KEEPALIVE_S", "s", "A silent log stream gets a comment this often."),
        Bound("gateway", "LAST_LINES", "", "Lines of a log that are shown first."),
    ),
    "Management": (
        Bound("dashboard", "THREADS", "", "Management requests worked on at a time."),
        Bound("core", "RING", "", "Events that are remembered per topic."),
    ),
    "Life of an instance": (
        Bound("core", "STALL_S", "s", "Loading without any progress; then the launch fails."),
        Bound("core", "USER_DRAIN_S", "s", "Time that running requests get when a user stops it."),
        Bound("core", "STOP_GRACE_S", "s", "From asking the engine to end to killing it."),
        Bound("core", "SHORT_GRACE_S", "s", "The same, when forced or when it does not answer."),
        Bound("core", "FIRST_BACKOFF_S", "s", "Pause before the first restart; it doubles."),
        Bound("core", "LONGEST_BACKOFF_S", "s", "The longest such pause."),
        Bound("core", "MOST_RESTARTS", "", "Restarts in a row; then the instance has failed."),
        Bound("core", "STEADY_S", "s", "Ready this long, and the restarts count from 0 again."),
        Bound("core", "FIRST_PAUSE_S", "s", "A configuration that died is not loaded for; it doubles."),
        Bound("core", "LONGEST_PAUSE_S", "s", "The longest such pause."),
        Bound("house", "SHUTDOWN_GRACE_S", "s", "Time that running answers get when LlamaMan ends."),
        Bound("runtimes", "ROTATE_AT_BYTES", "bytes", "A log file; then it is rotated."),
        Bound("runtimes", "KEPT_FILES", "", "Rotated files that are kept per instance."),
        Bound("house", "LOGS_TOTAL_BYTES", "bytes", "All logs together; the oldest go first."),
    ),
    "Model files": (
        Bound("library", "MAX_ENTRIES", "", "Files looked at below MODELS_DIR."),
        Bound("library", "MAX_DEPTH", "", "Levels of folders."),
        Bound("library", "MAX_HEADER_BYTES", "bytes", "A GGUF header; a larger one makes the file broken."),
        Bound("library", "MAX_CPU_SECONDS", "s", "Processor time for reading one header."),
    ),
    "Plugins": (
        Bound("core", "DEGRADED_AFTER", "", "Failures in a row; then it counts as degraded."),
        Bound("core", "REST_S", "s", "How long a degraded probe rests."),
        Bound(
            "core",
            "OVERRUNS_ALLOWED",
            "",
            "Overruns that move a nonblocking hook to the pool.",
        ),
        Bound("gateway", "_HOOK_DEADLINE_S", "s", "For pre_forward on the pool; then 503."),
        Bound("core", "SHUTDOWN_S", "s", "For the shutdown of all plugins together."),
        Bound("core", "WORKERS", "", "Jobs that run at the same time."),
        Bound("core", "KEY_LIMIT", "", "Characters of a key in the store."),
    ),
}


def page() -> str:
    """The whole page."""
    parts = [
        "# Limits\n\nNumbers that are built in. What can be configured is in "
        "[configuration.md](../configuration.md) and [settings.md](settings.md). Connections are those of ports 5000 "
        "and 42069 and of every instance's own port.\n",
    ]
    for title in dict.fromkeys(each.section for each in TABLE):
        declared = (
            (code(each.name), _shown(each.value, each.unit), _with_answer(each))
            for each in TABLE
            if each.section == title
        )
        parts += [f"\n## {title}\n\n", table(("Limit", "Value", "Meaning"), declared)]
    for title, bounds in SECTIONS.items():
        rows = ((code(bound.name.strip("_")), _value(bound), bound.meaning) for bound in bounds)
        parts += [f"\n## {title}\n\n", table(("Limit", "Value", "Meaning"), rows)]
    return "".join(parts)


def _with_answer(each: Limit) -> str:
    return f"{each.meaning} Beyond: {each.answer}." if each.answer else each.meaning


def _value(bound: Bound) -> str:
    value = _constant(bound.room, bound.name)
    if isinstance(value, tuple):
        return " to ".join(_shown(each, bound.unit) for each in value)
    return _shown(value, bound.unit)


def _constant(room: str, name: str) -> Any:
    """The value of a module's constant somewhere in a room of ``llamaman``.

    :raises LookupError: it is nowhere there, or two modules differ about it.
    """
    files = [PACKAGE / f"{room}.py", *sorted((PACKAGE / room).rglob("*.py"))]
    values = {
        getattr(import_module(".".join(("llamaman", *path.relative_to(PACKAGE).with_suffix("").parts))), name)
        for path in files
        if path.exists() and re.search(rf"^{name}\b.*=", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    if len(values) != 1:
        raise LookupError(
            f"llamaman/{room} has {len(values)} values for {name}, which docs_limits.py lists: correct the list there"
        )
    return values.pop()


def _shown(value: float, unit: Unit) -> str:
    if unit == "bytes":
        return size(int(value))
    return f"{number(value)} s" if unit == "s" else number(value)
