"""Reading, patching and writing JSON on the hot path. Pure.

orjson is four times as fast as the standard library here, and as strict as an engine must be protected:
no NaN or Infinity, no invalid UTF-8, no lone surrogates, at most 1,024 levels deep.

A patch is spliced in front of the closing brace instead of re-serialising the body: llama.cpp's parser
keeps the last value of a repeated key, and a test against real engines holds it to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from llamaman.errors import InvalidRequest

_WHITESPACE = b" \t\r\n"


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a request body.

    :raises InvalidRequest: not UTF-8 JSON, not an object, NaN or Infinity, nested too deeply.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def dump(value: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return orjson.dumps(value)


def splice(raw: bytes, patch: Mapping[str, Any]) -> bytes:
    """Lay ``patch`` over the top level of a JSON object given as text.

    :param raw: the text of an object, as :func:`parse_object` has accepted it.
    """
    if not patch:
        return raw
    head = raw.rstrip(_WHITESPACE)[:-1].rstrip(_WHITESPACE)
    added = orjson.dumps(patch)[1:]
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
    engine, client = (orjson.dumps(name) for name in names)
    return text.replace(b'"model":' + engine, b'"model":' + client)


def patched(body: bytes, patch: Mapping[str, Any]) -> bytes:
    """Lay a patch of dotted paths over a body; without dots the body is not parsed again."""
    if not any("." in path for path in patch):
        return splice(body, patch)
    data = parse_object(body)
    for path, value in patch.items():
        data = set_path(data, path, value)
    return dump(data)
