"""Passing an engine's event stream on as it is: whole events, without progress and pings, metered.

An error is not passed on: who asked for the stream phrases it, as a whole answer where nothing was sent yet.
"""

from __future__ import annotations

from typing import Any

import orjson

from llamaman.gateway.body import rename
from llamaman.gateway.exchange import Exchange
from llamaman.gateway.sse import MAX_EVENT_BYTES, EventTooLarge

#: How llama-server begins the event that ends a stream of OpenAI's kind or of its own. No text holds a line break.
_ERROR = b'data: {"error":'


class Relay:
    """The sink of one relayed answer: takes blocks as they arrive, keeps what is not yet a whole event.

    :param names: see :class:`llamaman.gateway.dialect.Call`.
    :ivar error: what the engine says of its failure, once it has; nothing is sent any more.
    """

    __slots__ = ("_exchange", "_names", "_rest", "error")

    def __init__(self, exchange: Exchange, names: tuple[str, str] | None) -> None:
        self._exchange = exchange
        self._names = names
        self._rest = b""
        self.error: Any = None

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
        if cut != len(block):
            block = block[:cut]
        if _ERROR in block or self.error is not None:
            block = self._until_error(block)
        exchange = self._exchange
        events = exchange.meter.pass_events(block)
        if not events:
            return True
        return exchange.push(rename(events, self._names) if self._names else events)

    def _until_error(self, block: bytes) -> bytes:
        """The events before an error, which is kept."""
        if self.error is not None:
            return b""
        at = 0 if block.startswith(_ERROR) else block.find(b"\n" + _ERROR) + 1
        if not at and not block.startswith(_ERROR):
            return block
        event = block[at + len(b"data: ") : block.index(b"\n\n", at)]
        try:
            self.error = orjson.loads(event)["error"]
        except ValueError:  # not JSON: the client may make sense of it
            return block
        return block[:at]

    def flush(self) -> None:
        """Send what came after the last blank line; an engine that ended properly leaves nothing there."""
        rest, self._rest = self._rest, b""
        if rest.strip():
            self(rest + b"\n\n")
