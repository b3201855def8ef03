"""How long a model is asked to stay: Go's durations and plain seconds. Pure.

Read by the dialect for ``keep_alive``. A value that is refused is refused in the words of Go's parser, which is
what clients of Ollama know.
"""

from __future__ import annotations

import math
import re
from typing import Any

from llamaman import InvalidField

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\N{MICRO SIGN}s": 1e-6,
    "\N{GREEK SMALL LETTER MU}s": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_TERM = re.compile(r"([0-9]*\.?[0-9]*)([^0-9.]*)")
_LONGEST_S = (2**63 - 1) / 1e9  # what fits into Go's duration
_SHOWN = 40
#: Characters of a duration; there are no more units than fit in here, and reading takes time.
_LONGEST = 256


def keep_alive(value: Any) -> float | None:
    """Seconds of idleness that a request asks for.

    :return: ``math.inf`` for every negative value and for what is longer than Go can say; None when not given.
    :raises InvalidField: neither a number nor a Go duration.
    """
    if value is None:
        return None
    if isinstance(value, str):
        seconds = parse(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        kind = {bool: "bool", list: "list", dict: "object"}.get(type(value), type(value).__name__)
        raise InvalidField("keep_alive", f"Unsupported type: '{kind}'")
    return math.inf if seconds < 0 or seconds > _LONGEST_S else seconds


def parse(text: str) -> float:
    """Seconds of a Go duration such as ``1h30m``, ``1.5h``, ``-1s`` or ``0``.

    :raises InvalidField: in the words of Go's parser.
    """
    shown = '"' + text[:_SHOWN].replace('"', '\\"') + '"'
    if len(text) > _LONGEST:
        raise InvalidField("keep_alive", f"time: invalid duration {shown}")
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest):
        term = _TERM.match(rest, at)
        number, unit = term.groups() if term else ("", "")
        if number in ("", "."):
            raise InvalidField("keep_alive", f"time: invalid duration {shown}")
        if not unit:
            raise InvalidField("keep_alive", f"time: missing unit in duration {shown}")
        if unit not in _SECONDS:
            raise InvalidField("keep_alive", f'time: unknown unit "{unit[:_SHOWN]}" in duration {shown}')
        total += float(number) * _SECONDS[unit]
        at += len(number) + len(unit)
    if not at:
        raise InvalidField("keep_alive", f"time: invalid duration {shown}")
    return sign * total
