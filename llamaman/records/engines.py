"""What a runtime runs, how it is told to, and what it says of what runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


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
class WorkDone:
    """What one engine has done since it began; None where that is not known.

    :ivar cpu_s: seconds of processor time, of all its threads together.
    :ivar faults: page faults that were served from disk.
    """

    cpu_s: float | None = None
    faults: int | None = None


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
