"""The one path of every inference request, from authentication to the released slot.

Reading order: :meth:`Pipeline.handle`, which is the path in the order in which a request meets it;
``_serve`` drives the dialect's generator; ``_call`` and its four modes talk to the engine; ``_abandon``
is what happens when the client goes first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from llamaman.access import Access
from llamaman.core.auth import Keys, allows_model, authorise
from llamaman.core.hooks import Hooks
from llamaman.core.instance import Instance
from llamaman.core.library_contract import Library
from llamaman.errors import (
    EngineDied,
    Forbidden,
    InvalidRequest,
    LlamaManError,
    ModelNotFound,
    ModelUnavailable,
    NotFound,
    PayloadTooLarge,
    PluginError,
    UpstreamFailed,
    UpstreamTimeout,
)
from llamaman.gateway.body import dump, parse_object, rename, set_path, splice
from llamaman.gateway.dialect import (
    JSON_HEADERS,
    SSE_HEADERS,
    Call,
    Calls,
    Dialect,
    Emit,
    Event,
    InferenceRoute,
    Intent,
    Next,
    Reply,
    Result,
    Results,
    Start,
)
from llamaman.gateway.dialect import Request as DialectRequest
from llamaman.gateway.event_stream import EventStream, assemble, meter_body
from llamaman.gateway.exchange import Exchange, Exchanges, Send
from llamaman.gateway.limits import BodyTooLarge, BodyTooSlow, BufferFull, ClientGone
from llamaman.gateway.overrides import sampling_overrides
from llamaman.gateway.pool import Grant, Pools
from llamaman.gateway.relay import Relay
from llamaman.gateway.request import Request
from llamaman.gateway.sse import EventTooLarge
from llamaman.gateway.upstream import Response, UpstreamError
from llamaman.records import NOBODY, ForwardCall, ForwardRecord, Identity, ModelView, Reject, State

log = logging.getLogger("llamaman.gateway")

MAX_ANSWER = 64 * 1024 * 1024
BRIEF_S = 0.5
_SUSPICIOUS_FAILURES = 3
_EXIT_NOTICED_S = 0.2
_CAUSE_FOUND_S = 1.0
_HOOK_DEADLINE_S = 5.0
_PROGRESS = {"stream": True, "return_progress": True}
#: Laid over a body per mode; without include_usage a stream's figures would lack what a body has.
_BY_MODE: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "relay": _PROGRESS,
    "stream": _PROGRESS,
    "assemble": {**_PROGRESS, "stream_options": {"include_usage": True}},
}


class Registry(Protocol):
    """What the pipeline asks about instances."""

    def get(self, instance_id: str) -> Instance | None:
        """One by id, or None."""

    def is_embedding(self, model: ModelView) -> bool:
        """Whether the model runs, or would run, as an embedding model."""

    def suspect(self, instance: Instance) -> None:
        """Its requests fail although it lives."""

    def unavailable(self, instance: Instance) -> LlamaManError:
        """Why it cannot serve."""

    def served(
        self,
        instance: Instance,
        tokens_per_second: float | None,
        prompt_per_second: float | None,
        ttft_ms: float | None,
    ) -> None:
        """A request is over."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pipeline works with."""

    keys: Keys
    library: Library
    registry: Registry
    pools: Pools
    hooks: Hooks
    require_auth: Callable[[], bool]
    request_timeout_s: float
    record: Callable[[ForwardRecord], None]


