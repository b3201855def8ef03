"""The management REST API: one blueprint per noun, mounted the way a plugin's are. The few pages come along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llamaman.dashboard import pages
from llamaman.dashboard.rest import (
    about,
    audit,
    container_stats,
    doctor,
    images,
    instances,
    keys,
    me,
    metrics,
    models,
    openapi,
    presets,
    requests,
    runtimes,
    sessions,
    settings,
    users,
    why,
)

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
        container_stats.routes(kernel),
        models.routes(kernel),
        images.routes(kernel),
        presets.routes(kernel),
        keys.routes(kernel),
        settings.routes(kernel),
        users.routes(kernel),
        sessions.routes(kernel),
        me.routes(kernel),
        pages.routes(kernel),
        runtimes.routes(kernel),
        requests.routes(kernel),
        why.routes(kernel),
        audit.routes(kernel),
        about.routes(kernel, routes),
        doctor.routes(kernel),
        metrics.routes(kernel),
        openapi.routes(document),
    )
