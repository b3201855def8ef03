"""``/api/why``: why a model or an instance is in its state, in one sentence and with what it rests on.

VIEW gets causes and names; the end of the log and paths come along for callers who may MANAGE.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, request

from llamaman.access import Access, access
from llamaman.core.admission import Admit, Refuse, Wait
from llamaman.core.auth import allows
from llamaman.core.why import NOT_LOADED, Prospect, Question, explain
from llamaman.dashboard.answer_schemas import (
    ANY_OBJECT,
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    TIME,
    list_of,
    maybe,
    record,
    words,
)
from llamaman.dashboard.bodies import Check, text
from llamaman.dashboard.http import identity
from llamaman.dashboard.operation import operation
from llamaman.dashboard.services import Services
from llamaman.errors import InvalidField, LlamaManError, ModelNotFound, NotFound
from llamaman.gateway.log_stream import last_lines
from llamaman.records import InstanceView, ModelView, RouteSet, State

EVENTS_SHOWN = 20
LINES_SHOWN = 20
_SHORTEST_PREFIX = 8  # as much of an instance's id as logs and tables show

_QUERY: dict[str, Check] = {"target": text(256)}
_STATES = words(*(state.value for state in State))

WHY = record(
    "Why",
    target=TEXT,
    kind=words("model", "instance"),
    answer=TEXT,
    state=words(*(state.value for state in State), NOT_LOADED),
    reason=maybe(TEXT),
    actor=maybe(TEXT),
    since=maybe(TIME),
    instances=list_of(
        record(
            id=TEXT, state=_STATES, reason=TEXT, generation=COUNT, managed=FLAG, active=COUNT, queued=COUNT,
            slots=maybe(COUNT),
        )
    ),
    events=list_of(ANY_OBJECT),
    breaker=maybe(record(seconds=NUMBER, reason=TEXT)),
    detail=maybe(record(log_file=TEXT, log_lines=list_of(TEXT))),
)  # fmt: skip


def routes(kernel: Services) -> RouteSet:
    """The blueprint."""
    blueprint = Blueprint("why", __name__)

    @blueprint.get("/api/why")
    @access(Access.VIEW)
    @operation(
        "Tell why a model or an instance is in its state, and what the next request does.",
        query=_QUERY,
        answers={200: ("One sentence, and what it rests on.", WHY)},
    )
    def why() -> Response:
        target = _QUERY["target"]("target", request.args.get("target", "")).strip()
        if not target:
            raise InvalidField("target", "target is required: the name of a model, or the id of an instance")
        return jsonify(_answer(kernel, target))

    return RouteSet(blueprint)


def _answer(kernel: Services, target: str) -> dict[str, Any]:
    instance, model = _find(kernel, target)
    views = (
        [instance] if instance else [v for v in kernel.instances.views() if model and v.model == model.name]
    )
    name = instance.model if instance else model.name if model else target
    events = [
        event
        for event in kernel.events.since("instances", 0)
        if (event.data.get("instance_id") == instance.id if instance else event.data.get("model") == name)
    ]
    pauses = {view.id: pause for view in views if (pause := kernel.instances.pause(view.id))}
    question = Question(
        kind="instance" if instance else "model",
        model=name,
        instances=views,
        events=events,
        now=time.time(),
        pauses=pauses,
        prospect=_prospect(kernel, views, model),
        waits=dict(kernel.instances.waits()).get(name),
        problem=None if model is None or model.runnable else kernel.library.reason(model.path),
        idle_default_min=kernel.config.idle_timeout_min,
    )
    found = explain(question)
    about = next((view for view in views if view.id == found.instance_id), None)
    pause = pauses.get(found.instance_id or "")
    return {
        "target": target,
        "kind": question.kind,
        "answer": found.answer,
        "state": found.state,
        "reason": found.reason,
        "actor": found.actor,
        "since": found.since,
        "instances": [_short(view) for view in views],
        "events": [event.as_dict() for event in reversed(events[-EVENTS_SHOWN:])],
        "breaker": {"seconds": round(pause.seconds, 1), "reason": pause.reason} if pause else None,
        "detail": _detail(about) if about and allows(identity(), Access.MANAGE) else None,
    }


def _find(kernel: Services, target: str) -> tuple[InstanceView | None, ModelView | None]:
    """The instance or the model that is meant.

    :raises NotFound: neither; names what is spelled like it.
    """
    views = kernel.instances.views()
    exact = [view for view in views if view.id == target]
    by_prefix = [view for view in views if len(target) >= _SHORTEST_PREFIX and view.id.startswith(target)]
    if exact or len(by_prefix) == 1:
        return (exact or by_prefix)[0], None
    try:
        return None, kernel.library.find(target)
    except ModelNotFound as error:
        names = sorted({model.name for model in kernel.library.models()} | {view.model for view in views})
        if target in names:  # its file is gone, but its instance is not
            return next(view for view in views if view.model == target), None
        raise NotFound(_unknown(target, error.candidates or _alike(target, names))) from None


def _alike(target: str, names: Sequence[str]) -> Sequence[str]:
    return difflib.get_close_matches(target.lower(), names, n=3, cutoff=0.5)


def _unknown(target: str, candidates: Sequence[str]) -> str:
    hint = f"; did you mean {' or '.join(candidates)}?" if candidates else ""
    return f"no model or instance is called '{target}'{hint}"


def _prospect(kernel: Services, views: Sequence[InstanceView], model: ModelView | None) -> Prospect:
    """What admission would say to a request now, through the API with the fewest rights and the one with more."""
    embedding = bool(model and model.embedding) or any(v.options.get("embedding_model") for v in views)
    starting = views[0].id if len(views) == 1 else None
    refusal: str | None = None
    decision = kernel.instances.decision("openai", embedding=embedding, starting=starting)
    if isinstance(decision, Refuse):
        refusal = decision.message
        decision = kernel.instances.decision("ollama", embedding=embedding, starting=starting)
        if isinstance(decision, Refuse):
            return Prospect(refusal)
    names = {view.id: view.model for view in kernel.instances.views()}
    victims = decision.victims if isinstance(decision, Admit) else ()
    return Prospect(
        refusal,
        ollama=refusal is not None,
        leaves=tuple(names.get(victim, victim) for victim in victims),
        waits=decision.message if isinstance(decision, Wait) else None,
    )


def _short(view: InstanceView) -> dict[str, Any]:
    return {
        "id": view.id,
        "state": view.state.value,
        "reason": view.reason,
        "generation": view.generation,
        "managed": view.managed,
        "active": view.active,
        "queued": view.queued,
        "slots": view.slots,
    }


def _detail(view: InstanceView) -> dict[str, Any]:
    try:
        lines = last_lines(view.log_path, LINES_SHOWN)
    except LlamaManError as error:
        lines = [error.message]
    return {"log_file": str(view.log_path), "log_lines": lines}
