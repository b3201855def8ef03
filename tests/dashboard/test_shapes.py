"""What REST answers has exactly the fields that its schema declares, with every value known and with none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llamaman.dashboard.answer_schemas import INSTANCE
from llamaman.dashboard.shapes import instance_object
from llamaman.records import Address, Exit, InstanceView, State


def view(**known: Any) -> InstanceView:
    fields: dict[str, Any] = dict.fromkeys(InstanceView.__dataclass_fields__)
    fields |= {
        "id": "a" * 36,
        "model": "tiny",
        "model_path": Path("/models/tiny.gguf"),
        "port": 8000,
        "state": State.FAILED,
        "status": "failed",
        "reason": "it ended",
        "generation": 1,
        "options": {},
        "managed": False,
        "runtime": "docker",
        "log_path": Path("/logs/a.log"),
        "created": time.time(),
        "active": 0,
        "queued": 0,
        "requests": 0,
        "crashes": 0,
        "notes": (),
    }
    return InstanceView(**{**fields, **known})


KNOWN = {
    "last_exit": Exit(137, 9, time.time(), oom=True, cause="it ran out of memory"),
    "address": Address("172.18.0.2", 8080),
    "container_id": "c" * 64,
    "engine_digest": "sha256:" + "0" * 64,
    "notes": ("memory_limit lowered",),
}


@pytest.mark.parametrize("known", [{}, KNOWN], ids=["unknown", "known"])
def test_an_instance_has_the_declared_fields_and_no_other(known: Mapping[str, Any]) -> None:
    same_fields(INSTANCE, instance_object(view(**known), "llamaman-"), "instance")


def same_fields(schema: Mapping[str, Any], value: Any, where: str) -> None:
    if value is None:
        return
    for candidate in schema.get("anyOf", [schema]):
        if "properties" not in candidate or where.endswith(
            ".config"
        ):  # the launch options have tests of their own
            continue
        assert set(value) == set(candidate["properties"]), where
        for name, inner in candidate["properties"].items():
            same_fields(inner, value[name], f"{where}.{name}")
