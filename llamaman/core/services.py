"""What a supervisor works with. The registry makes one for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from llamaman.core.breaker import Breaker
from llamaman.core.engine_client import Connect
from llamaman.core.instance import Instance
from llamaman.core.memory_guard import Allowance
from llamaman.records import Exit, LaunchPlan, State
from llamaman.runtime import Runtime

#: run(function, *args): a blocking function on a pool.
Run = Callable[..., Awaitable[Any]]
#: Told on the loop how far a fetch is, and None when it is over.
Report = Callable[[str | None], None]


@dataclass(frozen=True, slots=True)
class Services:
    """Blocking ones say so and are only called through ``start``, ``stop`` or ``inspect``."""

    start: Run
    stop: Run
    inspect: Run
    persist: Callable[[Instance], Awaitable[None]]
    plan: Callable[[Instance, int, Report], Awaitable[LaunchPlan]]  # fetches what is missing
    api_key: Callable[[str, int], str]
    runtime: Callable[[str], Runtime]
    lost: Callable[[str], str | None]  # why the runtime of this name cannot be reached now
    connect: Connect
    changed: Callable[[Instance, State], None]  # publish, wake the waiters
    told: Callable[[Instance, str], None]  # the same for news of this kind that change no state
    diagnose: Callable[[Instance, Exit], str]  # blocking: the cause in words
    allowance: Callable[[Instance], Allowance]  # blocking: the memory that it may take while it loads
    release_internal: Callable[[Instance], None]
    release_port: Callable[[Instance], Awaitable[None]]
    open_port: Callable[[Instance], Awaitable[None]]
    idle_timeout_s: Callable[[Instance], float]
    breaker: Breaker
    load_timeout_s: float
    health_timeout_s: float
    frozen_after_s: Callable[[], float] = lambda: 0.0  # how long its loop may say nothing; 0: for ever
