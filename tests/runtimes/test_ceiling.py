"""The ceiling of an engine without a limit: the machine always keeps something for itself."""

from __future__ import annotations

import pytest

from llamaman.runtimes.ceiling import memory_ceiling

GIB = 1 << 30


@pytest.mark.parametrize(
    ("total", "ceiling"),
    [(8 * GIB, 6 * GIB), (20 * GIB, 18 * GIB), (100 * GIB, 90 * GIB), (4 * GIB, 2 * GIB)],
)
def test_the_machine_keeps_two_gib_or_a_tenth_whichever_is_more(total: int, ceiling: int) -> None:
    assert memory_ceiling(total) == ceiling


def test_a_small_machine_keeps_half_so_that_an_engine_can_still_start() -> None:
    assert memory_ceiling(3 * GIB) == 3 * GIB // 2
    assert memory_ceiling(1 * GIB) == GIB // 2
