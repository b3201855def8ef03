"""What log streams, event streams and those of plugins share: their one count, and what a client asked of them.

Everything here belongs to the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qsl

from llamaman.errors import InvalidField, InvalidRequest, QueueFull
from llamaman.gateway.heads import Head
from llamaman.limits import STREAMS_IN_ALL, STREAMS_PER_CALLER
from llamaman.records import Identity, StreamRoute

LAST_EVENT_ID = "last_event_id"


def values_for(route: StreamRoute, path_values: Mapping[str, str], head: Head) -> dict[str, str]:
    """What a stream's ``open`` gets: the pattern's values, and the query parameters that the route names.

    :raises InvalidRequest: the query is not UTF-8. :raises InvalidField: a parameter stands in it twice.
    """
    values = dict(path_values)
    if LAST_EVENT_ID in route.query:
        for name, value in head.headers:
            if name == b"last-event-id" and value:
                values[LAST_EVENT_ID] = value.decode("latin-1")
    if not route.query or not head.query:
        return values
    try:
        given = parse_qsl(
            head.query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64
        )
    except ValueError:
        raise InvalidRequest("the query is not percent-encoded UTF-8 with at most 64 parameters") from None
    seen: set[str] = set()
    for parameter, text in given:
        if parameter in route.query and parameter in seen:
            raise InvalidField(parameter, f"{parameter} is given twice")
        seen.add(parameter)
        if parameter in route.query:
            values[parameter] = text
    return values


class StreamCount:
    """The open streams. A caller is a key or a session; whoever has neither, is what it is called."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def check(self, identity: Identity) -> None:
        """Whether there is room for one more.

        :raises QueueFull: too many open streams.
        """
        mine = self._open[_who(identity)]
        if mine >= STREAMS_PER_CALLER:
            raise QueueFull(f"{mine} streams are open for this caller; close some", retry_after=5)
        if self._open.total() >= STREAMS_IN_ALL:
            raise QueueFull("too many streams are open; try again", retry_after=5)

    @contextmanager
    def open(self, identity: Identity) -> Iterator[None]:
        """Count a stream for as long as the context lasts."""
        who = _who(identity)
        self._open[who] += 1
        try:
            yield
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]


def _who(identity: Identity) -> str:
    return identity.key_id or identity.session or identity.actor
