"""Why a model or an instance is in the state that it is in, and what the next request does to it: one sentence. Pure.

Read by ``GET /api/why``. Says nothing that a caller with VIEW may not see: no path, no log line, no host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llamaman.core.breaker import Open
from llamaman.core.events import Event
from llamaman.records import UNKNOWN, InstanceView, State

Kind = Literal["model", "instance"]

#: The state of a model that has no instance.
NOT_LOADED = "not_loaded"

#: Of several instances, the one that speaks for the model: what serves before what will, before what does not.
_FIRST = (
    State.READY,
    State.STARTING,
    State.PREPARING,
    State.QUEUED,
    State.BACKOFF,
    State.DRAINING,
    State.STOPPING,
    State.FAILED,
    State.SLEEPING,
    State.STOPPED,
)


@dataclass(frozen=True, slots=True)
class Prospect:
    """What becomes of the next request for something that does not run.

    :ivar refusal: why it would be refused, None when it would not.
    :ivar ollama: whether the refusal does not hold for the Ollama API, which has more rights.
    :ivar leaves: the models that would have to leave for it.
    :ivar waits: what it would have to wait for, None when for nothing.
    """

    refusal: str | None = None
    ollama: bool = False
    leaves: tuple[str, ...] = ()
    waits: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that is known.

    :ivar model: the model's name. :ivar instances: those of the model, or the one that was asked about.
    :ivar events: of the topic ``instances``, oldest first; others' events are left out here.
    :ivar pauses: instance id -> the pause that its configuration's deaths have earned.
    :ivar waits: what a start of it waits for now.
    :ivar problem: why the model cannot be run at all.
    :ivar idle_default_min: the minutes after which what requests started sleeps; 0 for never.
    """

    kind: Kind
    model: str
    instances: Sequence[InstanceView]
    events: Sequence[Event]
    now: float
    pauses: Mapping[str, Open] = field(default_factory=dict)
    prospect: Prospect = Prospect()
    waits: str | None = None
    problem: str | None = None
    idle_default_min: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The sentence and what it rests on.

    :ivar instance_id: the instance that it is about, None when there is none.
    :ivar since: epoch seconds, None when nobody remembers.
    """

    answer: str
    state: str
    reason: str | None
    actor: str | None
    since: float | None
    instance_id: str | None


def explain(question: Question) -> Answer:
    """Answer."""
    if not question.instances:
        return _not_loaded(question)
    view = min(question.instances, key=lambda each: (_FIRST.index(each.state), each.created))
    history = [event for event in question.events if event.data.get("instance_id") == view.id]
    entered = next((e for e in reversed(history) if e.kind == view.state.value), None)
    subject = view.model if question.kind == "model" else f"instance {view.id[:8]} of {view.model}"
    parts = [f"{subject} {_sentence(view, entered, history, question)}"]
    if question.waits:
        parts.append(f"a start of it waits for {question.waits}")
    others = len(question.instances) - 1
    if others:
        parts.append(f"it has {others} more instance{'s' if others > 1 else ''}")
    return Answer(
        answer="; ".join(parts),
        state=view.state.value,
        reason=view.reason,
        actor=entered.actor if entered else None,
        since=entered.at if entered else _since(view),
        instance_id=view.id,
    )


def length(seconds: float) -> str:
    """A span of time as people say it: ``12 s``, ``5 min``, ``3 h``, ``2 days``."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def _sentence(view: InstanceView, entered: Event | None, history: Sequence[Event], question: Question) -> str:
    if view.status == UNKNOWN:
        return f"may be running as before or not, which nobody can tell now: {view.reason}"
    ago = f" for {length(question.now - entered.at)}" if entered else ""
    match view.state:
        case State.READY:
            return f"is ready{ago}{_origin(history)}; {_load(view)}"
        case State.QUEUED | State.PREPARING:
            return f"is about to load{_origin(history)}{_step(view, history)}; {_waiting(view)}"
        case State.STARTING:
            return f"is loading{ago}{_origin(history)}; {_waiting(view)}"
        case State.DRAINING | State.STOPPING:
            doing = "finishes what runs before it stops" if view.state is State.DRAINING else "is stopping"
            return f"{doing}: {view.reason}{_by(entered)}"
        case State.BACKOFF:
            return f"has crashed and is about to restart: {view.reason}"
        case State.SLEEPING:
            return f"sleeps: {view.reason}{_setting(view, question)}{_evictor(view)}; {_next(view, question)}"
        case State.STOPPED:
            return f"is stopped: {view.reason}{_by(entered)}; {_next(view, question)}"
        case State.FAILED:
            return f"is failed: {view.reason}; {_next(view, question)}"


