"""The one path of every inference request, from authentication to the released slot.

Reading order: :meth:`Pipeline.handle`, which is the path in the order in which a request meets it. With a slot in
hand, :mod:`llamaman.gateway.driver` drives the dialect's generator.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from llamaman.access import Access
from llamaman.core.auth import allows, allows_model, authorise
from llamaman.core.cold_starts import counted_key
from llamaman.core.demand import Demand
from llamaman.core.hooks import Hooks
from llamaman.core.instance import Instance
from llamaman.core.library_contract import Library
from llamaman.errors import (
    ContextFull,
    Forbidden,
    LlamaManError,
    ModelUnavailable,
    NotFound,
    PluginError,
    UpstreamFailed,
)
from llamaman.gateway.affinity import conversation
from llamaman.gateway.beside import beside_the_loop
from llamaman.gateway.body_guard import (
    ON_LOOP,
    check_head,
    read_form,
    read_json,
    read_list,
    without_slot,
)
from llamaman.gateway.broken_engines import BrokenEngines
from llamaman.gateway.crash_notes import Blamed, nobody_is_told
from llamaman.gateway.dialect import (
    Dialect,
    InferenceRoute,
    Intent,
    Lease,
    Reply,
)
from llamaman.gateway.dialect import Request as DialectRequest
from llamaman.gateway.driver import Driver
from llamaman.gateway.engine_calls import EngineCalls
from llamaman.gateway.engine_faults import context_too_small
from llamaman.gateway.exchange import Exchange, Exchanges, Send
from llamaman.gateway.forwarded import forward_call, forward_record
from llamaman.gateway.grant import Grant
from llamaman.gateway.heads import Head
from llamaman.gateway.limits import ClientGone
from llamaman.gateway.media import Media
from llamaman.gateway.media_places import Place
from llamaman.gateway.pictures import find, may_see, sees
from llamaman.gateway.pool import Pools, Wish
from llamaman.gateway.request import Request
from llamaman.gateway.request_checks import (
    WrongPort,
    allowed,
    check_role,
    plain_error,
    raise_reject,
    read_body,
    resolve,
)
from llamaman.gateway.upstream import UpstreamError
from llamaman.records import NOBODY, ForwardRecord, Identity, InstanceView, ModelView

log = logging.getLogger("llamaman.gateway")

_ALL_SLOTS = 1 << 30


class Identify(Protocol):
    """Says who asks."""

    def __call__(self, request: Request, *, shared: bool) -> Identity:
        """The caller; raises what the client is told. ``shared``: pages of other origins may ask, too."""


class Registry(Protocol):
    """What the pipeline asks about instances."""

    def get(self, instance_id: str) -> Instance | None:
        """One by id, or None."""

    def views(self) -> Sequence[InstanceView]:
        """All of them."""

    async def enlarge(self, demand: Demand) -> None:
        """Make an idle instance ready to come back with more context, where that is allowed."""

    def keep_alive(self, instance: Instance, seconds: float | None) -> None:
        """A client has used it and wants it kept for so long; None: no change."""

    def unload(self, path: Path) -> None:
        """Have what requests have started of a model sleep as soon as nobody needs it."""

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


def _unobserved(_exchange: Exchange) -> None:
    """Nobody counts."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pipeline works with.

    :ivar observe: told of every request for a model that is over, refused ones included; it must not block.
    :ivar blamed: told of a request that was alone in an engine when that crashed.
    """

    identify: Identify
    library: Library
    registry: Registry
    pools: Pools
    hooks: Hooks
    require_auth: Callable[[], bool]
    request_timeout_s: float
    record: Callable[[ForwardRecord], None]
    media: Media = field(default_factory=Media)
    observe: Callable[[Exchange], None] = _unobserved
    blamed: Blamed = nobody_is_told


class Pipeline:
    """Serves inference requests."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self.exchanges = Exchanges()
        self._driver = Driver(parts.hooks, EngineCalls(parts.request_timeout_s, parts.registry.suspect))
        self._broken = BrokenEngines(parts.registry, parts.request_timeout_s, parts.blamed)

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
            identity = parts.identify(request, shared=level is Access.INFERENCE)
            exchange = Exchange(request, send, dialect, identity, head.path)
            request.on_gone = exchange.client_left
            if request.is_gone:
                raise ClientGone("the client left before its request was read")
            self.exchanges.add(exchange)
            authorise(identity, level, require_auth=parts.require_auth())
            raw, body = b"", {}
            if route.body != "none":
                self._broken.check_key(identity)
                check_head(head.named)
                raw = await read_body(request, route.limit)
                if route.body == "json":
                    body = await read_json(raw)
                    if "id_slot" in body and not allows(identity, Access.MANAGE):
                        raw = without_slot(raw, body)
                elif route.body == "list":
                    await read_list(raw)
                else:
                    await read_form(raw)
                if level is Access.INFERENCE:
                    raw = await parts.media.settle(raw, body, route, request)
                    await self._broken.check_body(head.path, raw)
            own = self._own_instance(exchange)
            own_model = parts.library.by_path(own.model_path) if own else None
            if own_model and level is not Access.PUBLIC and not allows_model(identity, own_model.name):
                raise Forbidden("this key may not use the model of this port")
            models = parts.library.models()
            asked = DialectRequest(
                route=route,
                path=head.path,
                values=values,
                query=head.query,
                identity=identity,
                json=body,
                raw=raw,
                models=models if identity.models is None else allowed(models, identity),
                own_model=own_model,
                request_id=exchange.id,
                content_type=head.named.get(b"content-type", b""),
                received=exchange.began,
                **self._what_runs(route, identity, head),
            )
            if len(raw) > ON_LOOP:
                answer = await beside_the_loop(partial(dialect.open, asked))
            else:
                answer = dialect.open(asked)
            if isinstance(answer, Reply):
                await exchange.reply(answer)
            else:
                await self._infer(exchange, answer, own, asked)
        except LlamaManError as error:
            await self._tell(exchange, request, send, dialect, error)
        except ClientGone:
            pass  # nobody is left to be told
        except Exception:
            log.exception("request %s through dialect '%s' failed", head.path, dialect.name)
            failure = PluginError(
                dialect.name, "internal error while answering; the manager's log has the cause"
            )
            await self._tell(exchange, request, send, dialect, failure)
        except asyncio.CancelledError:
            if not await self._ended(exchange):
                raise
        finally:
            if exchange:
                request.on_gone = None
                exchange.quiet()
                self.exchanges.remove(exchange)
                if exchange.intent or exchange.ended_by:
                    parts.observe(exchange)
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
                await exchange.reply(plain_error(error))
            else:
                await exchange.fail(error)
        except ClientGone:
            return

    def _what_runs(self, route: InferenceRoute, identity: Identity, head: Head) -> dict[str, Any]:
        if not route.instances:
            return {}
        parts = self._p
        views = [view for view in parts.registry.views() if allows_model(identity, view.model)]
        presets = {m.path: preset for m in parts.library.models() if (preset := parts.library.preset(m.path))}
        agent = next((value for name, value in head.headers if name == b"user-agent"), b"")
        return {"instances": views, "presets": presets, "user_agent": agent}

    # --- from a name to a grant ----------------------------------------------------------------------

    def _own_instance(self, exchange: Exchange) -> Instance | None:
        surface = exchange.surface
        if surface.name != "instance" or surface.instance_id is None:
            return None
        instance = self._p.registry.get(surface.instance_id)
        if instance is None:
            raise NotFound("this instance no longer exists")
        return instance

    async def _infer(
        self, exchange: Exchange, intent: Intent, own: Instance | None, asked: DialectRequest
    ) -> None:
        parts = self._p
        exchange.intent = intent
        exchange.on_blame = self._broken.blame
        exchange.stream = intent.stream
        model = resolve(parts.library, intent, own, exchange.identity)
        exchange.model = model
        if not allows_model(exchange.identity, model.name):
            raise Forbidden(f"this key may not use model '{model.name}'")
        embedding = parts.registry.is_embedding(model)
        exchange.dialect.check(intent, model)  # first: its refusals have the words that its clients know
        check_role(intent, model, embedding)
        if parts.hooks.has("admit"):
            raise_reject(parts.hooks.admit(forward_call(exchange, intent, model)))
        if intent.action == "unload":
            await self._unload(exchange, intent, model)
            return
        media = await find(asked) if intent.action == "infer" and asked.route.body != "none" else ()
        if media and may_see(model, parts.registry.views()):
            intent, media = await self._settled(exchange, intent, asked, media), ()
        if intent.stream:
            exchange.keep_alive()
        replaced = alone = False
        while True:
            grant = await self._grant(exchange, model, own, intent, embedding=embedding, alone=alone)
            try:
                if media and sees(grant.instance.facts):  # more than its files promise
                    intent, media = await self._settled(exchange, intent, asked, media), ()
                await self._driver.serve(exchange, intent, model, grant)
                return
            except ContextFull:
                if alone or grant.is_alone:
                    raise context_too_small(model.name, grant.instance.context_length) from None
                if exchange.has_told:
                    raise
                alone = True  # what others needed of the context is free then
            except UpstreamError as error:
                failure = await self._broken.diagnose(exchange, grant, error)
                if failure is None and not replaced and not exchange.wrote_content:
                    replaced = True
                    continue
                raise failure or UpstreamFailed("the engine broke the connection") from None
            finally:
                grant.release()
                if intent.keep_alive is not None or intent.action == "load":
                    parts.registry.keep_alive(grant.instance, intent.keep_alive)

    async def _settled(
        self, exchange: Exchange, intent: Intent, asked: DialectRequest, media: Sequence[Place]
    ) -> Intent:
        """The intent with the media of the request judged, and made into what engines read."""
        pictures = self._p.media.pictures
        intent = await pictures.settle(media, intent, asked, exchange.dialect, exchange.request)
        exchange.intent = intent
        if intent.request and intent.request.raw is not asked.raw:
            # Blame is laid on the text that an engine gets, which is another one now.
            await self._broken.check_body(exchange.path, intent.request.raw)
        return intent

    async def _grant(
        self,
        exchange: Exchange,
        model: ModelView,
        own: Instance | None,
        intent: Intent,
        *,
        embedding: bool,
        alone: bool,
    ) -> Grant:
        pools = self._p.pools
        pool = pools.of(model.path)
        wish = Wish(
            model,
            weight=0 if intent.action == "load" else intent.slots,
            most=_ALL_SLOTS if alone else intent.tasks if intent.slots and intent.action != "load" else 0,
            # A shared queue may hand a request of one instance's port to another instance of the model.
            only=own.id if own and not own.options.get("share_queue") else None,
            launcher=intent.launcher,
            embedding=embedding or (intent.needs == "embedding" and model.embedding),
            context=intent.context,
            home=_home(intent) if pools.has_choice(model.path) else None,
            key=counted_key(exchange.identity),
        )
        if intent.context is not None and intent.wakes:
            await self._p.registry.enlarge(
                Demand(model, wish.launcher, wish.only, wish.embedding, intent.context)
            )
        grant = pool.try_now(wish)
        if grant is None:
            if not intent.wakes:
                raise ModelUnavailable(f"model '{model.name}' is not running, and this does not start it")
            exchange.phase = "load" if pool.loading else "queue"
            waited = time.monotonic()
            grant = await pool.wait(wish)
            exchange.queued_s += time.monotonic() - waited
        exchange.instance_id = grant.instance.id
        exchange.phase = "prefill"
        return grant

    async def _unload(self, exchange: Exchange, intent: Intent, model: ModelView) -> None:
        """Have it sleep as soon as nobody needs it; the dialect only phrases the answer."""
        self._p.registry.unload(model.path)
        for op in exchange.dialect.serve(intent, model, Lease(None, time.time())):
            if not isinstance(op, Reply):
                raise PluginError(exchange.dialect.name, "an unload is answered, nothing else")
            await exchange.reply(op)

    def _record(self, exchange: Exchange) -> None:
        meter = exchange.meter
        instance = self._p.registry.get(exchange.instance_id) if exchange.instance_id else None
        if instance:
            ttft = (meter.first - meter.started) * 1000 if meter.first is not None else None
            self._p.registry.served(instance, meter.tokens_per_second, meter.prompt_per_second, ttft)
        if not self._p.hooks.has("post_forward"):
            return
        self._p.record(forward_record(exchange))


def _home(intent: Intent) -> str | None:
    if intent.affinity is not None:
        return intent.affinity
    return conversation(intent.request.json) if intent.request and intent.slots else None
