"""What requests ask of the registry: that a model runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamaman.core.admission import Launcher
from llamaman.records import ModelView


def always() -> bool:
    """A demand that nobody gives up."""
    return True


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Requests that need a model to run.

    :ivar only: the instance that they came through, None for any of the model.
    :ivar launcher: whose rights decide what may be evicted for it.
    :ivar context: tokens of context that the first of them asks for.
    :ivar key: the id of the API key among whose cold starts this one counts, None where they are not counted.
    :ivar wanted: whether any of them still waits.
    """

    model: ModelView
    launcher: Launcher
    only: str | None = None
    embedding: bool = False
    context: int | None = None
    key: str | None = None
    wanted: Callable[[], bool] = always
