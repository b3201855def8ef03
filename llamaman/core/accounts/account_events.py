"""What the event bus hears about users and sessions. Called by the use cases in ``accounts.py``; the audit log listens.

No password, hash or secret is among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from llamaman.core.accounts.user_record import StoredUser
from llamaman.core.events import Events
from llamaman.records import Identity


def tell_user(
    events: Events,
    kind: str,
    stored: StoredUser,
    actor: str,
    reason: str,
    fields: Sequence[str] = (),
    was: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """A user was made, changed or deleted.

    :param fields: what changed. :param was: those of them that may be shown, as they were.
    """
    user = stored.user
    data = {
        "name": user.name,
        "role": user.role.value,
        "disabled": user.disabled,
        "changed": list(fields),
        "was": dict(was),
    }
    events.publish("users", kind, data, actor=actor, reason=reason)


def tell_session(
    events: Events,
    kind: str,
    stored: StoredUser | None,
    identity: Identity,
    reason: str,
    *,
    address: str | None,
) -> None:
    """Somebody logged in or proved who they are, or failed to.

    :param stored: the user they say they are; None when there is none.
    """
    # A name that no user has is left out: people type passwords into the wrong field.
    data = {"id": identity.session, "user": stored.user.id if stored else None, "address": address}
    events.publish("sessions", kind, data, actor=identity.actor, reason=reason)
