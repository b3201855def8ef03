"""Access levels and key scopes: one table, used by Flask and by the event loop alike.

Every route of every surface has exactly one level; a route that states none is MANAGE.
Unknown names are refused when a route is declared, not when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

_F = TypeVar("_F", bound=Callable[..., object])

ACCESS_ATTRIBUTE = "__llamaman_access__"


class Access(StrEnum):
    """What a caller must be allowed to do before a route's code runs."""

    PUBLIC = "public"
    INFERENCE = "inference"
    VIEW = "view"
    MANAGE = "manage"
    ADMIN = "admin"
    NODE = "node"


class Scope(StrEnum):
    """What an API key (or a user's role) may do; each includes the ones before it, VIEW excepted.

    ``view`` is read-only management and does not include inference: a metrics collector must not be
    able to load a model.
    """

    VIEW = "view"
    INFERENCE = "inference"
    MANAGE = "manage"
    ADMIN = "admin"


class Role(StrEnum):
    """What a user may do; a session has the scope of its user's role."""

    VIEWER = "viewer"
    MANAGER = "manager"
    ADMIN = "admin"


#: viewer = view: reads management, and does not ask models.
SCOPE_OF: dict[Role, Scope] = {
    Role.VIEWER: Scope.VIEW,
    Role.MANAGER: Scope.MANAGE,
    Role.ADMIN: Scope.ADMIN,
}

#: Which levels a scope opens. PUBLIC is open to everybody and NODE to nobody but peers.
OPENS: dict[Scope, frozenset[Access]] = {
    Scope.VIEW: frozenset({Access.VIEW}),
    Scope.INFERENCE: frozenset({Access.INFERENCE}),
    Scope.MANAGE: frozenset({Access.INFERENCE, Access.VIEW, Access.MANAGE}),
    Scope.ADMIN: frozenset({Access.INFERENCE, Access.VIEW, Access.MANAGE, Access.ADMIN}),
}


def access(level: Access) -> Callable[[_F], _F]:
    """Mark a management view with the level it needs.

    :param level: a member of :class:`Access`; a plain string raises ``TypeError`` at import.
    """
    if not isinstance(level, Access):
        raise TypeError(f"access level {level!r} is unknown; use a member of llamaman.Access")

    def mark(view: _F) -> _F:
        setattr(view, ACCESS_ATTRIBUTE, level)
        return view

    return mark
