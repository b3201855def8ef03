"""Passing an engine's event stream on as it is: whole events, without progress and pings, metered."""

from __future__ import annotations

from llamaman.gateway.body import rename
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.sse import MAX_EVENT_BYTES, EventTooLarge


class Relay:
    """The sink of one relayed answer: takes blocks as they arrive, keeps what is not yet a whole event.

    :param names: see :class:`llamaman.gateway.dialect.Call`.
    """

    __slots__ = ("_exchange", "_names", "_rest")

    def __init__(self, exchange: Exchange, names: tuple[str, str] | None) -> None:
        self._exchange = exchange
        self._names = names
        self._rest = b""

    def __call__(self, block: bytes) -> bool:
        """Send the whole events of a block; False when the client reads too slowly.

        :raises EventTooLarge: an event has no end.
        :raises ClientGone: nobody reads.
        """
        if self._rest:
            block = self._rest + block
        cut = block.rfind(b"\n\n") + 2
        if cut == 1:
            if len(block) > MAX_EVENT_BYTES:
                raise EventTooLarge(f"an event of the stream is larger than {MAX_EVENT_BYTES} bytes")
            self._rest = block
            return True
        self._rest = block[cut:]
        exchange = self._exchange
        events = exchange.meter.pass_events(block if cut == len(block) else block[:cut])
        if not events:
            return True
        return exchange.push(rename(events, self._names) if self._names else events)

    def flush(self) -> None:
        """Send what came after the last blank line; an engine that ended properly leaves nothing there."""
        rest, self._rest = self._rest, b""
        if rest.strip():
            self(rest + b"\n\n")
