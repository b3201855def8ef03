"""How many models a key may have started within a minute: what it has used, and how long the next start must wait.

A start makes others' models leave and keeps the machine busy, so a key that asks for another model with every
request would deny the service to all others. Knows no clock: every moment is given, in seconds of one that only
grows. Owned by the queue for room (:mod:`llamaman.core.room`), on the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamaman.access import OPENS, Access
from llamaman.records import Identity

MINUTE_S = 60.0


def counted_key(identity: Identity) -> str | None:
    """The id of the caller's key if its starts are counted; whoever may manage can start anything anyway."""
    if identity.key_id is None or (identity.scope and Access.MANAGE in OPENS[identity.scope]):
        return None
    return identity.key_id


@dataclass(slots=True, eq=False)
class Claim:
    """One start of a key. :ivar begun: when it began; None while it still waits for room."""

    key: str
    begun: float | None = None

    def since(self, now: float) -> float:
        """When its minute begins: not before the start does."""
        return now if self.begun is None else self.begun


class ColdStarts:
    """The starts of every key within the last minute; a key without any is not known."""

    def __init__(self) -> None:
        self._claims: dict[str, list[Claim]] = {}

    def wait_s(self, key: str, limit: int, now: float, ahead: int = 0) -> float:
        """Seconds until a key may have one more, 0.0 for now, so that no minute ever has more than ``limit``.

        Those that still wait for room are taken to begin now; who knows when they will.

        :param limit: 1 or more.
        :param ahead: how many of the same key wait before it.
        """
        self._forget(now)
        since = sorted(claim.since(now) for claim in self._claims.get(key, ()))
        since += [now] * (limit - len(since))  # places that are free, and used by those ahead from now on
        index = len(self._claims.get(key, ())) + ahead - limit
        if index < 0:
            return 0.0
        rounds, place = divmod(index, len(since))
        return since[place] + MINUTE_S * (rounds + 1) - now

    def claim(self, key: str) -> Claim:
        """Use one; it counts until a minute after :attr:`Claim.begun`, or until it is given back."""
        claim = Claim(key)
        self._claims.setdefault(key, []).append(claim)
        return claim

    def give_back(self, claim: Claim) -> None:
        """It came to nothing: the model was there already, or nobody wanted it any more."""
        claims = self._claims[claim.key]
        claims.remove(claim)
        if not claims:
            del self._claims[claim.key]

    def known(self, now: float) -> frozenset[str]:
        """The keys that something is remembered of."""
        self._forget(now)
        return frozenset(self._claims)

    def _forget(self, now: float) -> None:
        for key, claims in tuple(self._claims.items()):
            claims[:] = [claim for claim in claims if claim.since(now) + MINUTE_S > now]
            if not claims:
                del self._claims[key]
