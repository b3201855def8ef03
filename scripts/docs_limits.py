"""The page of limits: every number that a client, an operator or a plugin can run into, read from the code.

A constant that is renamed or removed fails the generation, so the page cannot keep a number that is gone.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, Literal

from docs_markdown import PACKAGE, code, number, size, table

from llamaman.gateway.dialect import InferenceRoute
from llamaman.gateway.limits import Limits, default_body_budget_bytes
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


#: What each field of ``Limits`` means where its name and its comment do not say it.
_CONNECTION = {
    "head_bytes": "Request line and headers together; more is answered 431.",
    "head_s": "Time for a head; then 408.",
    "keepalive_s": "Then the connection is closed.",
    "write_stall_s": "Then the connection is closed and the engine's work ended.",
    "max_headers": "Header lines; more are answered 400.",
    "target_bytes": "Path and query; more is answered 400.",
    "discard_bytes": "Of a body that nobody wants.",
    "discard_s": "The same, in time.",
    "body_bytes_per_s": "A slower body is answered 408.",
    "body_grace_s": "",
    "per_address": "More are answered 503.",
    "total": "All connections together; more are answered 503.",
}

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
        Bound("core", "MAX_KEYS", "", "API keys."),
        Bound("core", "MAX_NAME", "", "Characters of a key's name."),
        Bound("core", "MAX_MODELS", "", "Models that a key may be limited to."),
        Bound("library", "MAX_PRESETS", "", "Presets."),
        Bound("library", "MAX_NOTE_BYTES", "bytes", "A preset's note."),
        Bound("core", "MAX_TOKENS", "", "Words in extra_args."),
        Bound("core", "MAX_BYTES", "bytes", "The text of extra_args."),
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
        Bound("library", "MAX_NAME", "", "Characters of a model's name; the rest is cut off."),
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
        "[configuration.md](../configuration.md) and [settings.md](settings.md).\n",
        "\n## Connections\n\nOf the ports 5000 and 42069 and of every instance's own port.\n\n",
        table(("Limit", "Value", "Meaning"), _connections()),
        "\n## Bodies of inference requests\n\n",
        table(
            ("Limit", "Value", "Meaning"),
            (
                (
                    "per body",
                    size(InferenceRoute("POST", "/").limit),
                    "Unless its route says otherwise; then 413.",
                ),
                ("all bodies in memory", "", f"{_budget()}; then 503 with Retry-After."),
            ),
        ),
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
    return f"{each.meaning} More: {each.answer}." if each.answer else each.meaning


def _connections() -> list[tuple[str, str, str]]:
    comments = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(Limits), re.MULTILINE))
    rows = []
    for field in fields(Limits):
        unit: Unit = "bytes" if field.name.endswith("_bytes") else "s" if field.name.endswith("_s") else ""
        unit = "" if field.name.endswith("_bytes_per_s") else unit
        comment = comments.get(field.name, "")
        meaning = " ".join(
            filter(None, (f"{comment[:1].upper()}{comment[1:]}." if comment else "", _CONNECTION[field.name]))
        )
        rows.append((code(field.name), _shown(getattr(Limits(), field.name), unit), meaning))
    return rows


def _budget() -> str:
    return (default_body_budget_bytes.__doc__ or "").strip().rstrip(".")


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
