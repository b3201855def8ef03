"""What only a running manager knows, as plain facts. Made by the REST view, judged by the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamaman.core.key_record import KeyRecord


@dataclass(frozen=True, slots=True)
class Person:
    """A user, without anything secret. Times in epoch seconds.

    :ivar last_login: None while nobody logged in as this user since the manager started.
    """

    name: str
    role: str
    disabled: bool
    created: float
    last_login: float | None


@dataclass(frozen=True, slots=True)
class Live:
    """The manager's own state at one moment.

    :ivar started_at: epoch seconds of its start.
    :ivar engine_ports: TCP ports that engines of ours listen on.
    :ivar containers: ids of the containers that engines of ours run in.
    :ivar install: names this installation, on containers for example.
    """

    started_at: float
    require_auth: bool
    unlisted_args: bool
    people: Sequence[Person]
    keys: Sequence[KeyRecord]
    engine_ports: frozenset[int]
    containers: frozenset[str] = frozenset()
    install: str | None = None
