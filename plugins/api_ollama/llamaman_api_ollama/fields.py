"""Reading members of a JSON body by Go's rules. Pure.

Names match in any case and the last of several counts, ``null`` means "not given", unknown members are ignored,
and numbers for whole numbers must be whole. Everything else of a wrong type is a 400 that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamaman import InvalidField

INT32 = 2**31 - 1


class Fields:
    """The members of one JSON object.

    :param where: what the object is, in front of a member's name in errors, such as ``messages[2].``.
    """

    __slots__ = ("_members", "_where")

    def __init__(self, body: Mapping[str, Any], where: str = "") -> None:
        self._members = {name.lower(): value for name, value in body.items() if value is not None}
        self._where = where

    def get(self, name: str) -> Any:
        """A member as it is, None when it was not given."""
        return self._members.get(name)

    def text(self, name: str) -> str:
        """A string; "" when it was not given.

        :raises InvalidField: it is none.
        """
        value = self._members.get(name, "")
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A boolean.

        :raises InvalidField: it is none.
        """
        value = self._members.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str) -> int | None:
        """A whole number; None when it was not given.

        :raises InvalidField: it is none.
        """
        value = self._members.get(name)
        if value is None:
            return None
        number = whole(value)
        if number is None:
            raise self.wrong(name, "an integer")
        return number

    def array(self, name: str) -> list[Any]:
        """A list; empty when it was not given.

        :raises InvalidField: it is none.
        """
        value = self._members.get(name, [])
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def object(self, name: str) -> dict[str, Any]:
        """An object; empty when it was not given.

        :raises InvalidField: it is none.
        """
        value = self._members.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty when it was not given.

        :raises InvalidField: it is none.
        """
        values = self.array(name)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(name, "a list of strings")
        return values

    def wrong(self, name: str, what: str) -> InvalidField:
        """The refusal of a member's type."""
        return InvalidField(self._where + name, f"{self._where}{name} must be {what}")


def whole(value: Any) -> int | None:
    """A JSON number that is whole, as an int; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None
