"""Who may do what: one pure decision, asked by the event loop and by Flask alike.

Authentication (who is this?) is :meth:`Keys.authenticate` or the admin socket's peer check; this module
answers the second question and knows no web framework, socket or store.
"""

from __future__ import annotations

from llamaman.access import OPENS, Access, Scope
from llamaman.core.api_keys import Keys, presented_key
from llamaman.core.key_record import KeyRecord, digest_of, iso
from llamaman.errors import Forbidden, LlamaManError, Unauthorized
from llamaman.records import Identity

__all__ = [
    "KeyRecord",
    "Keys",
    "allows",
    "allows_model",
    "authorise",
    "digest_of",
    "iso",
    "presented_key",
]

#: The least scope that opens a level, for the sentence in a 403.
_NEEDS = {
    Access.INFERENCE: Scope.INFERENCE,
    Access.VIEW: Scope.VIEW,
    Access.MANAGE: Scope.MANAGE,
    Access.ADMIN: Scope.ADMIN,
}


def authorise(identity: Identity, level: Access, *, require_auth: bool) -> None:
    """Let the caller pass, or raise.

    ``require_auth`` off opens INFERENCE and nothing else: management needs a key even while none exists.

    :param require_auth: the setting of that name.
    :raises Unauthorized: nobody, where somebody is needed.
    :raises Forbidden: somebody without the scope; the message names the scope that is needed.
    """
    if level is Access.PUBLIC or (level is Access.INFERENCE and not require_auth):
        return
    if identity.kind == "none":
        raise Unauthorized("API key required")
    if level is Access.NODE:
        if identity.kind != "node":
            raise Forbidden("only another node of this cluster may do this")
        return
    if identity.scope is None or level not in OPENS[identity.scope]:
        held = f"this caller has '{identity.scope.value}'" if identity.scope else "this caller has none"
        raise Forbidden(f"this needs scope '{_NEEDS[level].value}'; {held}")


def allows(identity: Identity, level: Access, *, require_auth: bool = True) -> bool:
    """Whether :func:`authorise` would let the caller pass, for answers that show more to some."""
    try:
        authorise(identity, level, require_auth=require_auth)
    except LlamaManError:
        return False
    return True


def allows_model(identity: Identity, model: str) -> bool:
    """Whether a caller's model list includes a model, given by its resolved name."""
    return identity.models is None or model.lower() in identity.models
