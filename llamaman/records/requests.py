"""A request on its way, as the hooks around it see it, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llamaman.records.callers import Identity


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


@dataclass(frozen=True, slots=True)
class Target:
    """Another place where a call could run (cluster)."""

    node: str
    url: str
    load: float
