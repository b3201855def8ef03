"""One setting: its declaration and the strict reading of its values. Read by `settings.py` and plugins.

Values come from JSON and are never coerced; values from the environment are text and are parsed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from llamaman.core.config_values import BOOLEAN, has_controls
from llamaman.errors import InvalidField

SettingType = Literal["bool", "int", "float", "text", "choice", "list", "time"]

#: What a secret reads as; sent back, it means "unchanged".
MASK = "********"


@dataclass(frozen=True, slots=True)
class Setting:
    """One run-time setting.

    :ivar name: dotted where it lies in an object, such as ``cleanup.downloads_enabled``.
    :ivar type: ``list`` is a list of texts; ``time`` is epoch seconds or null.
    :ivar scope: ``node`` settings are kept per node of a cluster.
    :ivar editable: False: set by LlamaMan itself, accepted and ignored in what users send.
    :ivar restart: a change takes effect with the next start of LlamaMan.
    :ivar pattern: a regular expression that a text, or every text of a list, must match as a whole; Python and
        JavaScript must read it alike. ``form`` says the same in words, for the error: "must be <form>".
    """

    name: str
    type: SettingType
    default: Any
    help: str
    scope: Literal["shared", "node"] = "shared"
    env: str | None = None
    editable: bool = True
    restart: bool = False
    secret: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    form: str = ""


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a number that a float can hold; JSON's whole numbers have no end."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read(setting: Setting, value: object) -> Any:
    """The value in its canonical form.

    :raises InvalidField: names the setting and what is allowed.
    """
    name = setting.name
    match setting.type:
        case "bool":
            if not isinstance(value, bool):
                raise InvalidField(name, f"{name} must be true or false")
        case "int":
            if not isinstance(value, int) or isinstance(value, bool):
                raise InvalidField(name, f"{name} must be an integer")
            _in_range(setting, value)
        case "float":
            if not is_number(value):
                raise InvalidField(name, f"{name} must be a number")
            _in_range(setting, value)
        case "time":
            if value is not None and not is_number(value):
                raise InvalidField(name, f"{name} must be a time in epoch seconds or null")
        case "choice":
            if not isinstance(value, str) or value not in setting.choices:
                raise InvalidField(name, f"{name} must be one of {', '.join(setting.choices)}")
        case "text":
            _text(setting, value)
        case "list":
            if not isinstance(value, list | tuple) or len(value) > 1000:
                raise InvalidField(name, f"{name} must be a list of at most 1000 strings")
            return tuple(_text(setting, item) for item in value)
    return value


def read_text(setting: Setting, text: str) -> Any:
    """The value of an environment variable.

    :raises InvalidField: as :func:`read`.
    """
    name = setting.name
    try:
        match setting.type:
            case "bool":
                return BOOLEAN.parse(text)
            case "int":
                return read(setting, int(text))
            case "float" | "time":
                return read(setting, float(text))
            case "list":
                return read(setting, [item.strip() for item in text.split(",") if item.strip()])
            case _:
                return read(setting, text)
    except ValueError:
        raise InvalidField(name, f"{name} must be a value of type {setting.type}") from None


def _in_range(setting: Setting, number: float) -> None:
    low, high = setting.minimum, setting.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        if low is None or high is None:
            span = f"at least {low:g}" if low is not None else f"at most {high:.10g}"
        else:
            span = f"from {low:g} to {high:.10g}"
        raise InvalidField(setting.name, f"{setting.name} must be {span}")


def _text(setting: Setting, value: object) -> str:
    name = setting.name
    if not isinstance(value, str) or len(value) > 4096 or has_controls(value):
        raise InvalidField(name, f"{name} must be text of at most 4096 characters without control characters")
    if setting.pattern is not None and not re.fullmatch(setting.pattern, value):
        raise InvalidField(name, f"{name} must be {setting.form}, not '{value[:100]}'")
    return value
