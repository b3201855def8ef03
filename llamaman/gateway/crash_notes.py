"""Tells the event log and the audit log of a request that ended an engine: whose it was, never what it held."""

from __future__ import annotations

from collections.abc import Callable

from llamaman.core.audit import Audit
from llamaman.core.events import Events
from llamaman.core.instance import Instance
from llamaman.gateway.exchange import Exchange

KIND = "crashed_by_request"
KIND_FROZEN = "frozen_by_request"
ACTION = "engine.crashed"
ACTION_FROZEN = "engine.frozen"

#: Told who was alone in an instance's engine when that crashed or froze.
Blamed = Callable[[Exchange, Instance], None]


def nobody_is_told(exchange: Exchange, instance: Instance) -> None:
    """For pipelines without logs."""


def recorder(events: Events, audit: Audit) -> Blamed:
    """What notes it in both."""

    def record(exchange: Exchange, instance: Instance) -> None:
        who = exchange.identity
        facts = {
            "instance_id": instance.id,
            "model": instance.model,
            "generation": instance.generation,
            "request_id": exchange.id,
            "key_id": who.key_id,
            "path": exchange.path,
        }
        froze = instance.frozen is not None
        how = "froze" if froze else "crashed"
        reason = f"the engine {how} while it worked on this request alone"
        kind = KIND_FROZEN if froze else KIND
        events.publish("instances", kind, facts, actor=who.actor, reason=reason)
        audit.record(
            ACTION_FROZEN if froze else ACTION,
            actor=who.actor,
            address=exchange.request.address,
            object=instance.model,
            changes=facts,
            outcome="failed",
            detail=reason,
        )

    return record
