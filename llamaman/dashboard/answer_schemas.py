"""JSON Schemas of what ``shapes.py`` makes. Read by the views' ``@operation``; tests hold real answers against them.

Every object lists all of its fields as required and no others, so that neither can be forgotten here. A schema
with a ``title`` becomes a named component of the API's description.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llamaman.dashboard.input_schemas import LAUNCH_OPTIONS
from llamaman.records import REST_STATUS, UNKNOWN, State

JsonSchema = Mapping[str, Any]

TEXT: Final[JsonSchema] = {"type": "string"}
FLAG: Final[JsonSchema] = {"type": "boolean"}
WHOLE: Final[JsonSchema] = {"type": "integer"}
COUNT: Final[JsonSchema] = {"type": "integer", "minimum": 0}
NUMBER: Final[JsonSchema] = {"type": "number"}
#: Epoch seconds.
TIME: Final[JsonSchema] = {"type": "number", "description": "Seconds since 1970-01-01 UTC."}
#: ISO-8601 in UTC with milliseconds.
DATE: Final[JsonSchema] = {"type": "string", "format": "date-time"}
ANY_OBJECT: Final[JsonSchema] = {"type": "object"}


def maybe(schema: JsonSchema) -> JsonSchema:
    """The same, or null for what is not known."""
    return {"anyOf": [schema, {"type": "null"}]}


def words(*allowed: str) -> JsonSchema:
    """One of a few words."""
    return {"type": "string", "enum": list(allowed)}


def list_of(schema: JsonSchema) -> JsonSchema:
    """A list of them."""
    return {"type": "array", "items": schema}


def record(title: str | None = None, /, **fields: JsonSchema) -> JsonSchema:
    """An object with exactly these fields; with a title it becomes a component of that name."""
    named = {"title": title} if title else {}
    return {
        **named,
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def status(word: str) -> JsonSchema:
    """``{"status": word}``, how older routes say that something was done."""
    return record(status={"type": "string", "const": word})


#: ``{"ok": true}``.
DONE: Final = record("Done", ok={"type": "boolean", "const": True})

#: What every refusal holds; some hold more, which their route's description names.
ERROR: Final[JsonSchema] = {
    "title": "Error",
    "type": "object",
    "properties": {
        "error": {"type": "string", "description": "What is wrong, and what to do about it."},
        "field": {"type": "string", "description": "The field that is wrong."},
        "detail": {"type": "string", "description": "Log lines and paths, for callers who may manage."},
        "id": {"type": "string", "description": "Under which a defect of LlamaMan stands in its log."},
        "confirm_required": {"type": "boolean", "const": True},
        "sudo_required": {"type": "boolean", "const": True},
    },
    "required": ["error"],
}

INSTANCE: Final = record(
    "Instance",
    id=TEXT,
    model=TEXT,
    model_name=TEXT,
    model_path=TEXT,
    port=WHOLE,
    status=words(*dict.fromkeys(REST_STATUS.values()), UNKNOWN),
    state=words(*(state.value for state in State)),
    reason=TEXT,
    managed=FLAG,
    runtime=TEXT,
    engine=maybe(TEXT),
    engine_digest=maybe(TEXT),
    notes=list_of(TEXT),
    pid=maybe(WHOLE),
    container_id=maybe(TEXT),
    container_name=maybe(TEXT),
    generation=COUNT,
    log_file=TEXT,
    config=LAUNCH_OPTIONS.schema,
    created_at=TIME,
    started_at=maybe(TIME),
    ready_at=maybe(TIME),
    last_request_at=maybe(TIME),
    context_length=maybe(WHOLE),
    slots=maybe(COUNT),
    stats=record(
        model_load_time_s=maybe(NUMBER),
        last_tokens_per_sec=maybe(NUMBER),
        last_ttft_ms=maybe(NUMBER),
        total_requests=COUNT,
        crash_count=COUNT,
    ),
    queue=record(active=COUNT, queued=COUNT, max_concurrent=maybe(COUNT), max_queue_depth=maybe(COUNT)),
    exit=maybe(record(code=maybe(WHOLE), signal=maybe(WHOLE), at=TIME, oom=maybe(FLAG), cause=maybe(TEXT))),
)

MODEL: Final = record(
    "Model",
    name=TEXT,
    aliases=list_of(TEXT),
    path=TEXT,
    type=words("gguf", "hf"),
    quant=maybe(TEXT),
    size_bytes=COUNT,
    size_display=TEXT,
    modified_at=TIME,
    runnable=FLAG,
    embedding=FLAG,
    context_length=maybe(COUNT),
    files={"type": "integer", "minimum": 1},
)

_KEY: Final[Mapping[str, JsonSchema]] = {
    "id": TEXT,
    "name": TEXT,
    "prefix": TEXT,
    "scope": words("inference", "view", "manage", "admin"),
    "models": maybe(list_of(TEXT)),
    "created_at": DATE,
    "created_by": TEXT,
    "expires_at": maybe(DATE),
    "last_used_at": maybe(DATE),
}
KEY: Final = record("Key", **_KEY)
#: The one answer that shows a key.
NEW_KEY: Final = record("NewKey", **_KEY, key=TEXT)

PRESET: Final[JsonSchema] = {
    "title": "Preset",
    "type": "object",
    "properties": {
        **LAUNCH_OPTIONS.schema["properties"],
        "favorite": FLAG,
        "note": TEXT,
        "aliases": list_of(TEXT),
    },
    "additionalProperties": False,
}
PRESETS: Final[JsonSchema] = {
    "type": "object",
    "additionalProperties": PRESET,
    "description": "Model path -> its preset.",
}

PLUGIN: Final = record(
    "Plugin",
    name=TEXT,
    distribution=maybe(TEXT),
    version=maybe(TEXT),
    state=words("active", "disabled", "incompatible", "broken"),
    reason=maybe(TEXT),
    hooks=list_of(TEXT),
)

ROUTE: Final = record(
    "Route",
    method=TEXT,
    path=TEXT,
    surface=words("manage", "proxy", "instance", "admin"),
    level=words("public", "inference", "view", "manage", "admin"),
    plugin=TEXT,
)

EVENT: Final = record(
    "Event",
    id=COUNT,
    topic=TEXT,
    kind=TEXT,
    at=TIME,
    actor=TEXT,
    reason=TEXT,
    data=ANY_OBJECT,
)

SYSTEM: Final = record(
    "System",
    cpu_percent=maybe(NUMBER),
    cpu_cores=COUNT,
    ram_total_mb=maybe(NUMBER),
    ram_used_mb=maybe(NUMBER),
    ram_free_mb=maybe(NUMBER),
    ram_percent=maybe(NUMBER),
)

SETTING: Final = record(
    "Setting",
    name=TEXT,
    type=words("bool", "int", "float", "text", "choice", "list", "time"),
    default={},
    help=TEXT,
    scope=words("shared", "node"),
    env=maybe(TEXT),
    editable=FLAG,
    restart=FLAG,
    secret=FLAG,
    minimum=maybe(NUMBER),
    maximum=maybe(NUMBER),
    choices=list_of(TEXT),
    pattern=maybe(TEXT),
    form=TEXT,
    owner=TEXT,
    value={},
    source=words("default", "environment", "stored"),
)
