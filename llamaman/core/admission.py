"""Who may start, and who has to leave for it: a pure decision over snapshots.

The caller carries the decision out. The rights are the eviction table of the feature specification;
embedding models neither count nor are evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llamaman.records import UNKNOWN, InstanceView, State

Launcher = Literal["admin", "ollama", "openai"]

_COUNTED = frozenset(
    {
        State.QUEUED,
        State.PREPARING,
        State.STARTING,
        State.READY,
        State.DRAINING,
        State.STOPPING,
        State.BACKOFF,
    }
)
_EVICTABLE = frozenset({State.STARTING, State.READY})


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that the decision depends on. ``max_models`` 0 means no limit."""

    max_models: int
    enforce_for_admin: bool = False
    ollama_may_evict_admin: bool = False
    openai_may_evict_managed: bool = False


@dataclass(frozen=True, slots=True)
class Admit:
    """Start it, after these instances have left."""

    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Confirm:
    """An administrator would exceed the limit: ask first."""

    message: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not now."""

    message: str


def decide(
    launcher: Launcher,
    instances: Sequence[InstanceView],
    policy: Policy,
    *,
    embedding: bool = False,
    confirmed: bool = False,
    starting: str | None = None,
) -> Admit | Confirm | Refuse:
    """Decide about one more running model.

    :param starting: the id of an existing instance that is to start, which does not count against itself.
    """
    if policy.max_models <= 0 or embedding:
        return Admit()
    running = [
        view
        for view in instances
        if view.state in _COUNTED and view.id != starting and not view.options.get("embedding_model")
    ]
    excess = len(running) + 1 - policy.max_models
    if excess <= 0:
        return Admit()
    if launcher == "admin" and not policy.enforce_for_admin:
        if confirmed:
            return Admit()
        return Confirm(
            f"You're about to launch a model beyond LLAMAMAN_MAX_MODELS={policy.max_models} "
            f"({len(running)} running). Send confirm_overcommit: true to launch it anyway."
        )
    victims = _victims(launcher, running, policy)
    if len(victims) < excess:
        return Refuse(_refusal(launcher, policy.max_models))
    return Admit(tuple(view.id for view in victims[:excess]))


def _victims(launcher: Launcher, running: Sequence[InstanceView], policy: Policy) -> list[InstanceView]:
    candidates = [
        v
        for v in running
        if v.state in _EVICTABLE and v.status != UNKNOWN and not v.queued and not v.options.get("pinned")
    ]
    managed = sorted((v for v in candidates if v.managed), key=_last_use)
    by_hand = sorted((v for v in candidates if not v.managed), key=_last_use)
    if launcher == "admin":
        return managed + by_hand
    if launcher == "ollama":
        return managed + (by_hand if policy.ollama_may_evict_admin else [])
    return managed if policy.openai_may_evict_managed else []


def _last_use(view: InstanceView) -> float:
    return view.last_request or view.ready_at or view.started or view.created


def _refusal(launcher: Launcher, limit: int) -> str:
    if launcher == "openai":
        return (
            f"model limit reached (LLAMAMAN_MAX_MODELS={limit}); the OpenAI API does not evict running models"
        )
    return (
        f"model limit reached (LLAMAMAN_MAX_MODELS={limit}); "
        "admin-launched models cannot be evicted via the API"
    )
