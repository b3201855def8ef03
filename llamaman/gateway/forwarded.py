"""What plugins are told of a request: before it is forwarded, and when it is over. Pure.

Read by the pipeline and the driver, for the hooks ``admit``, ``pre_forward`` and ``post_forward``.
"""

from __future__ import annotations

import time

from llamaman.gateway.dialect import Intent
from llamaman.gateway.exchange import Exchange
from llamaman.records import ForwardCall, ForwardRecord, ModelView


def forward_call(exchange: Exchange, intent: Intent, model: ModelView) -> ForwardCall:
    """A request that is about to be queued or sent."""
    return ForwardCall(
        request_id=exchange.id,
        surface=exchange.surface.name,
        dialect=exchange.dialect.name,
        path=exchange.path,
        model=model.name,
        identity=exchange.identity,
        stream=intent.stream,
        body=intent.request.json if intent.request else {},
        instance_id=exchange.instance_id,
    )


def forward_record(exchange: Exchange) -> ForwardRecord:
    """A request that has just ended."""
    error = exchange.ended_by
    return ForwardRecord(
        request_id=exchange.id,
        surface=exchange.surface.name,
        dialect=exchange.dialect.name,
        path=exchange.path,
        model=exchange.model.name if exchange.model else "",
        instance_id=exchange.instance_id,
        actor=exchange.identity.actor,
        key_id=exchange.identity.key_id,
        status=exchange.status,
        stream=exchange.stream,
        started=exchange.began,
        duration_s=time.monotonic() - exchange.meter.started,
        queued_s=exchange.queued_s,
        usage=exchange.meter.usage(),
        outcome=exchange.outcome,
        error=error.message if error else None,
    )
