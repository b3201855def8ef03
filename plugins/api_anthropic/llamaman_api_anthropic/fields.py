"""Reading fields of a request with Anthropic's words for what is wrong with them. Pure.

Read by the modules that translate requests. ``place`` is a field's path as Anthropic writes it, such as
``messages.0.content``. All raise :class:`llamaman.InvalidField`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamaman import InvalidField


def required(body: Mapping[str, Any], name: str, place: str = "") -> Any:
    """The value of a field that must be there."""
    if body.get(name) is None:
        raise invalid(join(place, name), "Field required")
    return body[name]


def text(value: Any, place: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise invalid(place, "Input should be a valid string")
    return value


def obj(value: Any, place: str) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise invalid(place, "Input should be an object")
    return value


def array(value: Any, place: str) -> list[Any]:
    """An array."""
    if not isinstance(value, list):
        raise invalid(place, "Input should be a valid array")
    return value


def flag(value: Any, place: str) -> bool:
    """A boolean; false when it is null."""
    if value is not None and not isinstance(value, bool):
        raise invalid(place, "Input should be a valid boolean")
    return bool(value)


def whole(value: Any, place: str, least: int) -> int:
    """An integer of at least ``least`` that the engine can hold."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(place, "Input should be a valid integer")
    if not least <= value < 1 << 31:
        raise invalid(place, f"Input should be greater than or equal to {least} and less than 2147483648")
    return value


def number(value: Any, place: str, least: float, most: float) -> float:
    """A number in a range."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise invalid(place, "Input should be a valid number")
    if not least <= value <= most:
        raise invalid(place, f"Input should be from {least:g} to {most:g}")
    return value


def join(place: str, name: str | int) -> str:
    """The path of a member."""
    return f"{place}.{name}" if place else str(name)


def invalid(place: str, what: str) -> InvalidField:
    """The error for a field."""
    return InvalidField(place, f"{place}: {what}")
