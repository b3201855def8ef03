"""The life of an instance, and what is shown of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from llamaman.records.engines import Address, EngineFacts, Exit


class State(StrEnum):
    """The life of an instance. REST shows fewer words, see :data:`REST_STATUS`."""

    QUEUED = "queued"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    SLEEPING = "sleeping"
    STOPPED = "stopped"
    BACKOFF = "backoff"
    FAILED = "failed"


#: The words of the REST API. STOPPING is the word of where it is going and is resolved by the view.
REST_STATUS: Mapping[State, str] = {
    State.QUEUED: "starting",
    State.PREPARING: "starting",
    State.STARTING: "starting",
    State.BACKOFF: "starting",
    State.READY: "healthy",
    State.DRAINING: "healthy",
    State.STOPPING: "stopped",
    State.SLEEPING: "sleeping",
    State.STOPPED: "stopped",
    State.FAILED: "failed",
}


#: The word while the runtime of an engine cannot be reached; the state stays what it was.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """A launch as an administrator or the front door asks for it.

    :ivar options: explicitly given launch options, already validated against the launch table.
    :ivar port: the public port, or None for the first free one.
    :ivar managed: started on demand by the front door, so it may be put to sleep and evicted by it.
    """

    model_path: Path
    options: Mapping[str, Any]
    port: int | None = None
    preset: str | None = None
    managed: bool = False
    confirm_overcommit: bool = False


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance at one moment; a snapshot that any thread may read.

    :ivar status: the word of REST: one of :data:`REST_STATUS`, or :data:`UNKNOWN`, and ``reason`` says why.
    :ivar engine_digest: what tells the engine's build from every other, such as the id of a container image.
    :ivar notes: what the launch could not have as it was asked for, in words.
    :ivar facts: what its engine said when it became ready, None before.
    :ivar last_release: epoch seconds at which its last request ended.
    :ivar expires: epoch seconds at which it will go to sleep unless it is used, None for never or not running.
    :ivar size_vram: bytes on GPUs, None where nobody knows.
    """

    id: str
    model: str
    model_path: Path
    port: int
    state: State
    status: str
    reason: str
    generation: int
    options: Mapping[str, Any]
    managed: bool
    engine: str | None
    runtime: str
    log_path: Path
    address: Address | None
    pid: int | None
    container_id: str | None
    created: float
    started: float | None
    ready_at: float | None
    last_request: float | None
    load_seconds: float | None
    active: int
    queued: int
    slots: int | None
    context_length: int | None
    requests: int
    crashes: int
    last_exit: Exit | None
    last_tokens_per_second: float | None
    last_ttft_ms: float | None
    engine_digest: str | None = None
    notes: tuple[str, ...] = ()
    facts: EngineFacts | None = None
    memory_estimate: int | None = None
    last_release: float | None = None
    expires: float | None = None
    size_vram: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceEvent:
    """One transition of one instance: what, why and by whom."""

    instance_id: str
    model: str
    generation: int
    state: State
    previous: State | None
    reason: str
    actor: str
    at: float
