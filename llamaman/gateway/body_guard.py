"""What a JSON body may look like before anybody works with it. Read by the pipeline, before any dialect. Pure.

llama-server parses JSON, grammars and schemas recursively: a few hundred kilobytes of brackets end its process, and
with it every other client's stream. What is accepted here is within the bounds of :mod:`llamaman.limits`, is strict
UTF-8 JSON that every parser reads alike (no NaN, no lone surrogate, no repeated key), and has no number that is
longer than Python cares to read.

Nothing here is recursive. The text outside of strings is looked at first, at the speed of C and in pieces, so that
other threads have their turn; only what passed that is parsed. :mod:`llamaman.gateway.body_fields` then bounds what
single fields hold.
"""

from __future__ import annotations

import asyncio
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import orjson

from llamaman import limits
from llamaman.errors import InvalidField, InvalidRequest, LlamaManError, UnsupportedMediaType
from llamaman.gateway.body import splice
from llamaman.gateway.body_fields import check

#: Bodies over this are looked at on a thread.
ON_LOOP = 64 << 10
_PIECE = 256 << 10

_DIGIT_MARK = b"0"
_DIGITS = bytes(_DIGIT_MARK[0] if 48 <= byte < 58 else 32 for byte in range(256))
_TOO_LONG = _DIGIT_MARK * (limits.NUMBER_DIGITS + 1)
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_STEPS = bytes(1 if byte in b"[{" else 0xFF if byte in b"]}" else 0 for byte in range(256))

#: What stands before the name of a form's part, however a parser of forms takes quotes, spaces and letters.
_BEFORE_NAME = re.compile(rb"name\*?[ \t]{0,8}=[ \t]{0,8}[\"']?(?:[\w-]{0,16}'')?\Z", re.IGNORECASE)
#: A string, a bracket, or a number that is too long.
_TOKENS = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]|[0-9]{%d}' % len(_TOO_LONG),
    re.DOTALL,
)


