"""Actions that a session may take only within ten minutes of confirming its password.

Read by the gate (``app.py``), for the routes that say ``@operation(..., sudo=True)``, and by the two views whose
need depends on the body. API keys with the scope and the admin socket have no password to confirm, so they pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llamaman.access import Scope
from llamaman.core.key_record import checked_scope
from llamaman.dashboard.services import Services
from llamaman.records import Identity

_IMAGES: Final = "images.allowed"
_STRONG: Final = frozenset({Scope.MANAGE, Scope.ADMIN})


def require_sudo(kernel: Services, identity: Identity) -> None:
    """Let the caller pass.

    :raises SudoRequired: a session whose password was not confirmed lately.
    """
    if identity.kind == "session":
        kernel.accounts.require_sudo(identity)


def require_for_key(kernel: Services, identity: Identity, scope: str | None) -> None:
    """The same for a new key, if its scope lets it change things; no scope means ``manage``.

    :raises InvalidField: no such scope.
    """
    if checked_scope(scope) in _STRONG:
        require_sudo(kernel, identity)


def require_for_settings(kernel: Services, identity: Identity, patch: Mapping[str, Any]) -> None:
    """The same for changed settings, if inference would become open to everybody, or other images could be run."""
    # Whatever is not plainly true may be read as off; that rule belongs to the setting.
    turned_off = "require_auth" in patch and patch["require_auth"] is not True
    if turned_off and kernel.settings.get("require_auth"):
        require_sudo(kernel, identity)
    if any(given != list(kernel.settings.get(_IMAGES)) for given in _given(patch, _IMAGES)):
        require_sudo(kernel, identity)


def _given(patch: Mapping[str, Any], name: str) -> list[Any]:
    """What a body says about a setting: by its dotted name, within objects, or both."""
    found = [patch[name]] if name in patch else []
    group, _, rest = name.partition(".")
    inner = patch.get(group)
    return found + (_given(inner, rest) if rest and isinstance(inner, Mapping) else [])
