"""``/api/why``: what is found under a name, and what it shows to whom."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from management_door import Manager

from llamaman.access import Scope
from llamaman.core.admission import Admit, Refuse
from llamaman.core.breaker import Open
from llamaman.records import State


def why(manager: Manager, target: str, scope: Scope = Scope.MANAGE) -> dict[str, Any]:
    status, body = manager.call("GET", f"/api/why?target={target}", key=manager.key(scope))
    assert status == 200, body
    found: dict[str, Any] = body
    return found


def failed(manager: Manager) -> str:
    """An instance of the model that has died; its id."""
    body = {"model_path": str(manager.model)}
    made = manager.call("POST", "/api/instances", body, key=manager.key(Scope.MANAGE))[1]
    instances = manager.kernel.instances
    view = instances.all[made["id"]]
    instances.all[view.id] = dataclasses.replace(
        view, state=State.FAILED, reason="the engine exited with status 1"
    )
    view.log_path.write_text("loading\ninvalid magic in /models/x\n")
    manager.kernel.events.publish(
        "instances",
        "failed",
        {"instance_id": view.id, "model": view.model},
        actor="supervisor",
        reason="the engine exited with status 1",
    )
    return view.id


@pytest.mark.parametrize("by", ["name", "id", "short id"])
def test_a_failed_model_is_explained_by_name_and_by_id(manager: Manager, by: str) -> None:
    instance_id = failed(manager)
    manager.kernel.instances.pauses[instance_id] = Open(12.0, "it keeps dying")
    found = why(manager, {"name": "tiny", "id": instance_id, "short id": instance_id[:8]}[by])
    assert found["kind"] == ("model" if by == "name" else "instance")
    assert (
        "is failed: the engine exited with status 1; requests are refused for another 12 s" in found["answer"]
    )
    assert (found["state"], found["actor"]) == ("failed", "supervisor")
    assert found["breaker"] == {"seconds": 12.0, "reason": "it keeps dying"}
    assert [each["id"] for each in found["instances"]] == [instance_id]
    assert [event["kind"] for event in found["events"]] == ["failed"]
    assert found["since"] == found["events"][0]["at"]


def test_log_lines_and_paths_are_for_those_who_may_manage(manager: Manager) -> None:
    instance_id = failed(manager)
    detail = why(manager, "tiny")["detail"]
    assert detail["log_lines"][-1].strip() == "invalid magic in /models/x"
    assert detail["log_file"].endswith(f"{instance_id}.log")
    assert why(manager, "tiny", Scope.VIEW)["detail"] is None
    assert "/models" not in str(why(manager, "tiny", Scope.VIEW))


def test_a_model_that_nobody_loaded_says_what_a_request_meets(manager: Manager) -> None:
    found = why(manager, "tiny-q8_0")
    assert (found["kind"], found["state"], found["instances"]) == ("model", "not_loaded", [])
    assert found["answer"].endswith("the next request loads it")
    manager.kernel.instances.admission = Refuse("model limit reached (LLAMAMAN_MAX_MODELS=1)")
    assert "a request now is refused: model limit reached" in why(manager, "tiny")["answer"]


def test_who_has_to_leave_is_told_by_name(manager: Manager) -> None:
    other = failed(manager)
    manager.kernel.instances.admission = Admit(victims=(other,))
    assert "and tiny-q8_0 has to leave for it" in why(manager, other)["answer"]


def test_an_unknown_name_is_a_404_with_what_is_spelled_like_it(manager: Manager) -> None:
    key = manager.key(Scope.VIEW)
    status, body = manager.call("GET", "/api/why?target=tinny-q8", key=key)
    assert (status, body["error"]) == (
        404,
        "no model or instance is called 'tinny-q8'; did you mean tiny-q8_0?",
    )
    assert manager.call("GET", "/api/why?target=zzz", key=key) == (
        404,
        {"error": "no model or instance is called 'zzz'"},
    )


@pytest.mark.parametrize("query", ["", "?target=", "?target=%20", "?target=" + "x" * 257, "?target=%00"])
def test_a_target_that_is_none_is_refused_by_name(shared_manager: Manager, query: str) -> None:
    status, body = shared_manager.call("GET", f"/api/why{query}", key=shared_manager.key(Scope.VIEW))
    assert (status, body["field"]) == (400, "target")


def test_an_instance_whose_model_s_file_is_gone_is_still_found(manager: Manager) -> None:
    instance_id = failed(manager)
    manager.model.unlink()
    manager.kernel.library.rescan()
    assert why(manager, "tiny-q8_0")["instances"][0]["id"] == instance_id
