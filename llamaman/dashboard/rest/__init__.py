"""The management REST API: one blueprint per noun, mounted the way a plugin's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llamaman.dashboard.rest import about, instances, keys, models, presets, settings

if TYPE_CHECKING:
    from llamaman.dashboard.services import Services
    from llamaman.records import RouteSet


def route_sets(kernel: Services, routes: Callable[[], Sequence[dict[str, str]]]) -> tuple[RouteSet, ...]:
    """The core's route sets.

    :param routes: the whole route table, for ``/api/routes``.
    """
    return (
        instances.routes(kernel),
        models.routes(kernel),
        presets.routes(kernel),
        keys.routes(kernel),
        settings.routes(kernel),
        about.routes(kernel, routes),
    )
