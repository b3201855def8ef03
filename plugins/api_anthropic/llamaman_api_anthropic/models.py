"""The entries of ``/v1/models`` as Anthropic's clients know them, and the pages they come in. Pure.

Read by the dialect. A model here is never retired, and has the context that it runs with or would be started with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from llamaman import (
    InstanceView,
    InvalidRequest,
    ModelNotFound,
    ModelView,
    context_of,
    find_model,
    launch_context,
)
from llamaman_api_anthropic.fields import invalid

Presets = Mapping[Path, Mapping[str, Any]]
Entry = dict[str, Any]

#: Entries of a page, where the client does not say, and at most.
_USUAL, _MOST = 20, 1000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def entries(
    models: Sequence[ModelView], instances: Sequence[InstanceView] = (), presets: Presets | None = None
) -> list[Entry]:
    """The entries of all models that can run, in the given order.

    :param instances: what there is of instances that the caller may know of.
    :param presets: saved launch options by model file.
    """
    return [_entry(model, instances, (presets or {}).get(model.path)) for model in models if model.runnable]


def one(
    name: str,
    models: Sequence[ModelView],
    instances: Sequence[InstanceView] = (),
    presets: Presets | None = None,
) -> Entry:
    """The entry of the model that a client's name means; its ``id`` is what the client wrote.

    :raises ModelNotFound: none or several; or one that cannot run, which is not listed either.
    """
    model = find_model(name, models)
    if not model.runnable:
        raise ModelNotFound(name)
    return {**_entry(model, instances, (presets or {}).get(model.path)), "id": name}


def page(found: Sequence[Entry], query: bytes) -> Entry:
    """The part of a list that a query asks for: ``limit``, and ``after_id`` or ``before_id``.

    :raises InvalidField: a limit that is none, or an id that is not in the list.
    :raises InvalidRequest: a query that cannot be read.
    """
    try:
        given = parse_qs(query.decode("ascii"), errors="strict", max_num_fields=64)
    except ValueError:
        raise InvalidRequest("the query is not percent-encoded UTF-8 with at most 64 parameters") from None
    limit = _limit(given.get("limit", [str(_USUAL)])[-1])
    stages = given.get("lifecycle", []) + given.get("lifecycle[]", [])
    if stages and "active" not in stages:
        found = ()
    ids = [entry["id"] for entry in found]
    if "before_id" in given:
        end = _place(ids, "before_id", given["before_id"][-1])
        start = max(0, end - limit)
        has_more = start > 0
    else:
        start = _place(ids, "after_id", given["after_id"][-1]) + 1 if "after_id" in given else 0
        end = start + limit
        has_more = end < len(ids)
    data = list(found[start:end])
    return {
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def _limit(given: str) -> int:
    if not (given.isascii() and given.isdecimal() and len(given) <= 4 and 1 <= int(given) <= _MOST):
        raise invalid("limit", f"Input should be a valid integer from 1 to {_MOST}")
    return int(given)


def _place(ids: Sequence[str], name: str, wanted: str) -> int:
    if wanted not in ids:
        raise invalid(name, "there is no model with this id")
    return ids.index(wanted)


def _entry(model: ModelView, instances: Sequence[InstanceView], preset: Mapping[str, Any] | None) -> Entry:
    context = context_of(model, instances, preset) or launch_context(model, preset)
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": _time(model.modified),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
    }


def _time(at: float) -> str:
    """RFC 3339; a file's time may be anything, and a year has four digits."""
    whole = int(max(0.0, min(at, _LATEST)))
    return datetime.fromtimestamp(whole, UTC).isoformat().replace("+00:00", "Z")
