"""Drives a dialect's generator while its request holds a slot: its operations are carried out, their events sent back.

Read by the pipeline. Guarantees that an upstream stream is let go of and the generator closed however it ends, and
that what takes long is not done on the event loop. The calls themselves: :mod:`llamaman.gateway.engine_calls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from llamaman.core.hooks import Hooks
from llamaman.errors import PluginError
from llamaman.gateway.beside import beside_the_loop
from llamaman.gateway.body_guard import ON_LOOP
from llamaman.gateway.dialect import (
    Call,
    Calls,
    Chunk,
    Emit,
    Event,
    Intent,
    Next,
    Op,
    Reply,
    Result,
    Results,
    Serving,
    Start,
    Value,
    Work,
)
from llamaman.gateway.engine_calls import EngineCalls
from llamaman.gateway.engine_faults import context_full, is_context_full
from llamaman.gateway.event_stream import EventStream
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.forwarded import forward_call
from llamaman.gateway.grant import Grant, lease_of
from llamaman.gateway.overrides import sampling_overrides
from llamaman.gateway.request_checks import raise_reject
from llamaman.records import ModelView

_HOOK_DEADLINE_S = 5.0


class Driver:
    """See the module's docstring."""

    def __init__(self, hooks: Hooks, calls: EngineCalls) -> None:
        self._hooks = hooks
        self._calls = calls

    async def serve(self, exchange: Exchange, intent: Intent, model: ModelView, grant: Grant) -> None:
        """Answer one request.

        :raises UpstreamError: the engine broke the connection.
        :raises ContextFull: others in the same engine left it no context.
        :raises LlamaManError: a hook refused it.
        """
        patch = sampling_overrides(grant.instance.options, intent.needs)
        if self._hooks.has("pre_forward"):
            patch = {**patch, **await self._pre_forward(exchange, intent, model)}
        serving = exchange.dialect.serve(intent, model, lease_of(grant))
        stream: EventStream | None = None
        event: Event = None
        is_large = intent.request is not None and len(intent.request.raw) > ON_LOOP
        told = False
        try:
            while True:
                step = partial(_step, serving, event)
                # To translate a large body takes long; what the engine says comes in small pieces.
                is_long = is_large and not told and not isinstance(event, Chunk)
                op = await beside_the_loop(step) if is_long else step()
                if op is None:
                    break
                event = None
                told = isinstance(op, Emit | Start)
                if isinstance(op, Emit):
                    await exchange.hold(op.data)
                    continue
                if not (isinstance(op, Next) and stream and stream.has_more):
                    await exchange.flush()  # what comes next may take its time
                if isinstance(op, Call):
                    if op.mode == "stream":
                        if stream:
                            self._calls.done_with(stream.response, grant)
                            stream = None
                        event, stream = await self._calls.begin_stream(exchange, op, grant, patch)
                    else:
                        event = await self._calls.call(exchange, op, grant, patch)
                elif isinstance(op, Next):
                    event = await stream.next() if stream else Result(200, b"")
                elif isinstance(op, Reply):
                    await exchange.reply(op)
                elif isinstance(op, Start):
                    await exchange.start(op.status, op.headers)
                elif isinstance(op, Calls):
                    event = await self._calls.calls(op, exchange, grant, patch)
                elif isinstance(op, Work):
                    event = Value(await asyncio.to_thread(op.function, *op.arguments))
                for result in event.results if isinstance(event, Results) else (event,):
                    if isinstance(result, Result) and is_context_full(result):
                        raise context_full(model.name, grant.instance.context_length)
        finally:
            if stream:  # first: what the dialect does when it is closed may fail
                self._calls.done_with(stream.response, grant)
            serving.close()
        if not exchange.request.answered:
            await exchange.finish()

    async def _pre_forward(self, exchange: Exchange, intent: Intent, model: ModelView) -> dict[str, Any]:
        call = forward_call(exchange, intent, model)
        hooks = self._hooks
        if hooks.pre_forward_blocks():
            try:
                async with asyncio.timeout(_HOOK_DEADLINE_S):
                    outcome = await asyncio.to_thread(hooks.pre_forward, call)
            except TimeoutError:
                raise PluginError(
                    "pre_forward", f"no answer within {_HOOK_DEADLINE_S:g} s", status=503
                ) from None
        else:
            outcome = hooks.pre_forward(call)
        raise_reject(outcome)
        return dict(outcome) if isinstance(outcome, Mapping) else {}


def _step(serving: Serving, event: Event) -> Op | None:
    """A dialect's next operation; None at its end. A thread's result cannot be a StopIteration."""
    try:
        return serving.send(event)
    except StopIteration:
        return None
