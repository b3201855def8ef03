"""Frozen records that cross a hook, runtime or dialect boundary.

Sizes are bytes, times are seconds, points in time are epoch seconds (UTC) unless a name says otherwise.
None means unknown; 0 means zero.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamaman.access import Access, Scope

if TYPE_CHECKING:
    from flask import Blueprint


# --- who ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from, after authentication.

    :ivar session: the public id of a session (no secret), for kind ``session`` alone.
    """

    kind: Literal["none", "key", "session", "node", "local"]
    name: str
    scope: Scope | None = None
    key_id: str | None = None
    models: frozenset[str] | None = None  # None: every model
    session: str | None = None

    @property
    def actor(self) -> str:
        """The form in which events and the audit log name this caller."""
        return f"{self.kind}:{self.name}" if self.name else self.kind


NOBODY = Identity("none", "")


# --- models ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What a model's files say of it. They are hostile input: texts are what they claim, whatever they hold.

    :ivar parameters: elements of all tensors of all shards.
    :ivar capabilities: of completion, embedding, rerank, vision, audio, tools, thinking, insert; what the files
        promise, before an engine has seen them.
    :ivar digest: 64 hexadecimal digits that differ between models, stay over restarts and change with the files.
    :ivar template: the chat template (Jinja).
    :ivar metadata: the header's keys and values; arrays are None.
    :ivar projector: the same of the projector (mmproj) that belongs to it.
    """

    architecture: str | None = None
    name: str | None = None
    parameters: int | None = None
    embedding_length: int | None = None
    capabilities: frozenset[str] = frozenset()
    digest: str = ""
    template: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    projector: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model on disk as dialects and routes see it.

    :ivar name: unique public name: the lower-cased file stem without shard suffix.
    :ivar path: the file given to the engine (first shard of a set).
    :ivar size: bytes of all its files.
    :ivar aliases: further names, from its preset.
    """

    name: str
    path: Path
    size: int
    quant: str | None
    modified: float
    kind: Literal["gguf", "hf"] = "gguf"
    runnable: bool = True
    embedding: bool = False
    context_length: int | None = None
    files: tuple[Path, ...] = ()
    details: ModelDetails | None = None
    aliases: tuple[str, ...] = ()


# --- engines and launches ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Engine:
    """What a runtime runs.

    :ivar name: the name used in presets and shown to users, such as ``llama-server`` or ``embedded``.
    :ivar flags: the command-line flags this build knows, or None when they could not be probed.
    :ivar digest: what tells this build from every other one, such as the id of a container image.
    """

    name: str
    kind: Literal["binary", "embedded", "image"]
    path: str
    build: str | None = None
    flags: frozenset[str] | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a running engine says of its model (``/props``); better evidence than the file.

    :ivar modalities: of vision, audio, video; None when it does not say.
    :ivar media_marker: stands for a picture in a raw prompt.
    :ivar template: what the chat template can do, such as ``supports_tools``.
    """

    modalities: frozenset[str] | None = None
    media_marker: str | None = None
    template: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """A fully resolved launch: nothing is looked up after this record exists.

    :ivar host: where the engine shall listen; a runtime that places its engines itself (containers) ignores it.
    :ivar port: 0 for a runtime that needs none on this machine.
    :ivar memory_bytes: the limit that was asked for; None: the runtime's own ceiling.
    :ivar memory_estimate: bytes that weights, cache and buffers are expected to take, or None.
    """

    instance_id: str
    node: str
    install: str
    generation: int
    engine: Engine
    model_path: Path
    alias: str
    options: Mapping[str, Any]
    flags: tuple[str, ...]
    env: Mapping[str, str]
    host: str
    port: int
    log_path: Path
    config_hash: str
    api_key: str = field(repr=False)
    cpus: float | None = None
    memory_bytes: int | None = None
    memory_estimate: int | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens: a TCP host and port, or a unix socket path."""

    host: str = ""
    port: int = 0
    path: str = ""


