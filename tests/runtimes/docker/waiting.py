"""Waiting for what happens in other threads, processes and containers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(holds: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """The first truthy value of ``holds``; fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value