def _not_loaded(question: Question) -> Answer:
    if question.problem:
        return Answer(
            f"{question.model} cannot be run: {question.problem}",
            NOT_LOADED,
            question.problem,
            None,
            None,
            None,
        )
    history = [event for event in question.events if event.data.get("model") == question.model]
    removed = history[-1] if history and history[-1].kind == "removed" else None
    reason = f"its last instance was removed{_by(removed)}" if removed else "nobody has asked for it yet"
    if question.waits:
        reason, then = f"it waits for {question.waits}", "requests for it are answered when it has loaded"
    else:
        then = _prospect(question.prospect, "loads it")
    return Answer(
        answer=f"{question.model} is not loaded: {reason}; {then}",
        state=NOT_LOADED,
        reason=reason,
        actor=removed.actor if removed else None,
        since=removed.at if removed else None,
        instance_id=None,
    )


def _origin(history: Sequence[Event]) -> str:
    """Who or what started this run."""
    begun = next((event for event in reversed(history) if event.kind == State.PREPARING.value), None)
    if begun is None:
        return ""
    return f", {begun.reason}{'' if begun.actor in ('gateway', 'supervisor') else _by(begun)}"


def _step(view: InstanceView, history: Sequence[Event]) -> str:
    """What its start waits for, such as an image."""
    begun = next((event for event in reversed(history) if event.kind == State.PREPARING.value), None)
    return "" if begun is None or begun.reason == view.reason else f": {view.reason}"


def _by(event: Event | None) -> str:
    return f" ({event.actor})" if event and event.actor else ""


def _load(view: InstanceView) -> str:
    slots = f"{view.active} of {view.slots} slots" if view.slots else f"{view.active} requests"
    busy = "no request is running" if not view.active else f"{slots} in use"
    return busy + (f" and {_count(view.queued)} in the queue" if view.queued else "")


def _waiting(view: InstanceView) -> str:
    return f"{_count(view.queued)} waiting for it" if view.queued else "nobody waits for it"


def _count(requests: int) -> str:
    return f"{requests} request{'' if requests == 1 else 's'}"


def _setting(view: InstanceView, question: Question) -> str:
    """The option or variable that an idle one can thank for its sleep."""
    if not view.reason.startswith("idle for"):
        return ""
    own = float(view.options.get("idle_timeout_min") or 0)
    if own:
        return f" (idle_timeout_min {own:g})"
    return f" (LLAMAMAN_IDLE_TIMEOUT {question.idle_default_min:g})" if question.idle_default_min else ""


def _evictor(view: InstanceView) -> str:
    return ", to stay within LLAMAMAN_MAX_MODELS" if view.reason.startswith("evicted") else ""


def _next(view: InstanceView, question: Question) -> str:
    """What the next request does to an instance that does not run."""
    if pause := question.pauses.get(view.id):
        return f"requests are refused for another {length(pause.seconds)}, since this configuration keeps failing"
    word = {State.SLEEPING: "wakes it", State.FAILED: "tries again"}.get(view.state, "starts it again")
    return _prospect(question.prospect, word)


def _prospect(prospect: Prospect, does: str) -> str:
    which = "the next request"
    first = ""
    if prospect.refusal:
        if not prospect.ollama:
            return f"a request now is refused: {prospect.refusal}"
        which = "one through the Ollama API"
        first = f"a request through the OpenAI or Anthropic API now is refused: {prospect.refusal}; "
    if prospect.leaves:
        return f"{first}{which} {does}, and {', '.join(prospect.leaves)} has to leave for it"
    if prospect.waits:
        return f"{first}{which} waits for {prospect.waits}"
    return f"{first}{which} {does}"


def _since(view: InstanceView) -> float | None:
    if view.state is State.READY:
        return view.ready_at
    return view.started if view.state is State.STARTING else None
