"""Who may start, and who has to leave for it: a pure decision over snapshots.

:mod:`llamaman.core.room` carries the decision out. The rights are the eviction table of the feature
specification; embedding models neither count nor are evicted.

Requests for what is loaded go before those that would swap it out, but not for ever: a model that is in use stays
at least as long as its load took, within bounds, so that no more time goes into loading than into answering, and
then it finishes what runs and leaves. One that nobody uses leaves at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llamaman.records import UNKNOWN, InstanceView, State

#: ``preload`` is the list of models that are loaded at the start; it has no right to evict anything.
Launcher = Literal["admin", "ollama", "openai", "preload"]

#: Seconds that a model in use may stay at least, and at most, before it has to make room.
SHORTEST_STAY_S = 1.0
LONGEST_STAY_S = 30.0

_COMING = frozenset({State.QUEUED, State.PREPARING, State.STARTING, State.BACKOFF})
_LEAVING = frozenset({State.DRAINING, State.STOPPING})
_COUNTED = _COMING | _LEAVING | {State.READY}
#: What may be ended without having been ready, when nobody waits for it.
_UNWANTED = frozenset({State.STARTING, State.BACKOFF})


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that the decision depends on. 0 means no limit.

    :ivar cold_starts_per_minute: of each key that may not manage; see :mod:`llamaman.core.cold_starts`.
    """

    max_models: int
    enforce_for_admin: bool = False
    ollama_may_evict_admin: bool = False
    openai_may_evict_managed: bool = False
    cold_starts_per_minute: int = 0


@dataclass(frozen=True, slots=True)
class Admit:
    """Start it, after these instances have left; those in use finish what runs first."""

    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Confirm:
    """An administrator would exceed the limit: ask first."""

    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet.

    :ivar seconds: after which it has to be looked at again even if nothing changes; None: only then.
    """

    message: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not now, and waiting would not change it.

    :ivar inputs: the figures that it rests on.
    """

    message: str
    inputs: Mapping[str, Any] = field(default_factory=dict, compare=False)


Decision = Admit | Confirm | Wait | Refuse


def decide(
    launcher: Launcher,
    instances: Sequence[InstanceView],
    policy: Policy,
    *,
    embedding: bool = False,
    confirmed: bool = False,
    starting: str | None = None,
    now: float | None = None,
    spared: Collection[str] = (),
) -> Decision:
    """Decide about one more running model.

    :param starting: the id of an existing instance that is to start, which does not count against itself.
    :param now: epoch seconds; None: as if everything had been loaded long ago.
    :param spared: ids of instances that could not be made to leave.
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
    leaving = sum(view.state in _LEAVING for view in running)
    allowed = [view for view in _allowed(launcher, running, policy) if view.id not in spared]
    if leaving + len(allowed) < excess:
        blocking = [view for view in running if view not in allowed and view.state not in _LEAVING]
        return Refuse(_refusal(launcher, blocking, policy), _inputs(running, policy.max_models))
    if leaving >= excess:
        return Wait(f"{_named(running, _LEAVING)} to leave")
    stays = {view.id: _stays(view, now) for view in allowed}
    ready = [view for view in allowed if stays[view.id] == 0]
    if leaving + len(ready) >= excess:
        return Admit(tuple(view.id for view in ready[: excess - leaving]))
    longest = sorted(stay for stay in stays.values() if stay)
    loading = any(view.state in _COMING for view in allowed)
    names = ", ".join(view.model for view in allowed)
    return Wait(f"room: {names} must have been in use for a while first", longest[0] if not loading else None)


def _allowed(launcher: Launcher, running: Sequence[InstanceView], policy: Policy) -> list[InstanceView]:
    """Whom this launcher may make leave, sooner or later; who is first comes first."""
    candidates = [
        v for v in running if v.state not in _LEAVING and v.status != UNKNOWN and not v.options.get("pinned")
    ]
    managed = sorted((v for v in candidates if v.managed), key=_turn)
    by_hand = sorted((v for v in candidates if not v.managed), key=_turn)
    if launcher == "admin":
        return managed + by_hand
    if launcher == "ollama":
        return managed + (by_hand if policy.ollama_may_evict_admin else [])
    return managed if launcher == "openai" and policy.openai_may_evict_managed else []


def _stays(view: InstanceView, now: float | None) -> float:
    """Seconds for which it may stay although others want its room."""
    if view.state in _COMING:
        return 0.0 if view.state in _UNWANTED and not view.queued else LONGEST_STAY_S
    used = view.active or view.queued
    fresh = view.last_request is None or view.last_request < (view.ready_at or 0)
    if not used and not fresh:
        return 0.0
    if now is None or view.ready_at is None:
        return 0.0
    stay = min(max(view.load_seconds or 0.0, SHORTEST_STAY_S), LONGEST_STAY_S)
    return max(view.ready_at + stay - now, 0.0)


def _turn(view: InstanceView) -> tuple[bool, float]:
    """What nobody uses before what is in use; then by the last use, and what is in use by its age."""
    if view.active or view.queued:
        return True, view.ready_at or view.created
    return False, view.last_release or view.last_request or view.ready_at or view.started or view.created


def _named(running: Sequence[InstanceView], states: Collection[State]) -> str:
    return ", ".join(view.model for view in running if view.state in states)


def _inputs(running: Sequence[InstanceView], limit: int) -> dict[str, Any]:
    return {
        "max_models": limit,
        "running": len(running),
        "launched_by_hand": sum(not view.managed for view in running),
        "pinned": sum(bool(view.options.get("pinned")) for view in running),
        "busy": sum(bool(view.active or view.queued) for view in running),
    }


def _refusal(launcher: Launcher, blocking: Sequence[InstanceView], policy: Policy) -> str:
    """The specification's words where its table refuses, else what really stands in the way."""
    if launcher == "preload":
        why = "what is preloaded evicts nothing"
    elif launcher == "openai" and not policy.openai_may_evict_managed:
        why = "the OpenAI API does not evict running models"
    elif launcher != "admin" and _are_protected(launcher, blocking, policy):
        why = "admin-launched models cannot be evicted via the API"
    elif any(view.options.get("pinned") for view in blocking):
        why = "pinned models are never evicted"
    else:
        why = "what is running could not be made to leave"
    return f"model limit reached (LLAMAMAN_MAX_MODELS={policy.max_models}); {why}"


def _are_protected(launcher: Launcher, blocking: Sequence[InstanceView], policy: Policy) -> bool:
    """Whether any of them is kept by who launched it."""
    may = launcher == "ollama" and policy.ollama_may_evict_admin
    return not may and any(not view.managed for view in blocking)
