"""What is known about a user, and which values its fields may have. Read by ``users.py`` and the REST shapes. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamaman.access import SCOPE_OF, Role
from llamaman.errors import InvalidField
from llamaman.limits import USER_NAME
from llamaman.records import Identity

#: Unicode categories that a name may not hold: controls, formats (bidirectional and zero-width among them), halves
#: of surrogate pairs, private and unassigned characters, line and paragraph separators.
_BARRED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

#: Letters and marks that show as nothing: fillers, joiners, variation selectors.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\ufe00-\ufe0f\uffa0]")


@dataclass(frozen=True, slots=True)
class User:
    """A person who can log in, as others may see them.

    :ivar id: the name, casefolded and in NFKC: two names that look alike to a computer are one user.
    :ivar created: epoch seconds, as are ``password_changed`` and ``last_login``.
    :ivar last_login: since this manager started; None when there was none.
    """

    id: str
    name: str
    role: Role
    disabled: bool
    created: float
    password_changed: float
    created_by: str
    last_login: float | None = None


@dataclass(frozen=True, slots=True)
class StoredUser:
    """A user with what only this package may see.

    :ivar generation: new with every change that ends the user's sessions; sessions carry the one they began with.
    """

    user: User
    password_hash: str = field(repr=False)
    generation: str = field(repr=False)

    @property
    def is_active_admin(self) -> bool:
        """Whether this user can log in and administer."""
        return self.user.role is Role.ADMIN and not self.user.disabled

    def identity(self, session_id: str) -> Identity:
        """The caller that a session of this user stands for."""
        return Identity("session", self.user.name, SCOPE_OF[self.user.role], None, None, session_id)


def user_id(name: str) -> str:
    """What tells users apart; any text is taken, so an id that no user can have may come out."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def checked_user_name(value: object) -> str:
    """A user's name as it is shown, in NFC.

    :raises InvalidField: too short or long, with a '/', a control or invisible character, or a space at an end.
    """
    if not isinstance(value, str):
        raise InvalidField("name", "name must be a text")
    name = unicodedata.normalize("NFC", value)
    identifier = user_id(name)
    if not identifier or len(name) > USER_NAME or len(identifier) > USER_NAME:
        raise InvalidField("name", f"name must have 1 to {USER_NAME} characters")
    for text in (name, identifier):
        if text != text.strip():
            raise InvalidField("name", "name must not begin or end with a space")
        if "/" in text or "\\" in text or text in (".", ".."):
            raise InvalidField(
                "name", "name must not hold '/' or '\\', and cannot be '.' or '..': it is part of a URL"
            )
        if _INVISIBLE.search(text) or any(unicodedata.category(one) in _BARRED for one in text):
            raise InvalidField("name", "name must not hold control or invisible characters")
    return name


def checked_role(value: Role | str) -> Role:
    """A role.

    :raises InvalidField: unknown.
    """
    try:
        return Role(value)
    except ValueError:
        raise InvalidField("role", f"role must be one of {', '.join(role.value for role in Role)}") from None


def to_document(stored: StoredUser) -> dict[str, Any]:
    """A user as stored: the hash, never the password."""
    user = stored.user
    return {
        "name": user.name,
        "role": user.role.value,
        "disabled": user.disabled,
        "created": user.created,
        "password_changed": user.password_changed,
        "created_by": user.created_by,
        "password_hash": stored.password_hash,
        "generation": stored.generation,
    }


def from_document(value: Mapping[str, Any]) -> StoredUser:
    """A stored user.

    :raises ValueError: it is not one.
    """
    try:
        name, disabled = value["name"], value["disabled"]
        password_hash, generation = value["password_hash"], value["generation"]
        texts = (name, password_hash, generation)
        if not all(isinstance(text, str) and text for text in texts) or not isinstance(disabled, bool):
            raise ValueError("a field is missing or of another type")
        user = User(
            id=user_id(name),
            name=name,
            role=Role(value["role"]),
            disabled=disabled,
            created=float(value["created"]),
            password_changed=float(value["password_changed"]),
            created_by=str(value.get("created_by", "")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return StoredUser(user, password_hash, generation)
