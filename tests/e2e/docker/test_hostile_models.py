"""A model file that takes all memory, in a container: it alone pays for it, and its owner is told why."""

from __future__ import annotations

import pytest
from bombs import below, let_go, need_memory

from llamaman.testing.docker_manager import DockerManager

pytestmark = pytest.mark.real("docker")


def pids_of(manager: DockerManager, instance_id: str) -> list[int]:
    try:
        init = int(manager.container_of(instance_id)["State"]["Pid"])
    except LookupError:
        return []
    return below(init) if init else []


def test_a_container_that_takes_far_more_than_its_model_can_need_is_ended_while_it_loads(
    manager: DockerManager,
) -> None:
    need_memory()
    failed, _ = let_go(manager, lambda instance_id: pids_of(manager, instance_id))
    assert "of memory while loading" in failed["reason"], failed
    assert "the model file may be hostile or damaged" in failed["reason"]
    assert len(manager.containers()) == 1, "the harmless model's container alone is left"


def test_a_small_memory_limit_ends_it_earlier_and_the_limit_is_named(manager: DockerManager) -> None:
    need_memory()
    failed, most = let_go(manager, lambda instance_id: pids_of(manager, instance_id), memory_limit="400m")
    assert most <= 400 << 20
    assert failed["exit"]["oom"] is True, failed
    assert "it ran out of memory and was killed: its limit is 400 MB" in failed["reason"]
    assert len(manager.containers()) == 1, "the harmless model's container alone is left"
