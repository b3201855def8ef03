"""Whether the other end of a connection is one of our own engines. They answer; they have nothing to ask us.

Read by the front door before anything else is known of a request. A model's container shares a network with us, so
what breaks out of an engine reaches our ports; this is where it ends, whatever key it has found. The address is the
socket's own: what a header says does not count. Belongs to the event loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

from llamaman.core.addresses import parse_ip
from llamaman.errors import Forbidden
from llamaman.runtime import HasPeers, Runtime

log = logging.getLogger("llamaman.gateway")

SENTENCE = "a model's container may not call LlamaMan"
#: Refusals of one address are told once in this time.
REPEAT_S = 60.0
#: Addresses whose last telling is remembered; more are only seen when containers come and go by the hundred.
_REMEMBERED = 256


class EnginePeers:
    """The addresses of engines, of all runtimes together.

    :param runtimes: those without addresses of their own cost nothing.
    :param clock: seconds, monotonic.
    """

    __slots__ = ("_clock", "_sources", "_told")

    def __init__(
        self, runtimes: Iterable[Runtime] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = tuple(_Source(runtime) for runtime in runtimes if isinstance(runtime, HasPeers))
        self._clock = clock
        self._told: dict[str, float] = {}

    def is_engine(self, address: str) -> bool:
        """Whether an engine has this address now.

        :param address: as the kernel names the other end.
        """
        for source in self._sources:  # noqa: SIM110 - every request passes here, and this costs half as much
            if source.has(address):
                return True
        return False

    def refusal(self) -> Forbidden:
        """What an engine hears."""
        return Forbidden(SENTENCE)

    def is_news(self, address: str) -> bool:
        """Whether this refusal shall be recorded: the first of an address, and one in each minute."""
        now = self._clock()
        last = self._told.get(address)
        if last is not None and now - last < REPEAT_S:
            return False
        if len(self._told) >= _REMEMBERED:
            self._told.clear()
        self._told[address] = now
        return True


class _Source:
    """One runtime's addresses, read anew whenever its set is another one."""

    __slots__ = ("_known", "_plain", "_runtime", "_troubled")

    def __init__(self, runtime: HasPeers) -> None:
        self._runtime = runtime
        self._known: frozenset[str] = frozenset()
        self._plain: frozenset[str] = frozenset()
        self._troubled = False

    def has(self, address: str) -> bool:
        try:
            known = self._runtime.peers()
        except Exception:
            # A runtime may be a plugin's. Who was an engine a moment ago counts as one until it can tell again.
            if not self._troubled:
                log.exception(
                    "a runtime cannot say which addresses its engines have; the last ones still count"
                )
            self._troubled = True
            known = self._known
        else:
            self._troubled = False
        if known is not self._known:
            self._plain = frozenset(plain(item) for item in known)
            self._known = known
        return bool(self._plain) and plain(address) in self._plain


@lru_cache(maxsize=1024)
def plain(address: str) -> str:
    """An address in the one form in which it is compared; what is none stays as it is."""
    parsed = parse_ip(address)
    return address if parsed is None else str(parsed)
