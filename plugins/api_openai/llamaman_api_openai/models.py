"""The entries of ``/v1/models``: OpenAI's four fields, and what clients of local models like to know. Pure.

Read by the dialect. Beside ``id``, ``object``, ``created`` and ``owned_by`` an entry has

- ``state``: ``healthy``, ``starting``, ``sleeping``, ``stopped``, ``failed`` or ``unknown`` of its instance that is
  nearest to answering; ``not_loaded`` without one,
- ``capabilities``: sorted words such as ``completion``, ``embedding``, ``tools``, ``vision``,
- ``context_length``: tokens that one request may use, as it runs or as the next launch would give it,
- ``aliases``: further names for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llamaman import (
    InstanceView,
    ModelNotFound,
    ModelView,
    capabilities_of,
    context_of,
    find_model,
    instance_of,
    launch_context,
)

Presets = Mapping[Path, Mapping[str, Any]]


def entries(
    models: Sequence[ModelView], instances: Sequence[InstanceView] = (), presets: Presets | None = None
) -> list[dict[str, Any]]:
    """The entries of all models that can run, in the given order.

    :param instances: what there is of instances that the caller may know of.
    :param presets: saved launch options by model file.
    """
    by_path: dict[Path, list[InstanceView]] = {}
    for view in instances:
        by_path.setdefault(view.model_path, []).append(view)
    return [
        _entry(model, by_path.get(model.path, ()), (presets or {}).get(model.path))
        for model in models
        if model.runnable
    ]


def one(
    name: str,
    models: Sequence[ModelView],
    instances: Sequence[InstanceView] = (),
    presets: Presets | None = None,
) -> dict[str, Any]:
    """The entry of the model that a client's name means; its ``id`` is what the client wrote.

    :raises ModelNotFound: none or several; or one that cannot run, which is not listed either.
    """
    model = find_model(name, models)
    if not model.runnable:
        raise ModelNotFound(name)
    return {**entries((model,), instances, presets)[0], "id": name}


def _entry(
    model: ModelView, instances: Sequence[InstanceView], preset: Mapping[str, Any] | None
) -> dict[str, Any]:
    view = instance_of(model, instances)
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.modified),
        "owned_by": "local",
        "state": view.status if view else "not_loaded",
        "capabilities": sorted(capabilities_of(model, instances, preset)),
        "context_length": context_of(model, instances, preset) or launch_context(model, preset),
        "aliases": list(model.aliases),
    }