def check_head(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a body in a coding, which nobody here decodes.

    :param headers: names in lower case.
    """
    coding = headers.get(b"content-encoding")
    if coding and coding.strip().lower() != b"identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")


async def read_form(raw: bytes) -> None:
    """:func:`check_form`, on a thread where it takes long."""
    if len(raw) <= ON_LOOP:
        check_form(raw)
    else:
        await asyncio.to_thread(check_form, raw)


def check_form(raw: bytes) -> None:
    """Refuse in an upload what would be looked through in JSON: the engine takes a form's parts for fields.

    :raises InvalidField: a grammar is among them.
    """
    for found in re.finditer(b"grammar", raw):
        at = found.start()
        if _BEFORE_NAME.search(raw, max(0, at - 48), at):
            raise InvalidField("grammar", "grammar cannot be given with an upload")


async def read_list(raw: bytes) -> None:
    """:func:`check_list`, on a thread where it takes long."""
    if len(raw) <= ON_LOOP:
        check_list(raw)
    else:
        await asyncio.to_thread(check_list, raw)


def check_list(raw: bytes) -> None:
    """See that a body is a list of objects within the same bounds.

    :raises InvalidRequest: which bound it is not within.
    """
    if not raw or raw.isspace():
        raise InvalidRequest("missing request body")
    members = _check_text(raw)
    found = _loaded(raw)
    if type(found) is not list or not all(type(each) is dict for each in found):
        raise InvalidRequest("the body must be a JSON list of objects")
    if members != sum(map(_look_through, found)):
        raise _repeated(raw)


async def read_json(raw: bytes) -> dict[str, Any]:
    """:func:`parse`, on a thread where it takes long."""
    return parse(raw) if len(raw) <= ON_LOOP else await asyncio.to_thread(parse, raw)


def parse(raw: bytes) -> dict[str, Any]:
    """A request body that is within all bounds.

    :raises InvalidRequest: which bound it is not within, and the field where that is known.
    """
    if not raw or raw.isspace():
        raise InvalidRequest("missing request body")
    members = _check_text(raw)
    body = _loaded(raw)
    if type(body) is not dict:
        raise InvalidRequest("the body must be a JSON object")
    if members != _look_through(body):
        raise _repeated(raw)
    check(body, len(raw))
    return body


def _loaded(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def without_slot(raw: bytes, body: dict[str, Any]) -> bytes:
    """Take the choice of a slot out of a body and its text: which slot serves whom is the pool's business.

    In the text it is overruled by the value for "any", which is the default.
    """
    if "id_slot" not in body:
        return raw
    del body["id_slot"]
    return splice(raw, {"id_slot": -1})


# --- the text ----------------------------------------------------------------------------------------


def _check_text(raw: bytes) -> int:
    """Bound depth, values and digits; returns the number of members of all objects.

    Of text that is not JSON it may say anything, except that it never passes what is JSON and out of bounds.
    """
    if len(raw) > ON_LOOP:
        return _check_pieces(raw)
    text = _outside(raw, inside=False)[0]
    opened = text.count(b"[") + text.count(b"{")
    if opened > limits.BODY_DEPTH and _deepest(text, 0) > limits.BODY_DEPTH:
        raise _refusal(raw)
    if len(text) > limits.NUMBER_DIGITS and _TOO_LONG in text.translate(_DIGITS):
        raise _refusal(raw)
    return text.count(b":")


def _check_pieces(raw: bytes) -> int:
    depth = objects = values = members = 0
    tail = b""
    for text in _pieces(raw):
        opened = text.count(b"[") + text.count(b"{")
        if depth + opened > limits.BODY_DEPTH and _deepest(text, depth) > limits.BODY_DEPTH:
            raise _refusal(raw)
        depth += opened - text.count(b"]") - text.count(b"}")
        objects += opened
        if objects > limits.BODY_OBJECTS:
            raise InvalidRequest(f"the body holds more than {limits.BODY_OBJECTS:,} lists and objects")
        values += opened + text.count(b",")
        if values > limits.BODY_VALUES:
            raise InvalidRequest(f"the body holds more than {limits.BODY_VALUES:,} values")
        members += text.count(b":")
        if _TOO_LONG in (tail + text).translate(_DIGITS):
            raise _refusal(raw)
        tail = (tail + text)[-limits.NUMBER_DIGITS :]
    return members


def _pieces(raw: bytes) -> Iterator[bytes]:
    """The text outside of strings."""
    start, end, inside = 0, 0, False
    while start < len(raw):
        end = min(start + _PIECE, len(raw))
        piece = raw[start:end]
        if piece.endswith(b"\\") and (len(piece) - len(piece.rstrip(b"\\"))) % 2 and end < len(raw):
            end -= 1  # a backslash and what it escapes stay together
            piece = piece[:-1]
        start = end
        text, inside = _outside(piece, inside=inside)
        yield text


def _outside(piece: bytes, *, inside: bool) -> tuple[bytes, bool]:
    """What of a piece lies outside of strings, and whether it ends inside of one.

    :param inside: whether it begins inside of one.
    """
    if b"\\" in piece:
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = piece.split(b'"')
    return b'"'.join(parts[inside::2]), inside ^ (not len(parts) & 1)


def _deepest(text: bytes, depth: int) -> int:
    """The deepest level that a text without strings reaches when it begins at ``depth``."""
    steps = array("b", text.translate(_STEPS, _NO_BRACKETS))
    return max(accumulate(steps, initial=depth))


def _refusal(raw: bytes) -> LlamaManError:
    """Name the field that is nested too deeply, or that holds too long a number."""
    depth, field, last = 0, "", b""
    for found in _TOKENS.finditer(raw):
        token = found[0]
        if token[:1] == b'"':
            last = token if depth == 1 else last
        elif token in b"[{":
            if depth == 1:
                field = _name(last)
            depth += 1
            if depth > limits.BODY_DEPTH:
                return _at(field, f"is nested deeper than {limits.BODY_DEPTH} levels")
        elif token in b"]}":
            depth -= 1
        else:
            field = _name(last) if depth == 1 else field
            return _at(field, f"holds a number of more than {limits.NUMBER_DIGITS} digits")
    return InvalidRequest("the body is not valid JSON")


def _at(field: str, what: str) -> LlamaManError:
    return InvalidField(field, f"{field} {what}") if field else InvalidRequest(f"the body {what}")


def _name(token: bytes) -> str:
    """A field's name as it may stand in a message; empty for what is none."""
    try:
        name = orjson.loads(token)
    except orjson.JSONDecodeError:
        return ""
    return name if isinstance(name, str) and len(name) <= 64 and name.isprintable() else ""


# --- what was parsed ---------------------------------------------------------------------------------


def _look_through(body: dict[str, Any]) -> int:
    """The number of members of all objects; it is less than that of the text where a key is repeated.

    :raises InvalidField: what is written into strings as JSON is out of bounds.
    """
    count = 0
    found: list[Any] = [body]
    arguments: list[str] = []
    for each in found:  # grows meanwhile
        inner = each
        if type(each) is dict:
            count += len(each)
            inner = each.values()
            for name, value in each.items():
                if len(name) == 9 and type(value) is str and name.lower() == "arguments":
                    arguments.append(value)
        for value in inner:
            if type(value) is dict or type(value) is list:
                found.append(value)  # noqa: PERF401 - a list of its own costs more than the few values of most
    if arguments:
        _check_arguments(arguments)
    return count


def _check_arguments(texts: Sequence[str]) -> None:
    """JSON written into strings: what tools were called with, which llama-server parses for a model's template.

    It is bounded like the body around it.
    """
    is_deep = False
    objects = values = 0  # at most: what stands in their own strings is counted, too
    for text in texts:
        opened = text.count("[") + text.count("{")
        is_deep = is_deep or opened > limits.BODY_DEPTH
        objects += opened
        values += opened + text.count(",")
    if not is_deep and objects <= limits.BODY_OBJECTS and values <= limits.BODY_VALUES:
        return
    objects = values = 0
    for text in texts:
        depth = 0
        for outside in _pieces(text.encode()):
            opened = outside.count(b"[") + outside.count(b"{")
            objects += opened
            values += opened + outside.count(b",")
            if objects > limits.BODY_OBJECTS:
                raise _at("arguments", f"hold more than {limits.BODY_OBJECTS:,} lists and objects")
            if values > limits.BODY_VALUES:
                raise _at("arguments", f"hold more than {limits.BODY_VALUES:,} values")
            if depth + opened > limits.BODY_DEPTH and _deepest(outside, depth) > limits.BODY_DEPTH:
                raise _at("arguments", f"is nested deeper than {limits.BODY_DEPTH} levels")
            depth += opened - outside.count(b"]") - outside.count(b"}")


def _repeated(raw: bytes) -> LlamaManError:
    """Name the key that is there twice; it may be written differently each time."""
    twice: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                twice.append(name)
            seen.add(name)

    json.loads(raw, object_pairs_hook=note)
    name = _name(orjson.dumps(twice[0])) if twice else ""
    if not name:
        return InvalidRequest("the body gives a key more than once")
    return InvalidField(name, f"{name} is given more than once")
