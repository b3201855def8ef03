"""What holds for every change of a user, and what a new or changed one looks like. Called by ``accounts.py``. Pure."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from llamaman.access import OPENS, SCOPE_OF, Role
from llamaman.core.accounts.user_record import StoredUser, User, user_id
from llamaman.core.accounts.users import StoredUsers
from llamaman.errors import Conflict, Forbidden
from llamaman.records import Identity


def new_user(name: str, password_hash: str, role: Role, *, created_by: str, now: float) -> StoredUser:
    """A user who was not there before."""
    user = User(user_id(name), name, role, False, now, now, created_by)
    return StoredUser(user, password_hash, secrets.token_hex(8))


def renewed(known: StoredUser, *, password_hash: str | None = None, now: float, **fields: Any) -> StoredUser:
    """The user with other fields, and in a new generation: every session of the old one is dead."""
    if password_hash is not None:
        fields["password_changed"] = now
    return StoredUser(
        replace(known.user, **fields), password_hash or known.password_hash, secrets.token_hex(8)
    )


def refuse_taken(known: StoredUser | None) -> None:
    """:raises Conflict: the name belongs to somebody."""
    if known is not None:
        raise Conflict(f"there is a user '{known.user.name}' already")


def refuse_more_than(by: Identity, role: Role) -> None:
    """Nobody grants, or takes over, more than they hold.

    :raises Forbidden: the role may do more than ``by``.
    """
    if by.scope is None or not OPENS[SCOPE_OF[role]] <= OPENS[by.scope]:
        held = f"'{by.scope.value}'" if by.scope else "none"
        raise Forbidden(f"a user with role '{role.value}' may do more than you (scope {held})")
    if by.models is not None:
        raise Forbidden("your key is limited to some models, and users are not; use a key without that limit")


def refuse_no_admin(known: StoredUser, changed: StoredUser | None, users: StoredUsers) -> None:
    """Somebody must be able to log in and administer.

    :param changed: what ``known`` would become; None for deleted.
    :raises Conflict: nobody would be left.
    """
    if not known.is_active_admin or (changed is not None and changed.is_active_admin):
        return
    if not any(other.is_active_admin for other in users.values() if other.user.id != known.user.id):
        raise Conflict(
            f"'{known.user.name}' is the last administrator who can log in; make another user an administrator first"
        )
