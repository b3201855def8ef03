"""What plugins declare and are given, and what is known about them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamaman.access import Access
from llamaman.records.callers import Identity

if TYPE_CHECKING:
    from flask import Blueprint


@dataclass(frozen=True, slots=True)
class RouteSet:
    """A Flask blueprint to be mounted behind the gate. Views carry their level by ``@access``."""

    blueprint: Blueprint
    access: Access = Access.MANAGE


@dataclass(frozen=True, slots=True)
class StreamRoute:
    """A long answer served on the event loop: log tails, event feeds.

    ``open`` is called with the caller and the pattern's values; it raises a LlamaManError to refuse, and
    otherwise returns the iterator whose items are sent as they come.

    :ivar query: names of query parameters that ``open`` finds among the values; those that were not given are
        absent. ``last_event_id`` is also taken from the header ``Last-Event-ID``.
    """

    method: str
    pattern: str
    access: Access
    open: Callable[[Identity, Mapping[str, str]], AsyncIterator[bytes]]
    content_type: str = "text/event-stream"
    query: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """Something a plugin shows on the dashboard."""

    slot: str
    title: str
    template: str
    data: Callable[[], Mapping[str, Any]]
    access: Access = Access.VIEW
    order: int = 100


@dataclass(frozen=True, slots=True)
class Job:
    """Periodic work, run on the scheduler's pool and never beside itself.

    :ivar every_s: seconds from the end of one run to the start of the next.
    """

    name: str
    every_s: float
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Collection:
    """A named collection of documents that a plugin keeps in the store."""

    name: str
    secret: bool = False


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """What a storage driver is opened with.

    :ivar data_dir: DATA_DIR, already private to us and locked by this process.
    :ivar database_url: DATABASE_URL, or None. It may hold a password, so it is kept out of ``repr``.
    :ivar node: this node's name.
    """

    data_dir: Path
    node: str
    database_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What is known about an installed plugin."""

    name: str
    dist: str | None
    version: str | None
    state: Literal["active", "disabled", "incompatible", "broken"]
    reason: str | None = None
    hooks: tuple[str, ...] = ()
