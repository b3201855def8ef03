"""Instances for tests: everything that a test does not care about is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamaman.core.instance import Instance
from llamaman.records import State


def some_instance(instance_id: str = "i0", **given: Any) -> Instance:
    """An instance that is ready unless told otherwise."""
    facts: dict[str, Any] = {
        "model": "tiny",
        "model_path": Path("/models/tiny.gguf"),
        "port": 8000,
        "runtime": "process",
        "log_path": Path("/dev/null"),
        "overrides": {},
        "options": {},
        "state": State.READY,
        "created": 1000.0,
    }
    return Instance(id=instance_id, **(facts | given))
