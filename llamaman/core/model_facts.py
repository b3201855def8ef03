"""What a client is told of a model: by a running engine before a preset, and by that before the files. Pure.

Read by dialects through the public API, so that every API says the same of a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llamaman.core.launch_options import BY_NAME
from llamaman.records import InstanceView, ModelView, State

#: The states in which an engine holds the model in memory and answers.
LOADED = frozenset({State.READY, State.DRAINING})

#: By how much a state says of a model that has instances in several.
_TELLING = (
    State.READY,
    State.DRAINING,
    State.STARTING,
    State.PREPARING,
    State.QUEUED,
    State.SLEEPING,
    State.BACKOFF,
    State.STOPPING,
    State.FAILED,
    State.STOPPED,
)
#: States in which an instance will serve the next request for its model, with the options it has.
_SERVING = frozenset(_TELLING) - {State.STOPPING, State.FAILED, State.STOPPED}
#: What only a model that writes can do.
_OF_WRITERS = frozenset({"completion", "tools", "thinking", "insert"})


def instance_of(model: ModelView, instances: Iterable[InstanceView]) -> InstanceView | None:
    """The instance of a model that says most of it: a ready one if there is one; None without any."""
    mine = [view for view in instances if view.model_path == model.path]
    return min(mine, key=lambda view: (_TELLING.index(view.state), view.created), default=None)


def context_of(
    model: ModelView, instances: Iterable[InstanceView], preset: Mapping[str, Any] | None
) -> int | None:
    """Tokens that one request may use: of the instance there is, else as the preset has it; None without both."""
    view = instance_of(model, instances)
    if view is not None and view.state in _SERVING:
        return view.context_length or _capped(model, view.options.get("ctx_size"))
    return _capped(model, (preset or {}).get("ctx_size"))


def launch_context(model: ModelView, preset: Mapping[str, Any] | None) -> int | None:
    """Tokens that one request may use after a launch by the preset, or by the defaults where it says nothing."""
    return _capped(model, (preset or {}).get("ctx_size") or BY_NAME["ctx_size"].default)


def capabilities_of(
    model: ModelView, instances: Iterable[InstanceView], preset: Mapping[str, Any] | None
) -> frozenset[str]:
    """What a model can do (see :class:`ModelDetails`), by its files and by what its engine says of itself."""
    files = model.details.capabilities if model.details else frozenset[str]()
    view = instance_of(model, instances)
    loaded = view if view is not None and view.state in LOADED else None
    options = loaded.options if loaded else preset or {}
    if options.get("embedding_model") or model.embedding:
        return (files - _OF_WRITERS) | {"embedding"}
    told = set(files or {"completion"})
    facts = loaded.facts if loaded else None
    if facts is None:
        return frozenset(told)
    if facts.modalities is not None:
        told = (told - {"vision", "audio"}) | (facts.modalities & {"vision", "audio"})
    if "supports_tools" in facts.template:
        can = facts.template["supports_tools"] or facts.template.get("supports_tool_calls", False)
        told = told | {"tools"} if can else told - {"tools"}
    if facts.template.get("supports_reasoning_effort") or facts.template.get("supports_preserve_reasoning"):
        told.add("thinking")
    return frozenset(told)


def _capped(model: ModelView, wanted: int | None) -> int | None:
    if not wanted or not model.context_length:
        return wanted or None
    return min(wanted, model.context_length)
