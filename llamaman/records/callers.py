"""Who a request comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llamaman.access import Scope


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from, after authentication.

    :ivar session: the public id of a session (no secret), for kind ``session`` alone.
    """

    kind: Literal["none", "key", "session", "node", "local"]
    name: str
    scope: Scope | None = None
    key_id: str | None = None
    models: frozenset[str] | None = None  # None: every model
    session: str | None = None

    @property
    def actor(self) -> str:
        """The form in which events and the audit log name this caller."""
        return f"{self.kind}:{self.name}" if self.name else self.kind


NOBODY = Identity("none", "")
