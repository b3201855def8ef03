"""What a dialect asks of an engine, carried out: the four modes of a call, and letting go of an engine.

Permits follow the engine, not the client: a slot comes free when the engine has really stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from llamaman.core.instance import Instance
from llamaman.errors import UpstreamFailed
from llamaman.gateway.body import patched, rename
from llamaman.gateway.dialect import SSE_HEADERS, Call, Calls, Event, Result, Results
from llamaman.gateway.engine_faults import put_right
from llamaman.gateway.event_stream import EventStream, assemble, meter_body, stream_error
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.grant import Grant
from llamaman.gateway.host_paths import names_only
from llamaman.gateway.relay import Relay
from llamaman.gateway.sse import EventTooLarge
from llamaman.gateway.upstream import Response

MAX_ANSWER = 64 * 1024 * 1024
#: An answer that takes no longer than this is not streamed from the engine only to be put together again.
BRIEF_S = 0.5

JSON = b"application/json"

_PROGRESS = {"stream": True, "return_progress": True}
#: Laid over a body per mode; without include_usage a stream's figures would lack what a body has.
_BY_MODE: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "relay": _PROGRESS,
    "stream": _PROGRESS,
    "assemble": {**_PROGRESS, "stream_options": {"include_usage": True}},
}


class EngineCalls:
    """Carries out calls under grants.

    :param timeout_s: seconds of silence after which an engine has failed (REQUEST_TIMEOUT).
    :param suspect: told about an instance whose engine does not let go of an abandoned request.
    """

    def __init__(self, timeout_s: float, suspect: Callable[[Instance], None]) -> None:
        self._timeout_s = timeout_s
        self._suspect = suspect
        self._cleanups: set[asyncio.Task[None]] = set()

    async def call(self, exchange: Exchange, call: Call, grant: Grant, patch: Mapping[str, Any]) -> Result:
        """Carry out one call and return what came back; a relayed answer has gone to the client then.

        :raises UpstreamError: the engine broke off.
        """
        mode = call.mode
        if mode == "assemble" and _is_brief(call, grant.instance):
            mode = "plain"
        response = await self._open(exchange, grant, call, mode, patch)
        try:
            if mode == "plain" or response.status != 200:
                answer = await response.read_all(MAX_ANSWER)
                if response.status == 200:
                    meter_body(exchange.meter, answer)
                return _result(response, rename(answer, call.rename))
            if mode == "relay":
                relay = Relay(exchange, call.rename)
                await response.pipe(relay, exchange.request.drained)
                relay.flush()
                if relay.error is not None:
                    return stream_error(relay.error)
                await exchange.start(200, SSE_HEADERS)
                await exchange.finish()
                return Result(200, b"", relayed=True)
            result = await assemble(response, exchange.meter, chat="chat" in call.path)
            return replace(result, body=rename(result.body, call.rename)) if call.rename else result
        except EventTooLarge:
            raise UpstreamFailed("the engine sent an event over 8 MiB") from None
        finally:
            self.done_with(response, grant)

    async def begin_stream(
        self, exchange: Exchange, call: Call, grant: Grant, patch: Mapping[str, Any]
    ) -> tuple[Event, EventStream | None]:
        """Begin a call in ``stream`` mode: its first event, and the stream unless it was refused."""
        response = await self._open(exchange, grant, call, "stream", patch)
        if response.status != 200:
            return _result(response, await response.read_all(MAX_ANSWER)), None
        stream = EventStream(response, exchange.meter)
        try:
            return await stream.next(), stream
        except BaseException:
            self.done_with(response, grant)
            raise

    async def _open(
        self, exchange: Exchange, grant: Grant, call: Call, mode: str, patch: Mapping[str, Any]
    ) -> Response:
        headers = [(b"authorization", b"Bearer " + grant.instance.api_key)]
        body = call.body
        if body:
            headers.append((b"content-type", call.content_type))
            if call.content_type == JSON:
                body = patched(body, {**call.patch, **patch, **_BY_MODE[mode]})
        if call.compressed:
            headers.append((b"accept-encoding", b"gzip"))
        grant.enter(exchange)
        return await grant.client.request(
            call.method,
            call.path.encode(),
            headers,
            body,
            silence_s=self._timeout_s,
            abandon=partial(self._abandon, grant),
        )

    async def calls(
        self, calls: Calls, exchange: Exchange, grant: Grant, patch: Mapping[str, Any]
    ) -> Results:
        """Carry out several calls; one that fails ends the others."""
        gate = asyncio.Semaphore(max(1, calls.limit))

        async def one(call: Call) -> Result:
            async with gate:
                return await self.call(exchange, call, grant, patch)

        tasks = [asyncio.get_running_loop().create_task(one(call)) for call in calls.calls]
        try:
            return Results(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:  # else the others would go on without a permit
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    # --- ends ----------------------------------------------------------------------------------------

    def done_with(self, response: Response, grant: Grant) -> None:
        """Give the connection back; where the engine is still at work, stop it and keep the slot until it has."""
        if response.complete:
            response.release()
        elif response.failure is None:
            self._abandon(grant, response.cancel())

    def _abandon(self, grant: Grant, drain: Coroutine[Any, Any, bool]) -> None:
        grant.hold()
        task = asyncio.get_running_loop().create_task(self._drain(grant, drain))
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)

    async def _drain(self, grant: Grant, drain: Coroutine[Any, Any, bool]) -> None:
        try:
            if not await drain:
                grant.keep()
                self._suspect(grant.instance)
        finally:
            grant.release()


def _result(response: Response, body: bytes) -> Result:
    named = dict(response.headers)
    status = response.status
    if status >= 400:
        status, body = put_right(status, names_only(body))
    return Result(
        status,
        body,
        at=time.time(),
        content_type=named.get(b"content-type", b""),
        encoding=named.get(b"content-encoding", b""),
    )


def _is_brief(call: Call, instance: Instance) -> bool:
    """Whether an answer will be over before streaming it could free its slot any sooner.

    Going by the instance's last measured speeds; a token is at least one byte of the body.
    """
    decode, prefill = instance.last_tokens_per_second, instance.prompt_per_second
    if call.most_tokens is None or not decode or not prefill:
        return False
    return call.most_tokens / decode + len(call.body) / prefill <= BRIEF_S
