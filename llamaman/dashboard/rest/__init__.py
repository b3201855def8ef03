"""The management REST API: one blueprint per noun, mounted the way a plugin's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llamaman.dashboard.rest import about, instances, keys, models, openapi, presets, settings

if TYPE_CHECKING:
    from llamaman.dashboard.services import Services
    from llamaman.records import RouteSet


def route_sets(
    kernel: Services,
    routes: Callable[[], Sequence[dict[str, str]]],
    document: Callable[[], dict[str, Any]],
) -> tuple[RouteSet, ...]:
    """The core's route sets.

    :param routes: the whole route table, for ``/api/routes``.
    :param document: makes the description of the API, for ``/api/openapi.json``.
    """
    return (
        instances.routes(kernel),
        models.routes(kernel),
        presets.routes(kernel),
        keys.routes(kernel),
        settings.routes(kernel),
        about.routes(kernel, routes),
        openapi.routes(document),
    )
