"""What a broken connection to an engine means, and who answers for an engine that crashed or froze.

Read by the pipeline: whether a request may be sent once more, what its client is told otherwise, and which requests
are not sent again because an engine crashed or froze under them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from llamaman.core.instance import Instance
from llamaman.core.readiness import probe
from llamaman.errors import EngineDied, LlamaManError, ModelUnavailable, UpstreamFailed, UpstreamTimeout
from llamaman.gateway.body_guard import ON_LOOP
from llamaman.gateway.crash_notes import Blamed
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.grant import Grant
from llamaman.gateway.poison import Poison, digest
from llamaman.gateway.upstream import UpstreamError
from llamaman.records import Identity, State

_SUSPICIOUS_FAILURES = 3
_EXIT_NOTICED_S = 0.2
_ANSWER_S = 2.0
_EXIT_TOLD_S = 5.0
_CAUSE_FOUND_S = 1.0


class Registry(Protocol):
    """What is asked about instances."""

    def suspect(self, instance: Instance) -> None:
        """Its requests fail although it lives."""

    def unavailable(self, instance: Instance) -> LlamaManError:
        """Why it cannot serve."""


class BrokenEngines:
    """See the module's docstring.

    :param timeout_s: seconds of silence after which an engine has failed (REQUEST_TIMEOUT).
    :param blamed: told of a request that was alone in an engine when that crashed or froze.
    """

    def __init__(self, registry: Registry, timeout_s: float, blamed: Blamed) -> None:
        self._registry = registry
        self._timeout_s = timeout_s
        self._blamed = blamed
        self._poison = Poison()

    async def diagnose(self, exchange: Exchange, grant: Grant, error: UpstreamError) -> LlamaManError | None:
        """What a broken upstream means: None when the request may be sent once more."""
        if error.kind == "silent":
            self._registry.suspect(grant.instance)
            return UpstreamTimeout(f"the engine was silent for {self._timeout_s:g} s (REQUEST_TIMEOUT)")
        instance = grant.instance
        if (frozen := instance.frozen) and frozen.generation == grant.generation:
            if exchange in frozen.suspects or exchange.wrote_content:
                return EngineDied(
                    f"the engine was frozen for {frozen.silent_s:g} s and was ended", retry_after=5
                )
            return None  # it came in when nothing went on any more, or nothing was computed for it
        if await self._outlived(grant):
            instance.failures += 1
            if instance.failures >= _SUSPICIOUS_FAILURES:
                self._registry.suspect(instance)
            if exchange.wrote_content or error.kind == "protocol":
                return UpstreamFailed(f"the engine broke the connection ({error.kind})")
            return None
        if instance.last_exit is None and _runs_on(grant):
            self._registry.suspect(instance)
            return UpstreamFailed("the engine broke the connection and no longer answers")
        if instance.state in (State.STOPPING, State.STOPPED, State.SLEEPING):
            return ModelUnavailable(f"the instance was stopped: {instance.reason}", retry_after=5)
        if exchange.wrote_content:
            return EngineDied("the engine ended in the middle of this answer")
        if instance.state is State.FAILED:
            return self._registry.unavailable(instance)
        return EngineDied(f"the engine ended: {instance.reason}", retry_after=5)

    async def _outlived(self, grant: Grant) -> bool:
        """Whether the engine is still there after a broken connection.

        The exit of a process reaches the supervisor within milliseconds of the reset, that of a container later. A
        request that ends engines must not be sent to the next one, so in doubt this one is not there.
        """
        instance = grant.instance

        def is_over() -> bool:
            return instance.last_exit is not None or not _runs_on(grant)

        if not await _within(_EXIT_NOTICED_S, is_over):
            if await probe(grant.client, _ANSWER_S) and not is_over():
                return True
            await _within(_EXIT_TOLD_S, is_over)
        await _within(_CAUSE_FOUND_S, lambda: instance.last_exit is None or not _runs_on(grant))
        return False

    # --- requests that end engines -------------------------------------------------------------------

    def check_key(self, identity: Identity) -> None:
        """:raises TooManyRequests: too many engines crashed under the requests of this key."""
        self._poison.check_key(identity.key_id, time.monotonic())

    async def check_body(self, path: str, raw: bytes) -> None:
        """:raises CrashingRequest: an engine crashed or froze under this very request."""
        if raw and self._poison.knows_bodies(time.monotonic()):
            known_by = (
                digest(path, raw) if len(raw) <= ON_LOOP else await asyncio.to_thread(digest, path, raw)
            )
            self._poison.check_body(known_by, time.monotonic())

    def blame(self, exchange: Exchange, instance: Instance) -> bool:
        """An engine crashed or froze that worked on nothing else. Whether a key answers for it."""
        intent, key_id = exchange.intent, exchange.identity.key_id
        now = time.monotonic()
        if intent and intent.request and (raw := intent.request.raw):
            if len(raw) <= ON_LOOP:
                self._poison.add_body(digest(exchange.path, raw), now)
            else:
                computed = asyncio.get_running_loop().run_in_executor(None, digest, exchange.path, raw)
                computed.add_done_callback(lambda known_by: self._poison.add_body(known_by.result(), now))
        if key_id:
            self._poison.add_crash(key_id, now)
        self._blamed(exchange, instance)
        return key_id is not None


def _runs_on(grant: Grant) -> bool:
    """Whether nobody knows of an end of the engine that was granted."""
    return grant.instance.generation == grant.generation and grant.instance.state is State.READY


async def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for it; False when it does not come true."""
    waited = 0.0
    while not condition():
        if waited >= seconds:
            return False
        await asyncio.sleep(0.02)
        waited += 0.02
    return True
