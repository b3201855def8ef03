"""The inference requests that are being answered now: what management shows of them, and how it ends one.

Read by the management API, from its own threads; everything is looked at and done on the event loop, which owns
the exchanges. No prompt, body or answer is in here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from llamaman.errors import Cancelled, ModelUnavailable, NotFound
from llamaman.gateway.exchange import Exchange, Exchanges

T = TypeVar("T")

Progress = Literal["queue", "load", "prefill", "generate"]

#: The loop answers in microseconds; if it does not, it is ending.
CALL_S = 10.0


@dataclass(frozen=True, slots=True)
class RequestView:
    """One request at one moment.

    :ivar phase: what it waits for or does: a free slot, the model's load, the prompt's reading, its answer.
    :ivar started_at: epoch seconds. :ivar seconds: how long it has been going on.
    :ivar prompt_tokens, completion_tokens: None until the engine has said so, which is at the end of a stream.
    """

    id: str
    surface: str
    dialect: str
    path: str
    model: str | None
    instance_id: str | None
    actor: str
    key_id: str | None
    session: str | None
    address: str | None
    stream: bool
    phase: Progress
    started_at: float
    seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None


class InFlight:
    """See the module's docstring. Made on the loop that owns ``exchanges``."""

    def __init__(self, exchanges: Exchanges, loop: asyncio.AbstractEventLoop) -> None:
        self._exchanges = exchanges
        self._loop = loop

    def views(self) -> list[RequestView]:
        """Every request that is not answered yet, oldest first. From any thread.

        :raises ModelUnavailable: the manager is ending.
        """
        return self._on_loop(self._views)

    def counts(self) -> Counter[tuple[str, Progress]]:
        """How many there are by model (empty where none was found yet) and phase. From any thread, at once.

        Reads without the loop, which may be what is slow: a request may show in the phase before.
        """
        return Counter(
            (exchange.model.name if exchange.model else "", progress_of(exchange))
            for exchange in self._running()
            if exchange.intent
        )

    def cancel(self, request_id: str, actor: str) -> None:
        """End a request: its client is told by whom, the engine stops, the slot is free. From any thread.

        :raises NotFound: it is over, or never was. :raises ModelUnavailable: the manager is ending.
        """
        self._on_loop(lambda: self._cancel(request_id, actor))

    def _views(self) -> list[RequestView]:
        return [view_of(exchange) for exchange in self._running()]

    def _cancel(self, request_id: str, actor: str) -> None:
        for exchange in self._running():
            if exchange.id == request_id:
                exchange.end(Cancelled(f"cancelled by {actor}"))
                return
        raise NotFound(f"no request with the id '{request_id}' is running; it may be over already")

    def _running(self) -> list[Exchange]:
        """Log and event streams are none, nor is what has its whole answer and only tidies up."""
        return [
            exchange
            for exchange in self._exchanges.all()
            if isinstance(exchange, Exchange) and not exchange.request.answered
        ]

    def _on_loop(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        coroutine: Coroutine[Any, Any, T] = run()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise ModelUnavailable("LlamaMan is ending; try again", retry_after=5) from None
        try:
            return future.result(CALL_S)
        except TimeoutError:
            future.cancel()
            raise ModelUnavailable("LlamaMan is too busy or ending; try again", retry_after=5) from None


def progress_of(exchange: Exchange) -> Progress:
    """What a request waits for or does."""
    return "generate" if exchange.meter.first is not None else exchange.phase


def view_of(exchange: Exchange) -> RequestView:
    """A snapshot; on the loop only."""
    meter, identity = exchange.meter, exchange.identity
    return RequestView(
        id=exchange.id,
        surface=exchange.surface.name,
        dialect=exchange.dialect.name,
        path=exchange.path,
        model=exchange.model.name if exchange.model else None,
        instance_id=exchange.instance_id,
        actor=identity.actor,
        key_id=identity.key_id,
        session=identity.session,
        address=exchange.request.address,
        stream=exchange.stream,
        phase=progress_of(exchange),
        started_at=round(exchange.began, 3),
        seconds=round(time.monotonic() - meter.started, 3),
        prompt_tokens=meter.prompt_tokens,
        completion_tokens=meter.completion_tokens,
    )
