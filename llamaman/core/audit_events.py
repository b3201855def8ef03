"""What the audit log takes from the event bus: logins, launches, and changes that no request made.

Requests are recorded where they are answered, with their address and outcome. Here comes what only the bus knows:
who logged in or tried to, what an engine was started with, and what the environment, the boot or another node did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llamaman.core import launch_events
from llamaman.core.audit import Audit, Outcome
from llamaman.core.events import Event, Events

#: Actors whose changes come as requests, which are recorded where they are answered.
_BY_REQUEST = ("session:", "key:", "local:", "node:")

#: Topics whose changes are recorded when no request made them.
_CHANGES = frozenset({"users", "keys", "settings", "sessions"})

#: Events of ``sessions`` that tell more than the request behind them, and are recorded instead of it.
_LOGINS: Mapping[str, tuple[str, Outcome]] = {
    "login": ("login", "ok"),
    "login_failed": ("login.failed", "refused"),
}


def follow(audit: Audit, events: Events) -> Callable[[], None]:
    """Record from now on; returns what ends it."""

    def record(event: Event) -> None:
        if event.topic == launch_events.TOPIC:
            _record_launch(audit, event)
        elif event.topic == "sessions" and event.kind in _LOGINS:
            action, outcome = _LOGINS[event.kind]
            _record(audit, event, action, event.data.get("user"), outcome=outcome)
        elif event.topic in _CHANGES and not event.actor.startswith(_BY_REQUEST):
            name = event.data.get("name") or event.data.get("id")
            _record(audit, event, f"{event.topic}.{event.kind}", name, changes=changes_of(event))

    return events.subscribe(None, record)


def changes_of(event: Event) -> dict[str, Any]:
    """The part of an event that says what is different now."""
    settings = event.data.get("settings")
    if event.topic == "settings" and isinstance(settings, Mapping):
        return dict(settings)
    if event.topic == "users" and event.kind == "changed":
        return _changes_of_user(event.data)
    left_out = ("id", "address", "user", "changed", "was")
    return {name: value for name, value in event.data.items() if name not in left_out}


def _changes_of_user(data: Mapping[str, Any]) -> dict[str, Any]:
    """Field -> old and new; of a password, that it changed."""
    was = data.get("was") or {}
    return {
        field: {"old": was[field], "new": data.get(field)} if field in was else True
        for field in data.get("changed", ())
    }


def _record_launch(audit: Audit, event: Event) -> None:
    outcome: Outcome = "failed" if event.kind == launch_events.FAILED else "ok"
    changes = {name: value for name, value in event.data.items() if name != "instance_id"}
    _record(audit, event, "engine.start", event.data.get("instance_id"), changes=changes, outcome=outcome)


def _record(
    audit: Audit,
    event: Event,
    action: str,
    concerned: object,
    *,
    changes: Mapping[str, Any] | None = None,
    outcome: Outcome = "ok",
) -> None:
    address = event.data.get("address")
    audit.record(
        action,
        actor=event.actor,
        address=address if isinstance(address, str) else None,
        object=concerned if isinstance(concerned, str) else "",
        changes=changes,
        outcome=outcome,
        detail=event.reason,
    )
