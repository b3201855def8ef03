"""How much memory an engine may use when nobody set a limit. For every runtime, so that all say the same.

A model file decides how much memory its engine takes (a chat template can ask for all there is while it is
loaded), so "no limit" still leaves the machine enough to go on with everything else.
"""

from __future__ import annotations

_LEAST_LEFT = 2 << 30


def memory_ceiling(total: int) -> int:
    """Bytes for one engine on a machine that has ``total`` bytes: all but 2 GiB, or all but 10 % where that is more.

    A machine of less than 4 GiB keeps half of what it has instead, since nothing would be left to run with.
    """
    return max(total - max(_LEAST_LEFT, total // 10), total // 2)
