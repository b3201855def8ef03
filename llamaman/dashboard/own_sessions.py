"""A caller's own sessions. Read by the page of the account and by ``/api/me/sessions``."""

from __future__ import annotations

from llamaman.core.accounts.session_record import Session
from llamaman.dashboard.services import Services
from llamaman.errors import NotFound
from llamaman.records import Identity


def own_sessions(kernel: Services, who: Identity) -> list[Session]:
    """The sessions of the user whose session asks, the one used last first."""
    found = kernel.accounts.sessions.list(kernel.accounts.users.get(who.name).id)
    return sorted(found, key=lambda session: session.last_seen, reverse=True)


def end_own_session(kernel: Services, who: Identity, session_id: str) -> None:
    """End one of the caller's sessions.

    :raises NotFound: it is over, or another user's, which one cannot tell.
    """
    if all(session.id != session_id for session in own_sessions(kernel, who)):
        raise NotFound("you have no such session; it may be over")
    kernel.accounts.sessions.end(session_id, by=who, reason="logged out")


def end_own_sessions(kernel: Services, who: Identity) -> int:
    """End all of the caller's sessions, this one too; returns how many."""
    user = kernel.accounts.users.get(who.name)
    return kernel.accounts.sessions.end_of_user(user.id, by=who, reason="logged out everywhere")
