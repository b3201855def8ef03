"""Strict reading of launch values as JSON carries them. Read by `launch.py` only.

Nothing is coerced: ``true`` is no number, ``"4096"`` is no number, NaN and infinity are none either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llamaman.core.config_values import GPU_DEVICES, has_controls
from llamaman.core.launch_options import Kind, LaunchOption
from llamaman.core.setting import is_number
from llamaman.errors import InvalidField

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MEMORY = re.compile(r"([0-9]{1,15})(?:([kmgt])(?:i?b)?|b)?", re.IGNORECASE)
#: Docker refuses less, and no engine starts with less.
_LEAST_MEMORY = 6 << 20
_PROPORTIONS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?(,[0-9]{1,6}(\.[0-9]{1,6})?){0,31}")
_ENGINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,255}")


def memory_bytes(text: str) -> int:
    """``32g`` or ``8192m`` -> bytes (units are powers of 1024).

    :raises ValueError: for anything else.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return int(match[1]) * _UNITS[(match[2] or "").lower()]


def read(option: LaunchOption, value: object) -> Any:
    """The normalised value of one option.

    :raises InvalidField: names the option and what it takes.
    """
    if option.nullable and (value is None or (isinstance(value, str) and not value.strip())):
        return None
    return _READERS[option.kind](option, value)


def _refuse(option: LaunchOption, reason: str) -> InvalidField:
    return InvalidField(option.name, f"{option.name} {reason}")


def _in_range(option: LaunchOption, number: float) -> None:
    low, high = option.minimum, option.maximum
    if low is not None and number < low:
        # the words that clients of the launch API have always been told
        raise _refuse(option, "must be greater than 0" if low == 1 else f"must be at least {low:g}")
    if high is not None and number > high:
        raise _refuse(option, f"must be at most {high:.10g}")


def _int(option: LaunchOption, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refuse(option, "must be an integer")
    _in_range(option, value)
    return value


def _float(option: LaunchOption, value: object) -> float:
    if not is_number(value):
        raise _refuse(option, "must be a number")
    _in_range(option, value)
    return value


def _bool(option: LaunchOption, value: object) -> bool:
    if not isinstance(value, bool):
        raise _refuse(option, "must be true or false")
    return value


def _text(option: LaunchOption, value: object) -> str:
    limit = int(option.maximum or 4096)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _refuse(option, "must be a string")
    if len(value) > limit:
        raise _refuse(option, f"must be at most {limit} characters")
    if has_controls(value):
        raise _refuse(option, "must not hold control characters such as line breaks")
    return value.strip()


def _choice(option: LaunchOption, value: object) -> str:
    if not isinstance(value, str) or value not in option.choices:
        raise _refuse(option, "must be one of " + ", ".join(option.choices))
    return value


def _layers(option: LaunchOption, value: object) -> int | str:
    if value == "auto":
        return "auto"
    if value == "all":
        return -1
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refuse(option, "must be an integer (-1 = all, 0 = none) or auto")
    _in_range(option, value)
    return value


def _memory(option: LaunchOption, value: object) -> str:
    text = _text(option, value)
    try:
        size = memory_bytes(text)
    except ValueError:
        raise _refuse(option, "must be a size such as 32g or 8192m") from None
    if not _LEAST_MEMORY <= size <= 1 << 50:
        raise _refuse(option, f"must be from {_LEAST_MEMORY >> 20}m to 1024t")
    return text.lower()


def _devices(option: LaunchOption, value: object) -> str:
    text = _text(option, value)
    if text.lower() in ("", "all"):
        return text.lower()
    try:
        devices: str = GPU_DEVICES.parse(text)
    except ValueError:
        raise _refuse(option, f"must be {GPU_DEVICES.allowed}") from None
    return devices


def _proportions(option: LaunchOption, value: object) -> str:
    text = _text(option, value).replace(" ", "")
    if not _PROPORTIONS.fullmatch(text):
        raise _refuse(option, "must be numbers separated by commas, such as 3,1")
    return text


def _engine(option: LaunchOption, value: object) -> str:
    text = _text(option, value)
    if not _ENGINE.fullmatch(text) or ".." in text:
        raise _refuse(option, "must be the name of an engine or of a container image, not a path")
    return text


_READERS: dict[Kind, Callable[[LaunchOption, object], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "text": _text,
    "choice": _choice,
    "layers": _layers,
    "memory": _memory,
    "devices": _devices,
    "proportions": _proportions,
    "file": _text,
    "engine": _engine,
}
