"""The line that parts the runs of an instance in its log file, which outlives them. For every runtime; pure."""

from __future__ import annotations

import time

from llamaman.records import LaunchPlan
from llamaman.runtimes.causes import START_MARK


def start_line(plan: LaunchPlan) -> bytes:
    """What is written before the engine's first output."""
    engine = f"{plan.engine.name} {plan.engine.build or ''}".rstrip()
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return (
        f"{START_MARK} {plan.instance_id} generation {plan.generation} with {engine} at {now} ===\n".encode()
    )
