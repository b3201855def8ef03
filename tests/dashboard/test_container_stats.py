"""``/api/instances/container-stats``: its shape, its units, and that it is not taken for an instance's id."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from management_door import Manager

from llamaman.access import Scope
from llamaman.records import ResourceUse

PATH = "/api/instances/container-stats"


def stats(manager: Manager, scope: Scope = Scope.VIEW) -> tuple[int, Any]:
    return manager.call("GET", PATH, key=manager.key(scope))


def test_nothing_running_is_an_empty_object_and_no_instance_of_that_name(manager: Manager) -> None:
    assert stats(manager) == (200, {})


def test_use_is_shown_in_percent_of_one_processor_and_mebibytes(manager: Manager) -> None:
    use = ResourceUse(cpu_percent=151.26, cpus=2.5, cpu_quota=2.5, memory_bytes=3 << 29, memory_limit=1 << 32)
    manager.kernel.instances.used = {"a" * 32: use}
    assert stats(manager) == (
        200,
        {
            "a" * 32: {
                "cpu_pct": 151.3,
                "num_cpus": 2.5,
                "mem_used_mb": 1536.0,
                "mem_limit_mb": 4096.0,
                "gpus": [],
                "cpu_quota": 2.5,
            }
        },
    )


def test_what_is_not_known_is_null_and_zero_stays_zero(manager: Manager) -> None:
    manager.kernel.instances.used = {
        "a": ResourceUse(),
        "b": ResourceUse(cpu_percent=0.0, cpus=8.0, memory_bytes=0),
    }
    _, found = stats(manager)
    assert found["a"] == {
        "cpu_pct": None, "num_cpus": None, "mem_used_mb": None, "mem_limit_mb": None, "gpus": [], "cpu_quota": None,
    }  # fmt: skip
    assert (found["b"]["cpu_pct"], found["b"]["mem_used_mb"], found["b"]["cpu_quota"]) == (0, 0, None)
    assert isinstance(found["b"]["num_cpus"], int)


def test_the_answer_is_what_the_description_says(manager: Manager) -> None:
    manager.kernel.instances.used = {"a": ResourceUse(), "b": ResourceUse(1.5, 2.0, None, 5 << 20, 1 << 30)}
    _, document = manager.call("GET", "/api/openapi.json", key=manager.key(Scope.VIEW))
    answers = document["paths"][PATH]["get"]["responses"]
    schema = answers["200"]["content"]["application/json"]["schema"]
    _, found = stats(manager)
    jsonschema_rs.validator_for({**schema, "components": document["components"]}).validate(found)
    assert found["b"]["mem_used_mb"] == 5


def test_a_key_for_inference_does_not_see_it(manager: Manager) -> None:
    assert stats(manager, Scope.INFERENCE)[0] == 403