class Pipeline:
    """Serves inference requests."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self.exchanges = Exchanges()
        self._cleanups: set[asyncio.Task[None]] = set()

    async def handle(
        self,
        request: Request,
        send: Send,
        dialect: Dialect,
        route: InferenceRoute,
        values: Mapping[str, str],
        level: Access,
    ) -> None:
        """Answer one request."""
        parts = self._p
        head = request.head
        exchange: Exchange | None = None
        try:
            identity = parts.keys.authenticate(head.headers)
            exchange = Exchange(request, send, dialect, identity, head.path)
            request.on_gone = exchange.client_left
            if request.is_gone:
                raise ClientGone("the client left before its request was read")
            self.exchanges.add(exchange)
            authorise(identity, level, require_auth=parts.require_auth())
            raw, body = b"", {}
            if route.body == "json":
                raw = await _read(request, route.limit)
                body = parse_object(raw)
            own = self._own_instance(exchange)
            models = parts.library.models()
            answer = dialect.open(
                DialectRequest(
                    route=route,
                    path=head.path,
                    values=values,
                    query=head.query,
                    identity=identity,
                    json=body,
                    raw=raw,
                    models=models if identity.models is None else _allowed(models, exchange),
                    own_model=parts.library.by_path(own.model_path) if own else None,
                    request_id=exchange.id,
                )
            )
            if isinstance(answer, Reply):
                await exchange.reply(answer)
            else:
                await self._infer(exchange, answer, own)
        except LlamaManError as error:
            await self._tell(exchange, request, send, dialect, error)
        except ClientGone:
            pass  # nobody is left to be told
        except asyncio.CancelledError:
            if not await self._ended(exchange):
                raise
        finally:
            if exchange:
                request.on_gone = None
                exchange.quiet()
                self.exchanges.remove(exchange)
                if exchange.intent:
                    self._record(exchange)

    async def _ended(self, exchange: Exchange | None) -> bool:
        """Whether a cancellation was ours; a revoked or stopped request is still told why."""
        task = asyncio.current_task()
        if exchange is None or task is None or not (exchange.request.is_gone or exchange.ended_by):
            return False
        task.uncancel()
        if exchange.ended_by and not exchange.request.is_gone:
            await exchange.fail(exchange.ended_by)
        return True

    async def _tell(
        self, exchange: Exchange | None, request: Request, send: Send, dialect: Dialect, error: LlamaManError
    ) -> None:
        if exchange is None:  # refused before there was an identity
            exchange = Exchange(request, send, dialect, NOBODY, request.head.path)
        exchange.ended_by = error
        try:
            if isinstance(error, WrongPort):
                await exchange.reply(_plain_error(error))
            else:
                await exchange.fail(error)
        except ClientGone:
            return

    # --- from a name to a grant ----------------------------------------------------------------------

    def _own_instance(self, exchange: Exchange) -> Instance | None:
        surface = exchange.surface
        if surface.name != "instance" or surface.instance_id is None:
            return None
        instance = self._p.registry.get(surface.instance_id)
        if instance is None:
            raise NotFound("this instance no longer exists")
        return instance

    def _resolve(self, intent: Intent, own: Instance | None, identity: Identity) -> ModelView:
        if own is None:
            if not intent.model:
                raise InvalidRequest("model is required", field="model")
            try:
                return self._p.library.find(intent.model)
            except ModelNotFound as error:
                raise ModelNotFound(
                    error.name, [c for c in error.candidates if allows_model(identity, c)]
                ) from None
        model = self._p.library.by_path(own.model_path)
        if intent.model and not _fits(intent.model, model):
            raise WrongPort(f"model '{intent.model}' is not loaded on this port", field="model")
        return model

    async def _infer(self, exchange: Exchange, intent: Intent, own: Instance | None) -> None:
        parts = self._p
        exchange.intent = intent
        exchange.stream = intent.stream
        model = self._resolve(intent, own, exchange.identity)
        exchange.model = model
        if not allows_model(exchange.identity, model.name):
            raise Forbidden(f"this key may not use model '{model.name}'")
        embedding = parts.registry.is_embedding(model)
        _check_role(intent, model, embedding)
        if parts.hooks.has("admit"):
            _raise_reject(parts.hooks.admit(self._forward_call(exchange, intent, model)))
        if intent.stream:
            exchange.keep_alive()
        replaced = False
        while True:
            grant = await self._grant(exchange, model, own, intent, embedding=embedding)
            try:
                await self._serve(exchange, intent, model, grant)
                return
            except UpstreamError as error:
                failure = await self._diagnose(exchange, grant, error)
                if failure is None and not replaced and not exchange.wrote_content:
                    replaced = True
                    continue
                raise failure or UpstreamFailed("the engine broke the connection") from None
            finally:
                grant.release()

    async def _grant(
        self, exchange: Exchange, model: ModelView, own: Instance | None, intent: Intent, *, embedding: bool
    ) -> Grant:
        pool = self._p.pools.of(model.path)
        only = own.id if own else None
        grant = pool.try_now(only, intent.slots)
        if grant is None:
            if not intent.wakes:
                raise ModelUnavailable(f"model '{model.name}' is not running, and this does not start it")
            exchange.phase = "load" if pool.loading else "queue"
            waited = time.monotonic()
            wants_embedding = embedding or (intent.needs == "embedding" and model.embedding)
            grant = await pool.wait(model, only, intent.slots, intent.launcher, embedding=wants_embedding)
            exchange.queued_s += time.monotonic() - waited
        exchange.instance_id = grant.instance.id
        exchange.phase = "prefill"
        return grant

    def _forward_call(self, exchange: Exchange, intent: Intent, model: ModelView) -> ForwardCall:
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

    # --- driving the dialect -------------------------------------------------------------------------

    async def _serve(self, exchange: Exchange, intent: Intent, model: ModelView, grant: Grant) -> None:
        patch = sampling_overrides(grant.instance.options, intent.needs)
        if self._p.hooks.has("pre_forward"):
            patch = {**patch, **await self._pre_forward(exchange, intent, model)}
        serving = exchange.dialect.serve(intent, model)
        stream: EventStream | None = None
        event: Event = None
        try:
            while True:
                try:
                    op = serving.send(event)
                except StopIteration:
                    break
                event = None
                if isinstance(op, Call):
                    if op.mode == "stream":
                        if stream:
                            self._done_with(stream.response, grant)
                        event, stream = await self._begin_stream(exchange, op, grant, patch)
                    else:
                        event = await self._call(exchange, op, grant, patch)
                elif isinstance(op, Emit):
                    await exchange.write(op.data)
                elif isinstance(op, Next):
                    event = await stream.next() if stream else Result(200, b"")
                elif isinstance(op, Reply):
                    await exchange.reply(op)
                elif isinstance(op, Start):
                    await exchange.start(op.status, op.headers)
                elif isinstance(op, Calls):
                    event = await self._calls(op, exchange, grant, patch)
        finally:
            serving.close()
            if stream:
                self._done_with(stream.response, grant)
        if not exchange.request.answered:
            await exchange.finish()

    async def _pre_forward(self, exchange: Exchange, intent: Intent, model: ModelView) -> dict[str, Any]:
        call = self._forward_call(exchange, intent, model)
        hooks = self._p.hooks
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
        _raise_reject(outcome)
        return dict(outcome) if isinstance(outcome, Mapping) else {}

    # --- talking to the engine -----------------------------------------------------------------------

    async def _call(self, exchange: Exchange, call: Call, grant: Grant, patch: Mapping[str, Any]) -> Result:
        mode = call.mode
        if mode == "assemble" and _is_brief(call, grant.instance):
            mode = "plain"
        response = await self._open(grant, call, mode, patch)
        try:
            if mode == "plain" or response.status != 200:
                answer = await response.read_all(MAX_ANSWER)
                if response.status == 200:
                    meter_body(exchange.meter, answer)
                return Result(response.status, rename(answer, call.rename))
            if mode == "relay":
                relay = Relay(exchange, call.rename)
                await response.pipe(relay, exchange.request.drained)
                relay.flush()
                await exchange.start(200, SSE_HEADERS)
                await exchange.finish()
                return Result(200, b"", relayed=True)
            result = await assemble(response, exchange.meter, chat="chat" in call.path)
            return replace(result, body=rename(result.body, call.rename)) if call.rename else result
        except EventTooLarge:
            raise UpstreamFailed("the engine sent an event over 8 MiB") from None
        finally:
            self._done_with(response, grant)

    async def _begin_stream(
        self, exchange: Exchange, call: Call, grant: Grant, patch: Mapping[str, Any]
    ) -> tuple[Event, EventStream | None]:
        response = await self._open(grant, call, "stream", patch)
        if response.status != 200:
            return Result(response.status, await response.read_all(MAX_ANSWER)), None
        stream = EventStream(response, exchange.meter)
        try:
            return await stream.next(), stream
        except BaseException:
            self._done_with(response, grant)
            raise

    async def _open(self, grant: Grant, call: Call, mode: str, patch: Mapping[str, Any]) -> Response:
        headers = [(b"authorization", b"Bearer " + grant.instance.api_key)]
        body = call.body
        if body:
            headers.append((b"content-type", b"application/json"))
            body = _patched(body, {**call.patch, **patch, **_BY_MODE[mode]})
        return await grant.client.request(
            call.method,
            call.path.encode(),
            headers,
            body,
            silence_s=self._p.request_timeout_s,
            abandon=partial(self._abandon, grant),
        )

    async def _calls(
        self, calls: Calls, exchange: Exchange, grant: Grant, patch: Mapping[str, Any]
    ) -> Results:
        gate = asyncio.Semaphore(max(1, calls.limit))

        async def one(call: Call) -> Result:
            async with gate:
                return await self._call(exchange, call, grant, patch)

        tasks = [asyncio.get_running_loop().create_task(one(call)) for call in calls.calls]
        try:
            return Results(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:  # else the others would go on without a permit
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    # --- ends ----------------------------------------------------------------------------------------

    def _done_with(self, response: Response, grant: Grant) -> None:
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
                self._p.registry.suspect(grant.instance)
        finally:
            grant.release()

    async def _diagnose(self, exchange: Exchange, grant: Grant, error: UpstreamError) -> LlamaManError | None:
        """What a broken upstream means: None when the request may be sent once more."""
        if error.kind == "silent":
            self._p.registry.suspect(grant.instance)
            return UpstreamTimeout(
                f"the engine was silent for {self._p.request_timeout_s:g} s (REQUEST_TIMEOUT)"
            )
        instance = grant.instance
        if await self._outlived(grant):
            instance.failures += 1
            if instance.failures >= _SUSPICIOUS_FAILURES:
                self._p.registry.suspect(instance)
            if exchange.wrote_content or error.kind == "protocol":
                return UpstreamFailed(f"the engine broke the connection ({error.kind})")
            return None
        if instance.state in (State.STOPPING, State.STOPPED, State.SLEEPING):
            return ModelUnavailable(f"the instance was stopped: {instance.reason}", retry_after=5)
        if exchange.wrote_content:
            return EngineDied("the engine ended in the middle of this answer")
        if instance.state is State.FAILED:
            return self._p.registry.unavailable(instance)
        return EngineDied(f"the engine ended: {instance.reason}", retry_after=5)

    async def _outlived(self, grant: Grant) -> bool:
        """Whether the engine is still there after a broken connection.

        Its exit and the cause reach the supervisor within milliseconds of the reset, but not before it.
        """
        instance = grant.instance
        waited = 0.0
        while instance.generation == grant.generation and instance.state is State.READY:
            if waited >= (_EXIT_NOTICED_S if instance.last_exit is None else _CAUSE_FOUND_S):
                return instance.last_exit is None
            await asyncio.sleep(0.02)
            waited += 0.02
        return False

    def _record(self, exchange: Exchange) -> None:
        usage = exchange.meter.usage()
        error = exchange.ended_by
        instance = self._p.registry.get(exchange.instance_id) if exchange.instance_id else None
        if instance:
            ttft = usage.ttft_s * 1000 if usage.ttft_s is not None else None
            self._p.registry.served(instance, usage.tokens_per_second, exchange.meter.prompt_per_second, ttft)
        if not self._p.hooks.has("post_forward"):
            return
        left = exchange.request.is_gone and not exchange.request.answered
        outcome = "cancelled" if left else "error" if error or exchange.status >= 400 else "complete"
        self._p.record(
            ForwardRecord(
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
                usage=usage,
                outcome=outcome,  # type: ignore[arg-type] # one of the literals above
                error=error.message if error else None,
            )
        )


class WrongPort(NotFound):
    """A model name that is not the one of this instance port; the answer's shape is the specification's."""


def _plain_error(error: LlamaManError) -> Reply:
    return Reply(error.status, JSON_HEADERS, dump({"error": error.message}))


async def _read(request: Request, limit: int) -> bytes:
    try:
        return await request.read_body(limit)
    except BodyTooLarge:
        raise PayloadTooLarge(f"the request body is over the limit of {limit >> 20} MiB") from None
    except BodyTooSlow:
        raise InvalidRequest("the request body arrived too slowly") from None
    except BufferFull:
        raise ModelUnavailable("too many large requests at once; try again", retry_after=1) from None


def _allowed(models: tuple[ModelView, ...], exchange: Exchange) -> tuple[ModelView, ...]:
    return tuple(model for model in models if allows_model(exchange.identity, model.name))


def _fits(name: str, model: ModelView) -> bool:
    """Whether a client's name means the model of an instance port: exact, or a prefix of its stem."""
    wanted = name.lower().removesuffix(":latest")
    return bool(wanted) and (model.name == wanted or model.path.stem.lower().startswith(wanted))


