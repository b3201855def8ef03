"""What a management view takes and answers, declared beside it. Read by ``openapi.py``, which writes it all down.

The same ``fields`` mapping is used by the view to check its body, so that the description cannot say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamaman.dashboard.bodies import Check

_F = TypeVar("_F", bound=Callable[..., object])

ATTRIBUTE = "__llamaman_operation__"


@dataclass(frozen=True, slots=True)
class Operation:
    """One view.

    :ivar summary: one line, what it does.
    :ivar fields: the body's fields; None when it takes no body.
    :ivar required: names of fields that must be there.
    :ivar optional: the whole body may be absent.
    :ivar path: JSON Schema of the path's values by name; a text that is not empty where nothing is said.
    :ivar query: the query's fields.
    :ivar answers: status of a success -> (what it holds, JSON Schema of it or None).
    :ivar refusals: statuses of refusals beyond those that every route has (``SHARED`` and
        ``OF_CHANGES`` in ``openapi.py``).
    :ivar media: the type of a success's body where it is neither JSON nor what the path's ending says.
    :ivar sudo: a session needs to have confirmed its password within ten minutes.
    """

    summary: str
    fields: Mapping[str, Check] | None = None
    required: tuple[str, ...] = ()
    optional: bool = False
    path: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    query: Mapping[str, Check] = field(default_factory=dict)
    answers: Mapping[int, tuple[str, Mapping[str, Any] | None]] = field(
        default_factory=lambda: {200: ("Done.", None)}
    )
    refusals: tuple[int, ...] = ()
    media: str | None = None
    sudo: bool = False


def operation(summary: str, **described: Any) -> Callable[[_F], _F]:
    """Describe a view; the arguments are those of :class:`Operation`."""
    found = Operation(summary, **described)

    def mark(view: _F) -> _F:
        setattr(view, ATTRIBUTE, found)
        return view

    return mark


def operation_of(view: Callable[..., object]) -> Operation | None:
    """What was said about a view, None when nothing was."""
    found = getattr(view, ATTRIBUTE, None)
    return found if isinstance(found, Operation) else None
