"""Who is calling, as it crosses from the event loop to Flask: one header, sealed with a secret of this boot.

Written by ``hop.py``, read by the dashboard's gate. Pure. Whoever finds a second way to Flask's socket
lacks the secret and gets 403; the secret itself never crosses.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from dataclasses import dataclass

from llamaman.access import Scope
from llamaman.records import Identity

HEADER = "X-LlamaMan-Caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a management request.

    :ivar surface: the door it came through (``manage``, ``proxy`` or ``admin``).
    :ivar peer: the client's address (behind trusted proxies: the one that they name), None on a unix socket.
    :ivar secure: the client's connection is encrypted, as far as we can know.
    :ivar csrf: what the form field ``csrf_token`` must hold; None where there is neither session nor pre-session.
    :ivar owns_machine: a loopback client of our own account or root, with no proxy between (``/setup`` without code).
    :ivar host: the Host that was asked, to compare a Referer with; None where it was not given.
    """

    identity: Identity
    surface: str
    peer: str | None = None
    secure: bool = False
    csrf: str | None = None
    owns_machine: bool = False
    host: str | None = None


def new_secret() -> bytes:
    """A secret for one boot."""
    return secrets.token_bytes(32)


def seal(caller: Caller, secret: bytes) -> bytes:
    """The header's value."""
    identity = caller.identity
    facts = {
        "kind": identity.kind,
        "name": identity.name,
        "scope": identity.scope.value if identity.scope else None,
        "key_id": identity.key_id,
        "models": sorted(identity.models) if identity.models is not None else None,
        "session": identity.session,
        "surface": caller.surface,
        "peer": caller.peer,
        "secure": caller.secure,
        "csrf": caller.csrf,
        "owns_machine": caller.owns_machine,
        "host": caller.host,
    }
    payload = base64.urlsafe_b64encode(json.dumps(facts, separators=(",", ":")).encode())
    return _proof(payload, secret) + b"." + payload


def unseal(value: str | None, secret: bytes) -> Caller | None:
    """The caller in a header's value; None when it is absent or was not sealed with this secret."""
    if not value:
        return None
    proof, _, payload = value.encode("utf-8", "surrogateescape").partition(b".")
    if not hmac.compare_digest(proof, _proof(payload, secret)):
        return None
    try:
        facts = json.loads(base64.urlsafe_b64decode(payload))
    except (ValueError, binascii.Error):  # sealed by us, so this is a bug, and no reason to let anyone in
        return None
    models = facts["models"]
    identity = Identity(
        facts["kind"],
        facts["name"],
        Scope(facts["scope"]) if facts["scope"] else None,
        facts["key_id"],
        None if models is None else frozenset(models),
        facts["session"],
    )
    return Caller(
        identity,
        facts["surface"],
        facts["peer"],
        facts["secure"],
        facts["csrf"],
        facts["owns_machine"],
        facts["host"],
    )


def _proof(payload: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, payload, "sha256").hex().encode()