def _check_role(intent: Intent, model: ModelView, embedding: bool) -> None:
    if intent.needs == "embedding" and not (embedding or model.embedding):
        raise InvalidRequest(
            f"model '{model.name}' is not an embedding model; set Embedding Model in its preset",
            field="model",
        )
    if intent.needs in ("chat", "completion") and embedding:
        raise InvalidRequest(
            f"model '{model.name}' runs as an embedding model and cannot generate text", field="model"
        )


def _is_brief(call: Call, instance: Instance) -> bool:
    """Whether an answer will be over before streaming it could free its slot any sooner.

    Going by the instance's last measured speeds; a token is at least one byte of the body.
    """
    decode, prefill = instance.last_tokens_per_second, instance.prompt_per_second
    if call.most_tokens is None or not decode or not prefill:
        return False
    return call.most_tokens / decode + len(call.body) / prefill <= BRIEF_S


def _patched(body: bytes, patch: Mapping[str, Any]) -> bytes:
    if not any("." in path for path in patch):
        return splice(body, patch)
    data = parse_object(body)
    for path, value in patch.items():
        data = set_path(data, path, value)
    return dump(data)


def _raise_reject(outcome: object) -> None:
    if isinstance(outcome, Reject):
        raise Rejected(outcome)


class Rejected(LlamaManError):
    """A plugin's refusal, with its own status."""

    def __init__(self, reject: Reject) -> None:
        super().__init__(reject.message, retry_after=reject.retry_after)
        self.status = reject.status
        self.code = reject.code
