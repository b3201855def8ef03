"""What the registry of instances is built on; the house fills it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamaman.core import planner
from llamaman.core.admission import Policy
from llamaman.core.engine_client import Connect
from llamaman.core.events import Events
from llamaman.core.instance import Instance
from llamaman.core.instance_ports import Doors
from llamaman.core.ports import PortPool
from llamaman.core.store import Store
from llamaman.records import Exit, ModelView
from llamaman.runtime import Runtime

#: The collection of the store that holds the instances' records.
COLLECTION = "instances"


@dataclass(frozen=True, slots=True)
class Parts:
    """``model_at``, ``diagnose`` and ``discard_log`` may block. Times are seconds."""

    store: Store
    events: Events
    sources: planner.Sources
    runtimes: Mapping[str, Runtime]
    connect: Connect
    doors: Doors
    public_ports: PortPool
    internal_ports: PortPool
    logs_dir: Path
    model_at: Callable[[Path], ModelView]
    why_not_runnable: Callable[[Path], str | None]
    policy: Callable[[], Policy]
    managed_idle_timeout_s: float
    load_timeout_s: float
    health_timeout_s: float
    drain_timeout_s: float
    request_timeout_s: float
    may_enlarge: Callable[[], bool]  # whether a request for more context may restart an idle model
    diagnose: Callable[[Instance, Exit], str]
    discard_log: Callable[[Path], None]
    #: How long an engine's loop may say nothing; 0: for ever.
    frozen_after_s: Callable[[], float] = lambda: 0.0

    def log_path(self, instance_id: str) -> Path:
        """Where the engine of an instance writes what it says."""
        return self.logs_dir / f"{instance_id}.log"
