"""What an instance's record says after a kill: what was true, and nothing that was made up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from llamaman.testing.manager import Manager


def stored(manager: Manager, instance_id: str) -> str:
    """The instance's record as it lies on the disk now, as text."""
    text = (manager.data / "state.json").read_text(encoding="utf-8")
    assert instance_id in text
    return text


def facts(instance: dict[str, Any]) -> dict[str, Any]:
    return {name: instance[name] for name in ("started_at", "pid", "port", "generation", "config")}


def test_an_adopted_instance_keeps_when_it_was_started_and_has_no_load_time(manager: Manager) -> None:
    before = manager.launch("tiny")
    assert before["started_at"] > 0
    assert before["stats"]["model_load_time_s"] > 0
    manager.until(lambda: '"pid":' in stored(manager, before["id"]).replace(" ", ""), "its record")
    for _ in range(2):
        manager.kill()
        manager.start()
        now = manager.wait_status(before["id"], "healthy")
        assert facts(now) == facts(before)
        assert now["stats"]["model_load_time_s"] is None, "this manager did not see it load"
    manager.manage("POST", f"/api/instances/{before['id']}/restart", {})
    again = manager.until(
        lambda: _healthy(manager, before["id"], before["generation"] + 1), "the restart to be ready"
    )
    assert again["started_at"] > before["started_at"]
    assert again["stats"]["model_load_time_s"] > 0


def test_an_instance_adopted_while_it_loads_has_no_load_time_either(
    tempered: Callable[..., Manager],
) -> None:
    manager = tempered("polite", load_ms=1500)
    instance = manager.launch("tiny", wait=None)
    manager.until(manager.engines, "the engine")
    started = manager.until(lambda: manager.instance(instance["id"])["started_at"], "its start to be known")
    manager.until(lambda: '"pid":' in stored(manager, instance["id"]).replace(" ", ""), "its record")
    manager.kill()
    manager.start()
    now = manager.wait_status(instance["id"], "healthy")
    assert now["started_at"] == started
    assert now["stats"]["model_load_time_s"] is None


def test_a_preset_that_asks_for_a_start_at_boot_is_in_the_record_at_once(plain_manager: Manager) -> None:
    manager = plain_manager
    instance = manager.launch("tiny")
    assert _start_at_boot(manager, instance["id"]) is False
    for wanted in (True, False, True):
        manager.preset("tiny", start_at_boot=wanted)
        manager.until(lambda: _start_at_boot(manager, instance["id"]) is wanted, "the record")  # noqa: B023 - called before the next turn
    manager.kill()
    os.kill(instance["pid"], signal.SIGKILL)
    manager.until(lambda: not manager.engines(), "the engine to be gone")
    manager.start()
    now = manager.wait_status(instance["id"], "healthy")
    assert now["pid"] != instance["pid"], "started at boot, as the preset says"


def _start_at_boot(manager: Manager, instance_id: str) -> bool:
    records: Any = json.loads(stored(manager, instance_id))
    (record,) = _records(records, instance_id)
    return bool(record["options"]["start_at_boot"])


def _records(place: Any, instance_id: str) -> list[dict[str, Any]]:
    """The records of an instance, wherever the file keeps them."""
    if isinstance(place, dict):
        if place.get("id") == instance_id and "options" in place:
            return [place]
        return [found for each in place.values() for found in _records(each, instance_id)]
    if isinstance(place, list):
        return [found for each in place for found in _records(each, instance_id)]
    return []


def _healthy(manager: Manager, instance_id: str, generation: int) -> dict[str, Any] | None:
    seen = manager.instance(instance_id)
    return seen if seen["status"] == "healthy" and seen["generation"] == generation else None


def test_a_note_on_a_preset_leaves_what_runs_as_it_was_launched(plain_manager: Manager) -> None:
    manager = plain_manager
    manager.preset("tiny", max_concurrent=3)
    made = manager.launch("tiny", parallel=4, max_concurrent=1)
    path = quote(str(manager.models / "tiny.gguf").lstrip("/"))
    manager.manage("PATCH", f"/api/presets/{path}", {"favorite": True})
    manager.preset("tiny", idle_timeout_min=7)
    manager.until(lambda: manager.instance(made["id"])["config"]["idle_timeout_min"] == 7, "the preset")
    assert manager.instance(made["id"])["config"]["max_concurrent"] == 1, "which came after the note"
    manager.preset("tiny", max_concurrent=3)
    manager.until(lambda: manager.instance(made["id"])["config"]["max_concurrent"] == 3, "the preset")
