"""A model file that takes all memory, in a process: it alone pays for it, and its owner is told why."""

from __future__ import annotations

from bombs import let_go, need_memory

from llamaman.testing.manager import Manager


def test_a_process_that_takes_far_more_than_its_model_can_need_is_ended_while_it_loads(
    manager: Manager,
) -> None:
    need_memory()
    failed, _ = let_go(manager, manager.engines)
    assert "of memory while loading" in failed["reason"], failed
    assert "the model file may be hostile or damaged" in failed["reason"]
    assert len(manager.engines()) == 1, "the harmless model's engine alone is left"
