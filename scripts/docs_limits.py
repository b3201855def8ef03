"""The page of limits: every number that a client, an operator or a plugin can run into, read from the code.

A constant that is renamed or removed fails the generation, so the page cannot keep a number that is gone.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Literal

from docs_markdown import code, number, size, table

from llamaman.gateway.dialect import InferenceRoute
from llamaman.gateway.limits import Limits, default_body_budget_bytes

Unit = Literal["bytes", "s", ""]


@dataclass(frozen=True, slots=True)
class Bound:
    """One constant of the code. ``unit`` tells how to show it; a pair is shown as a range."""

    module: str
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

_G, _C, _R, _L = "llamaman.gateway", "llamaman.core", "llamaman.runtimes", "llamaman.library"
SECTIONS: dict[str, tuple[Bound, ...]] = {
    "Answers and streams": (
        Bound(f"{_G}.pipeline", "MAX_ANSWER", "bytes", "An engine's answer that is not streamed."),
        Bound(f"{_G}.pipeline", "MAX_EVENT", "bytes", "One event of an engine's stream."),
        Bound(f"{_G}.exchange", "HEARTBEAT_S", "s", "A stream that waits gets a comment this often."),
        Bound(f"{_G}.log_stream", "KEEPALIVE_S", "s", "A silent log stream gets a comment this often."),
        Bound(f"{_G}.log_stream", "LAST_LINES", "", "Lines of a log that are shown first."),
        Bound(f"{_G}.log_stream", "PER_CALLER", "", "Log streams of one caller; more are answered 429."),
        Bound(f"{_G}.log_stream", "IN_ALL", "", "Log streams of all callers; more are answered 429."),
    ),
    "Management": (
        Bound("llamaman.dashboard.bodies", "MAX_BODY", "bytes", "A body; more is answered 413."),
        Bound("llamaman.dashboard.bodies", "MAX_DEPTH", "", "Levels of nesting in a body."),
        Bound("llamaman.dashboard.server", "THREADS", "", "Management requests worked on at a time."),
        Bound("llamaman.dashboard.rest.about", "MAX_EVENTS", "", "Events in one answer."),
        Bound(f"{_C}.events", "RING", "", "Events that are remembered per topic."),
        Bound(f"{_C}.api_keys", "MAX_KEYS", "", "API keys."),
        Bound(f"{_C}.key_record", "MAX_NAME", "", "Characters of a key's name."),
        Bound(f"{_C}.key_record", "MAX_MODELS", "", "Models that a key may be limited to."),
        Bound(f"{_L}.presets", "MAX_PRESETS", "", "Presets."),
        Bound(f"{_L}.presets", "MAX_NOTE_BYTES", "bytes", "A preset's note."),
        Bound(f"{_C}.extra_args", "MAX_TOKENS", "", "Words in extra_args."),
        Bound(f"{_C}.extra_args", "MAX_BYTES", "bytes", "The text of extra_args."),
    ),
    "Life of an instance": (
        Bound(f"{_C}.readiness", "STALL_S", "s", "Loading without any progress; then the launch fails."),
        Bound(f"{_C}.instances", "USER_DRAIN_S", "s", "Time that running requests get when a user stops it."),
        Bound(f"{_C}.messages", "STOP_GRACE_S", "s", "From asking the engine to end to killing it."),
        Bound(f"{_C}.messages", "SHORT_GRACE_S", "s", "The same, when forced or when it does not answer."),
        Bound(f"{_C}.supervisor", "FIRST_BACKOFF_S", "s", "Pause before the first restart; it doubles."),
        Bound(f"{_C}.supervisor", "LONGEST_BACKOFF_S", "s", "The longest such pause."),
        Bound(f"{_C}.supervisor", "MOST_RESTARTS", "", "Restarts in a row; then the instance has failed."),
        Bound(f"{_C}.supervisor", "STEADY_S", "s", "Ready this long, and the restarts count from 0 again."),
        Bound(
            f"{_C}.breaker", "FIRST_PAUSE_S", "s", "A configuration that died is not loaded for; it doubles."
        ),
        Bound(f"{_C}.breaker", "LONGEST_PAUSE_S", "s", "The longest such pause."),
        Bound("llamaman.house", "SHUTDOWN_GRACE_S", "s", "Time that running answers get when LlamaMan ends."),
        Bound(f"{_R}.logfiles", "ROTATE_AT_BYTES", "bytes", "A log file; then it is rotated."),
        Bound(f"{_R}.logfiles", "KEPT_FILES", "", "Rotated files that are kept per instance."),
        Bound("llamaman.house", "LOGS_TOTAL_BYTES", "bytes", "All logs together; the oldest go first."),
    ),
    "Model files": (
        Bound(f"{_L}.scan", "MAX_ENTRIES", "", "Files looked at below MODELS_DIR."),
        Bound(f"{_L}.scan", "MAX_DEPTH", "", "Levels of folders."),
        Bound(f"{_L}.names", "MAX_NAME", "", "Characters of a model's name; the rest is cut off."),
        Bound(
            f"{_L}.gguf", "MAX_HEADER_BYTES", "bytes", "A GGUF header; a larger one makes the file broken."
        ),
        Bound(f"{_L}.gguf", "MAX_CPU_SECONDS", "s", "Processor time for reading one header."),
    ),
    "Plugins": (
        Bound(f"{_C}.plugin_manager", "DEGRADED_AFTER", "", "Failures in a row; then it counts as degraded."),
        Bound(f"{_C}.plugin_manager", "REST_S", "s", "How long a degraded probe rests."),
        Bound(
            f"{_C}.plugin_manager",
            "OVERRUNS_ALLOWED",
            "",
            "Overruns that move a nonblocking hook to the pool.",
        ),
        Bound(f"{_G}.pipeline", "_HOOK_DEADLINE_S", "s", "For pre_forward on the pool; then 503."),
        Bound(f"{_C}.hooks", "SHUTDOWN_S", "s", "For the shutdown of all plugins together."),
        Bound(f"{_C}.jobs", "WORKERS", "", "Jobs that run at the same time."),
        Bound(f"{_C}.store", "KEY_LIMIT", "", "Characters of a key in the store."),
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
    for title, bounds in SECTIONS.items():
        rows = ((code(bound.name.strip("_")), _value(bound), bound.meaning) for bound in bounds)
        parts += [f"\n## {title}\n\n", table(("Limit", "Value", "Meaning"), rows)]
    return "".join(parts)


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
    value = getattr(import_module(bound.module), bound.name)
    if isinstance(value, tuple):
        return " to ".join(_shown(each, bound.unit) for each in value)
    return _shown(value, bound.unit)


def _shown(value: float, unit: Unit) -> str:
    if unit == "bytes":
        return size(int(value))
    return f"{number(value)} s" if unit == "s" else number(value)
