"""Strict reading of management bodies: a request either is what the route takes or is a 4xx that says why.

Read by the REST blueprints. Everything here is pure; nothing below may turn a hostile body into a 500.
Duplicate keys: the last one wins, as in Python's own parser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llamaman.errors import InvalidField, InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from llamaman.limits import MANAGEMENT_BODY as MAX_BODY
from llamaman.limits import MANAGEMENT_DEPTH as MAX_DEPTH


@dataclass(frozen=True, slots=True)
class Check:
    """The rule of one field: called with its name and value, it returns the value in the form the route works with.

    :ivar run: raises InvalidField naming the field.
    :ivar schema: the same rule in JSON Schema (OpenAPI 3.1), for the API's description.
    """

    run: Callable[[str, Any], Any]
    schema: Mapping[str, Any]

    def __call__(self, name: str, value: Any) -> Any:
        return self.run(name, value)


def read_object(
    data: bytes,
    content_type: str | None,
    *,
    content_encoding: str | None = None,
    optional: bool = False,
    limit: int = MAX_BODY,
) -> dict[str, Any]:
    """The JSON object in a request body.

    :param optional: an absent body counts as ``{}``.
    :raises UnsupportedMediaType: not application/json in UTF-8, or compressed.
    :raises PayloadTooLarge: more than ``limit`` bytes.
    :raises InvalidRequest: not JSON, not an object, NaN or Infinity, too deep, not UTF-8, a lone surrogate.
    """
    if optional and not data:
        return {}
    if len(data) > limit:
        raise PayloadTooLarge(f"the request body is larger than {limit} bytes")
    _require_json(content_type, content_encoding)
    value = _parse(data)
    if not isinstance(value, dict):
        raise InvalidRequest(f"the request body must be a JSON object, not {_kind(value)}")
    _walk(value)
    return value


def pick(
    body: Mapping[str, Any], checks: Mapping[str, Check], required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Check every field of a body by name and return the given ones.

    :raises InvalidField: an unknown, wrong or missing field, by name.
    """
    for name in body:
        if name not in checks:
            allowed = ", ".join(checks)
            raise InvalidField(name, f"unknown field '{shown(name)}'; allowed are {allowed}")
    for name in required:
        if body.get(name) is None:
            raise InvalidField(name, f"{name} is required")
    return {name: checks[name](name, value) for name, value in body.items()}


def text(maximum: int) -> Check:
    """Text of at most ``maximum`` characters; tabs and line ends are the only control characters in it."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise InvalidField(name, f"{name} must be text, not {_kind(value)}")
        if len(value) > maximum:
            raise InvalidField(name, f"{name} is longer than {maximum} characters")
        if any(ord(letter) < 32 and letter not in "\t\n\r" for letter in value):
            raise InvalidField(name, f"{name} must not contain control characters")
        return value

    return Check(check, {"type": "string", "maxLength": maximum})


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidField(name, f"{name} must be true or false, not {_kind(value)}")
    return value


#: ``true`` or ``false``.
boolean: Final = Check(_boolean, {"type": "boolean"})


def integer(minimum: int, maximum: int) -> Check:
    """A whole number within inclusive bounds."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidField(name, f"{name} must be a whole number, not {_kind(value)}")
        if not minimum <= value <= maximum:
            raise InvalidField(name, f"{name} must be between {minimum} and {maximum}")
        return value

    return Check(check, {"type": "integer", "minimum": minimum, "maximum": maximum})


def texts(count: int, maximum: int) -> Check:
    """A list of at most ``count`` texts of at most ``maximum`` characters."""
    one = text(maximum)

    def check(name: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise InvalidField(name, f"{name} must be a list, not {_kind(value)}")
        if len(value) > count:
            raise InvalidField(name, f"{name} has more than {count} entries")
        return tuple(one(name, item) for item in value)

    return Check(check, {"type": "array", "maxItems": count, "items": dict(one.schema)})


def one_of(*allowed: str) -> Check:
    """One of a few words."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise InvalidField(name, f"{name} must be one of {', '.join(allowed)}")
        return value

    return Check(check, {"type": "string", "enum": list(allowed)})


def nullable(check: Check) -> Check:
    """The same, or null."""
    return Check(
        lambda name, value: None if value is None else check(name, value),
        {"anyOf": [dict(check.schema), {"type": "null"}]},
    )


#: Leaves the value to whoever owns its rules.
anything: Final = Check(lambda name, value: value, {})


def shown(name: str) -> str:
    """A caller's field name in an error: short, and without anything a terminal would obey."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in name[:65])
    return printable[:64] + ("..." if len(printable) > 64 else "")


def is_compressed(content_encoding: str | None) -> bool:
    """Whether a body comes in another form than its own."""
    return bool(content_encoding and content_encoding.strip().lower() != "identity")


def is_of_type(kind: str, content_type: str | None) -> bool:
    """Whether a Content-Type names ``kind``, in UTF-8 if it names a charset at all."""
    named, *parameters = [part.strip().lower() for part in (content_type or "").split(";")]
    charsets = [part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset=")]
    return named == kind and all(charset in ("utf-8", "utf8") for charset in charsets)


def _require_json(content_type: str | None, content_encoding: str | None) -> None:
    if is_compressed(content_encoding):
        raise UnsupportedMediaType("a request body must not be compressed (Content-Encoding)")
    if not is_of_type("application/json", content_type):
        raise UnsupportedMediaType("send the body as 'Content-Type: application/json' in UTF-8")


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the request body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InvalidRequest(f"the request body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise InvalidRequest(f"the request body is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise InvalidRequest("the request body holds a number with too many digits") from None


def _refuse_constant(word: str) -> Any:
    raise InvalidRequest(f"the request body holds {word}, which is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidRequest("the request body holds a number too large for a float")
    return value


def _walk(root: Any) -> None:
    """Bound the depth and refuse lone surrogates, without recursion."""
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _refuse_surrogates(value)
            elif isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        if not below:
            return
        level = below
    raise InvalidRequest(f"the request body is nested deeper than {MAX_DEPTH} levels")


def _refuse_surrogates(value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(
            "the request body holds half of a surrogate pair, which is no character"
        ) from None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "an object" if isinstance(value, dict) else "a list"
