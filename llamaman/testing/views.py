"""Instances as dialects see them, for tests of what a dialect says of them. Pure; for test authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamaman.records import REST_STATUS, InstanceView, ModelView, State

CREATED = 1_700_000_050.0


def instance_view(model: ModelView, state: State = State.READY, **changes: Any) -> InstanceView:
    """An instance of a model with 4 slots of 4,096 tokens each, in a state, with fields changed."""
    loaded = state in (State.READY, State.DRAINING)
    fields: dict[str, Any] = {
        "id": "5f1d",
        "model": model.name,
        "model_path": model.path,
        "port": 8000,
        "state": state,
        "status": REST_STATUS[state],
        "reason": "",
        "generation": 1,
        "options": {"ctx_size": 4096, "parallel": 4},
        "managed": True,
        "engine": "llama-server",
        "runtime": "process",
        "log_path": Path("/logs/5f1d.log"),
        "address": None,
        "pid": None,
        "container_id": None,
        "created": CREATED,
        "started": CREATED,
        "ready_at": CREATED + 1 if loaded else None,
        "last_request": None,
        "load_seconds": 1.0 if loaded else None,
        "active": 0,
        "queued": 0,
        "slots": 4 if loaded else None,
        "context_length": 4096 if loaded else None,
        "requests": 0,
        "crashes": 0,
        "last_exit": None,
        "last_tokens_per_second": None,
        "last_ttft_ms": None,
    }
    return InstanceView(**(fields | changes))
