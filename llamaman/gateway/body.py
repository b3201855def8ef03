"""Reading and patching JSON bodies on the hot path. Pure.

A patch is spliced in front of the closing brace instead of re-serialising the body: llama.cpp's parser
keeps the last value of a repeated key, and a test against real engines holds it to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from llamaman.errors import InvalidRequest

_WHITESPACE = b" \t\r\n"


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a request body.

    :raises InvalidRequest: not UTF-8 JSON, not an object, NaN or Infinity, nested too deeply.
    """
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidRequest("the JSON body is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def splice(raw: bytes, patch: Mapping[str, Any]) -> bytes:
    """Lay ``patch`` over the top level of a JSON object given as text.

    :param raw: the text of an object, as :func:`parse_object` has accepted it.
    """
    if not patch:
        return raw
    head = raw.rstrip(_WHITESPACE)[:-1].rstrip(_WHITESPACE)
    added = json.dumps(patch, ensure_ascii=False, separators=(",", ":")).encode()[1:]
    return head + (added if head.endswith(b"{") else b"," + added)


def set_path(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of ``body`` with the value at a dotted path of object keys replaced."""
    key, _, rest = path.partition(".")
    if not rest:
        return {**body, key: value}
    inner = body.get(key)
    return {**body, key: set_path(inner if isinstance(inner, dict) else {}, rest, value)}


def rename(text: bytes, names: tuple[str, str] | None) -> bytes:
    """Exchange the value of every ``model`` member in compact JSON text.

    Quotes inside a JSON string are escaped, so this cannot hit a prompt or an answer.
    """
    if not names:
        return text
    engine, client = (json.dumps(name, ensure_ascii=False).encode() for name in names)
    return text.replace(b'"model":' + engine, b'"model":' + client)
