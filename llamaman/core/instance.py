"""One instance: what the event loop knows of it.

Only code on the event loop writes here. Other threads read through :meth:`Instance.view`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llamaman.core.crash import Guest
from llamaman.core.engine_client import EngineClient
from llamaman.core.messages import Frozen
from llamaman.records import REST_STATUS, UNKNOWN, Address, EngineFacts, Exit, Handle, InstanceView, State

Desired = Literal["running", "sleeping", "stopped"]

#: The states of an instance that has no engine and does not get one by itself.
STILL = frozenset({State.SLEEPING, State.STOPPED, State.FAILED})


@dataclass(slots=True)
class Instance:
    """Mutable state of one instance; see the module's docstring for who may write.

    :ivar fetching: how far the fetch of its engine is, such as "pulling image, 43 %"; None while nothing is fetched.
    :ivar lost: why its runtime cannot be reached now; None while it can.
    :ivar keep_alive_s: the idle time that a client asked for, which counts where a request has started it;
        ``math.inf`` for no end, None while nobody has asked.
    :ivar idle_s: the idle time that counts now; 0 for no end.
    :ivar uses_gpu: whether its last launch put anything on a GPU; None before there was one.
    :ivar last_release: ``time.monotonic()`` seconds.
    :ivar unsettled: its record was read while its runtime was lost: nobody knows whether its engine runs.
    :ivar inside: what its engine works on; a request that was abandoned stays for a moment longer.
    :ivar excused: whether somebody else answers for its last crash.
    :ivar frozen: why its last run was ended, where that was because it was frozen; None from the next ready on.
    """

    id: str
    model: str
    model_path: Path
    port: int
    runtime: str
    log_path: Path
    overrides: Mapping[str, Any]
    options: Mapping[str, Any]
    preset: str | None = None
    managed: bool = False
    created: float = field(default_factory=time.time)
    state: State = State.STOPPED
    desired: Desired = "stopped"
    reason: str = ""
    actor: str = ""
    generation: int = 0
    engine: str | None = None
    engine_digest: str | None = None
    notes: tuple[str, ...] = ()  # of planning; the handle has those of the start
    config_hash: str = ""
    memory_estimate: int | None = None
    handle: Handle | None = None
    internal_port: int | None = None
    client: EngineClient | None = None
    api_key: bytes = field(default=b"", repr=False)
    slots: int | None = None
    context_length: int | None = None
    facts: EngineFacts | None = None
    active: int = 0
    queued: int = 0
    requests: int = 0
    crashes: int = 0
    restarts: int = 0
    stops: int = 0  # by an administrator; whoever waits to start it looks whether one came meanwhile
    started: float | None = None
    ready_at: float | None = None
    load_seconds: float | None = None
    last_request: float | None = None
    last_release: float | None = None
    last_exit: Exit | None = None
    last_tokens_per_second: float | None = None
    last_ttft_ms: float | None = None
    prompt_per_second: float | None = None
    failures: int = 0
    fetching: str | None = None
    lost: str | None = None
    unsettled: bool = False
    keep_alive_s: float | None = None
    idle_s: float = 0.0
    uses_gpu: bool | None = None
    inside: list[Guest] = field(default_factory=list)
    excused: bool = False
    frozen: Frozen | None = None

    @property
    def expires(self) -> float | None:
        """Epoch seconds at which it goes to sleep unless it is used before; None for never."""
        if self.state is not State.READY or self.idle_s <= 0:
            return None
        since = None if self.active or self.queued else _epoch(self.last_release)
        return (since or time.time()) + self.idle_s

    @property
    def unknown(self) -> str | None:
        """Why nobody knows how its engine is; None when that is known, or when there is none."""
        return self.lost if self.handle or self.unsettled or self.state not in STILL else None

    @property
    def delay(self) -> str | None:
        """Why a request need not wait for it, although it is to run: that takes minutes, or nobody knows how long."""
        if self.fetching:
            return self.fetching
        return self.lost if self.unsettled or self.state is State.BACKOFF else None

    @property
    def capacity(self) -> int:
        """Requests it may run at once: never more than its slots, since llama-server's own queue cannot
        be left (a request abandoned there still runs)."""
        slots = self.slots or int(self.options.get("parallel") or 1)
        limit = int(self.options.get("max_concurrent") or 0)
        return min(slots, limit) if limit else slots

    @property
    def free(self) -> int:
        """Requests that could start now."""
        return self.capacity - self.active if self.state is State.READY else 0

    @property
    def idle_timeout_option_s(self) -> float:
        """Seconds of idleness after which it sleeps by its own options; 0 means never."""
        return float(self.options.get("idle_timeout_min") or 0) * 60

    @property
    def wakes_on_request(self) -> bool:
        """Whether a request may bring it back after its process is gone."""
        return self.managed or self.idle_timeout_option_s > 0

    def view(self) -> InstanceView:
        """A snapshot."""
        status, reason = REST_STATUS[self.state], self.reason
        if self.unknown:
            status, reason = UNKNOWN, self.unknown
        elif self.state is State.STOPPING and self.desired == "sleeping":
            status = "sleeping"
        return InstanceView(
            id=self.id,
            model=self.model,
            model_path=self.model_path,
            port=self.port,
            state=self.state,
            status=status,
            reason=reason,
            generation=self.generation,
            options=self.options,
            managed=self.managed,
            engine=self.engine,
            runtime=self.runtime,
            log_path=self.log_path,
            address=self.handle.address if self.handle else None,
            pid=self.handle.pid if self.handle else None,
            container_id=self.handle.container_id if self.handle else None,
            created=self.created,
            started=self.started,
            ready_at=self.ready_at,
            last_request=self.last_request,
            load_seconds=self.load_seconds,
            active=self.active,
            queued=self.queued,
            slots=self.slots,
            context_length=self.context_length,
            requests=self.requests,
            crashes=self.crashes,
            last_exit=self.last_exit,
            last_tokens_per_second=self.last_tokens_per_second,
            last_ttft_ms=self.last_ttft_ms,
            engine_digest=self.engine_digest,
            notes=(*self.notes, *(self.handle.notes if self.handle else ())),
            facts=self.facts,
            memory_estimate=self.memory_estimate,
            last_release=_epoch(self.last_release),
            expires=self.expires,
            size_vram=0 if self.uses_gpu is False else None,
        )

    def document(self) -> dict[str, Any]:
        """What the store keeps: no counters, no secrets."""
        return {
            "id": self.id,
            "model": self.model,
            "model_path": str(self.model_path),
            "port": self.port,
            "runtime": self.runtime,
            "preset": self.preset,
            "managed": self.managed,
            "overrides": dict(self.overrides),
            "options": dict(self.options),
            "created": self.created,
            "state": self.state.value,
            "desired": self.desired,
            "reason": self.reason,
            "generation": self.generation,
            "engine": self.engine,
            "engine_digest": self.engine_digest,
            "config_hash": self.config_hash,
            "memory_estimate": self.memory_estimate,
            "handle": asdict(self.handle) if self.handle else None,
            "internal_port": self.internal_port,
            "crashes": self.crashes,
            "started": self.started,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], log_path: Path) -> Instance:
        """The opposite of :meth:`document`; everything volatile starts empty."""
        raw = document.get("handle")
        handle = (
            Handle(**{**raw, "address": Address(**raw["address"]), "notes": tuple(raw.get("notes") or ())})
            if raw
            else None
        )
        return cls(
            id=document["id"],
            model=document["model"],
            model_path=Path(document["model_path"]),
            port=document["port"],
            runtime=document["runtime"],
            log_path=log_path,
            overrides=document["overrides"],
            options=document["options"],
            preset=document["preset"],
            managed=document["managed"],
            created=document["created"],
            state=State(document["state"]),
            desired=document["desired"],
            reason=document["reason"],
            generation=document["generation"],
            engine=document["engine"],
            engine_digest=document.get("engine_digest"),  # records of earlier versions have none
            config_hash=document["config_hash"],
            memory_estimate=document.get("memory_estimate"),
            handle=handle,
            internal_port=document["internal_port"],
            crashes=document["crashes"],
            started=document["started"],
        )


def _epoch(monotonic: float | None) -> float | None:
    return None if monotonic is None else time.time() - (time.monotonic() - monotonic)