@dataclass(frozen=True, slots=True)
class Handle:
    """A running engine, in a form that survives a manager restart (JSON-able through ``asdict``).

    :ivar started: the kernel's start time of the process in clock ticks since boot (field 22 of
        ``/proc/<pid>/stat``), which together with the pid identifies it for good.
    :ivar notes: what the launch could not have as it was asked for, in words for whoever launched it.
    """

    instance_id: str
    generation: int
    pid: int | None
    started: int | None
    address: Address
    container_id: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine ended. ``code`` and ``signal`` are None when nobody could tell (an adopted process).

    :ivar cause: what the runtime alone knows of why, as a clause such as "somebody removed its container
        (docker rm)"; it may be shown to everybody who waits for the model.
    """

    code: int | None
    signal: int | None
    at: float
    oom: bool | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """What one engine uses now. Everything is None as long as it is not known.

    :ivar cpu_percent: 100 is one processor, busy.
    :ivar cpus: processors it may use: its quota, else all of the machine.
    :ivar cpu_quota: processors it is limited to, None without a limit.
    :ivar memory_bytes: without file cache that could be dropped.
    :ivar memory_limit: bytes.
    """

    cpu_percent: float | None = None
    cpus: float | None = None
    cpu_quota: float | None = None
    memory_bytes: int | None = None
    memory_limit: int | None = None


# --- instances ---------------------------------------------------------------------------------------


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


# --- requests ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwardCall:
    """A request as ``admit`` and ``pre_forward`` hooks see it. It never holds a credential header."""

    request_id: str
    surface: str
    dialect: str
    path: str
    model: str
    identity: Identity
    stream: bool
    body: Mapping[str, Any]
    instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A hook's refusal of a request."""

    status: int
    message: str
    code: str = "rejected"
    retry_after: int | None = None


#: ``pre_forward``'s change to a body: a dotted path of object keys -> the new value.
Patch = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and timings of one request; None where the engine did not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class ForwardRecord:
    """What happened to one inference request, as ``post_forward`` hooks receive it."""

    request_id: str
    surface: str
    dialect: str
    path: str
    model: str
    instance_id: str | None
    actor: str
    key_id: str | None
    status: int
    stream: bool
    started: float
    duration_s: float
    queued_s: float
    usage: Usage
    outcome: Literal["complete", "cancelled", "truncated", "error"]
    error: str | None = None


# --- what plugins declare ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteSet:
    """A Flask blueprint to be mounted behind the gate. Views carry their level by ``@access``."""

    blueprint: Blueprint
    access: Access = Access.MANAGE


@dataclass(frozen=True, slots=True)
class StreamRoute:
    """A long answer served on the event loop: log tails, event feeds.

    ``open`` is called with the caller and the pattern's values; it raises a LlamaManError to refuse, and
    otherwise returns the iterator whose items are sent as they come.

    :ivar query: names of query parameters that ``open`` finds among the values; those that were not given are
        absent. ``last_event_id`` is also taken from the header ``Last-Event-ID``.
    """

    method: str
    pattern: str
    access: Access
    open: Callable[[Identity, Mapping[str, str]], AsyncIterator[bytes]]
    content_type: str = "text/event-stream"
    query: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU as seen now."""

    index: int
    name: str
    vendor: str
    uuid: str | None = None
    memory_total: int | None = None
    memory_used: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class GpuInventory:
    """All GPUs one vendor plugin sees."""

    vendor: str
    devices: tuple[GpuDevice, ...]


@dataclass(frozen=True, slots=True)
class ProbeContext:
    """What a GPU probe may know: ``sysfs`` is the root below which drivers show their files."""

    sysfs: Path = Path("/sys")


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount of a container."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a container would be started with before the plugins had their say."""

    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpecPatch:
    """A plugin's additions to a container.

    Additive fields are united; a scalar that two plugins set to different values is an error naming both. The
    whole container is checked after all patches, so that no plugin can take a container's walls down.

    :ivar image: for a plugin that insists on the one it knows: any but the launch's own is refused.
    :ivar host_config: further fields of Docker's HostConfig by its own names, such as ``ShmSize``.
    """

    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    device_requests: tuple[Mapping[str, Any], ...] = ()
    mounts: tuple[Mount, ...] = ()
    host_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """Another place where a call could run (cluster)."""

    node: str
    url: str
    load: float


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """What a storage driver is opened with.

    :ivar data_dir: DATA_DIR, already private to us and locked by this process.
    :ivar database_url: DATABASE_URL, or None. It may hold a password, so it is kept out of ``repr``.
    :ivar node: this node's name.
    """

    data_dir: Path
    node: str
    database_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Collection:
    """A named collection of documents that a plugin keeps in the store."""

    name: str
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Something a plugin shows on the dashboard."""

    slot: str
    title: str
    template: str
    data: Callable[[], Mapping[str, Any]]
    access: Access = Access.VIEW
    order: int = 100


@dataclass(frozen=True, slots=True)
class Job:
    """Periodic work, run on the scheduler's pool and never beside itself.

    :ivar every_s: seconds from the end of one run to the start of the next.
    """

    name: str
    every_s: float
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What is known about an installed plugin."""

    name: str
    dist: str | None
    version: str | None
    state: Literal["active", "disabled", "incompatible", "broken"]
    reason: str | None = None
    hooks: tuple[str, ...] = ()
