"""What is known about a session, and how it is stored. Read by ``sessions.py`` and by the REST shapes. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamaman.core.redact import escape_controls
from llamaman.limits import SESSION_IDLE_S

#: Characters of a browser's self-description that are kept.
AGENT_LONGEST = 256


@dataclass(frozen=True, slots=True)
class Session:
    """A logged-in browser. It holds no secret: ``digest`` is the SHA-256 of the cookie's value.

    :ivar id: the digest's first 16 hexadecimal digits; public.
    :ivar user: the user's id.
    :ivar created: epoch seconds, as are ``last_seen`` and ``expires`` (the moment it ends however much it is used).
    :ivar generation: the user's generation at the login; a session of another one is dead.
    """

    id: str
    digest: str = field(repr=False)
    user: str
    created: float
    last_seen: float
    expires: float
    address: str | None
    agent: str
    generation: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session and, this once, its secret: the cookie's value."""

    session: Session
    secret: str = field(repr=False)


def digest_of(secret: str) -> str:
    """SHA-256 of a cookie's value in hex, the only form in which it is kept."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def is_over(session: Session, last_seen: float, now: float) -> bool:
    """Whether it was left alone for too long, or is as old as a session may get."""
    return now >= session.expires or now >= last_seen + SESSION_IDLE_S


def shown_agent(text: str) -> str:
    """A browser's self-description, without controls and of bounded length."""
    return escape_controls(text)[:AGENT_LONGEST]


def to_document(session: Session) -> dict[str, Any]:
    """A session as it is stored, under its digest."""
    return {
        "user": session.user,
        "generation": session.generation,
        "created": session.created,
        "last_seen": session.last_seen,
        "expires": session.expires,
        "address": session.address,
        "agent": session.agent,
    }


def from_document(digest: str, value: Mapping[str, Any]) -> Session:
    """A stored session.

    :raises ValueError: it is not one.
    """
    try:
        return Session(
            id=digest[:16],
            digest=digest,
            user=str(value["user"]),
            created=float(value["created"]),
            last_seen=float(value["last_seen"]),
            expires=float(value["expires"]),
            address=value.get("address"),
            agent=str(value.get("agent", "")),
            generation=str(value["generation"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a session: {error!r}") from error
