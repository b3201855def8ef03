"""Which passwords are taken. Read by the use cases in ``accounts.py``. Pure but for the bundled list.

Length and a list of the most common ones, and no rules about kinds of characters (NIST SP 800-63B, 5.1.1.2).
"""

from __future__ import annotations

import string
from functools import cache
from importlib.resources import files

from llamaman.core.accounts.hasher import normalised
from llamaman.core.accounts.user_record import user_id
from llamaman.errors import InvalidField
from llamaman.limits import PASSWORD_LONGEST, PASSWORD_SHORTEST

_TAIL = string.digits + string.punctuation
#: As many characters, repeated, are guessed before any list is tried.
_SHORT_UNIT = 4
LIST = "common_passwords.txt"


def check_password(password: object, name: str, field: str = "password") -> str:
    """A password that may be set.

    :param name: of its user. :param field: named in the refusal, which never repeats the password.
    :raises InvalidField: too short or long, the user's name, or a common one.
    """
    if not isinstance(password, str):
        raise InvalidField(field, f"{field} must be a text")
    text = normalised(password)
    if not PASSWORD_SHORTEST <= len(text) <= PASSWORD_LONGEST:
        raise InvalidField(
            field, f"{field} must have {PASSWORD_SHORTEST} to {PASSWORD_LONGEST} characters, not {len(text)}"
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidField(field, f"{field} holds half of a character; type it again")
    if is_the_name(text, name):
        raise InvalidField(field, f"{field} is the user's name with nothing to guess added")
    if is_common(text):
        raise InvalidField(
            field,
            f"{field} is one of the most common passwords, or one with digits or signs added; take three or more "
            "words that do not belong together, or what a password manager makes",
        )
    return password


def is_the_name(password: str, name: str) -> bool:
    """Whether only digits, signs and repetition tell it from the name."""
    identifier = user_id(name)
    left = user_id(password).replace(identifier, "") if identifier else password
    return left != user_id(password) and not left.strip(_TAIL + string.whitespace)


def is_common(password: str) -> bool:
    """Whether it is on the list, or a few characters over and over: also repeated, or with digits and signs added."""
    text = password.casefold()
    for candidate in (text, text.rstrip(_TAIL)):
        unit = _repeated(candidate)
        if candidate in common_passwords() or unit in common_passwords():
            return True
        if len(unit) <= _SHORT_UNIT and unit != candidate:
            return True
    return False


def _repeated(text: str) -> str:
    """The shortest text that gives this one when written several times; the text itself where there is none."""
    return text[: (text + text).find(text, 1)]


@cache
def common_passwords() -> frozenset[str]:
    """The bundled list, casefolded."""
    text = files(__package__).joinpath(LIST).read_text(encoding="utf-8")
    return frozenset(line.casefold() for line in text.splitlines() if line and not line.startswith("# "))
