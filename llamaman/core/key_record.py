"""What is known about an API key, and which values its fields may have.

Read by ``api_keys.py`` and by the shapes of the REST API. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llamaman.access import Scope
from llamaman.errors import InvalidField
from llamaman.limits import KEY_MODELS, NAME
from llamaman.records import Identity

DEFAULT_NAME = "Untitled"

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known about a key. It holds no secret: ``digest`` is the key's SHA-256 in hex.

    :ivar prefix: the key's first 8 characters, by which its owner recognises it.
    :ivar models: names it may use, None for every model.
    :ivar created: epoch seconds. :ivar expires: epoch seconds, None for never.
    """

    id: str
    name: str
    prefix: str
    digest: str
    scope: Scope
    models: frozenset[str] | None
    created: float
    expires: float | None
    created_by: str
    bootstrap: bool = False

    def identity(self) -> Identity:
        """The caller that this key stands for."""
        return Identity("key", self.name, self.scope, self.id, self.models)


def digest_of(key: str) -> str:
    """SHA-256 of a key in hex, the only form in which a key is kept."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def iso(moment: float) -> str:
    """Epoch seconds as ISO-8601 UTC with milliseconds and Z, the form of times in the key API."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def checked_name(value: str) -> str:
    """A key's name.

    :raises InvalidField: empty, too long, or with control characters.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > NAME or _CONTROLS.search(value):
        raise InvalidField("name", f"name must be 1 to {NAME} characters without control characters")
    return value.strip()


def checked_scope(value: Scope | str | None) -> Scope:
    """A scope; None means ``manage``, as keys of the original do.

    :raises InvalidField: unknown.
    """
    if value is None:
        return Scope.MANAGE
    try:
        return Scope(value)
    except ValueError:
        allowed = ", ".join(scope.value for scope in Scope)
        raise InvalidField("scope", f"scope must be one of {allowed}") from None


def checked_models(value: Sequence[str] | None) -> frozenset[str] | None:
    """The models a key may use, in lower case; None for every model.

    :raises InvalidField: empty, too long, or no list of names.
    """
    if value is None:
        return None
    if isinstance(value, str) or len(value) > KEY_MODELS or not all(_is_model_name(name) for name in value):
        raise InvalidField("models", f"models must be null or a list of at most {KEY_MODELS} model names")
    if not value:
        raise InvalidField("models", "models is empty: such a key could use nothing; null means every model")
    return frozenset(name.lower() for name in value)


def _is_model_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= NAME and not _CONTROLS.search(name)


def checked_expiry(value: str | float | None, now: float) -> float | None:
    """When a key ends, in epoch seconds; None for never.

    :raises InvalidField: not a time, or one before ``now``.
    """
    if value is None:
        return None
    moment = _moment(value)
    if moment is None:
        raise InvalidField("expires", "expires must be null or ISO-8601 such as 2031-01-31T12:00:00Z")
    if moment <= now:
        raise InvalidField("expires", "expires lies in the past; the key would never work")
    return moment


def _moment(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        if isinstance(value, str):
            parsed = datetime.fromisoformat(value)
            value = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        iso(value)  # the last hours of the calendar may lie outside it in UTC, and would be unreadable
        return float(value)
    except (ValueError, OverflowError, OSError):  # not a date, or one outside the calendar
        return None


def to_document(record: KeyRecord) -> dict[str, Any]:
    """A key as it is stored: the digest, never the key."""
    return {
        "id": record.id,
        "name": record.name,
        "prefix": record.prefix,
        "sha256": record.digest,
        "scope": record.scope.value,
        "models": None if record.models is None else sorted(record.models),
        "created": record.created,
        "expires": record.expires,
        "created_by": record.created_by,
        "bootstrap": record.bootstrap,
    }


def from_document(value: Mapping[str, Any]) -> KeyRecord:
    """A stored key."""
    models = value.get("models")
    return KeyRecord(
        id=value["id"],
        name=value["name"],
        prefix=value["prefix"],
        digest=value["sha256"],
        scope=Scope(value["scope"]),
        models=None if models is None else frozenset(models),
        created=value["created"],
        expires=value.get("expires"),
        created_by=value.get("created_by", ""),
        bootstrap=bool(value.get("bootstrap")),
    )
