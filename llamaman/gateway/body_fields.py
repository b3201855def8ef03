"""What single fields of a parsed body may hold, in every client API alike. Read by `body_guard.py`. Pure.

A grammar's brackets, a schema's levels, a pattern's length and the names that it searches by regular expressions are
what llama-server recurses over. Types are not checked here: a dialect or the engine knows best what a field must be.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any

import orjson

from llamaman import limits
from llamaman.errors import InvalidField

#: What of a grammar is no structure: literals, character classes, tokens and comments.
_NO_STRUCTURE = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"|\[(?:[^\]\\]++|\\.)*+\]|<[^>\s]*+>|#[^\r\n]*+',
    re.DOTALL,
)
_PAREN_STEPS = bytes(1 if byte == 40 else 0xFF if byte == 41 else 0 for byte in range(256))
_NO_PARENS = bytes(byte for byte in range(256) if byte not in b"()")

#: "From n to m times", of a grammar and of a pattern.
_REPEATED = re.compile(rb"\{\s*([0-9]+)\s*,\s*([0-9]+)\s*\}")
_FEWEST_AND_MOST = (("minLength", "maxLength"), ("minItems", "maxItems"))
#: The engine writes a rule for each number of digits, and cannot count those of a larger bound without another.
_FARTHEST = 10**15
_LEAST, _GREATEST = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")

#: A body of fewer bytes has no text that is too long.
_SHORTEST = min(limits.PATTERN_BYTES, limits.SCHEMA_NAME_BYTES)

_Check = Callable[[str, Any, int], None]


def check(body: Mapping[str, Any], size: int) -> None:
    """Refuse what is out of bounds. Names count in any case, as they do in the Ollama API.

    :param size: bytes of the body's text; no value is larger than it.
    :raises InvalidField: the field and its limit.
    """
    for name, value in body.items():
        if found := _CHECKS.get(name.lower()):
            found(name, value, size)


def _at_most(most: int) -> _Check:
    def number(name: str, value: Any, _size: int) -> None:
        if isinstance(value, int | float) and value > most:
            raise InvalidField(name, f"{name} must be at most {most}")

    return number


def _length(most: int) -> _Check:
    def length(name: str, value: Any, _size: int) -> None:
        if isinstance(value, list | dict) and len(value) > most:
            raise InvalidField(name, f"{name} may have at most {most:,} entries")

    return length


def _stop(name: str, value: Any, size: int) -> None:
    if isinstance(value, list) and len(value) > limits.STOPS:
        raise InvalidField(name, f"{name} may hold at most {limits.STOPS} texts")
    if size <= limits.STOP_BYTES:
        return
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and _is_over(text, limits.STOP_BYTES):
            raise InvalidField(name, f"a text of {name} may have at most {limits.STOP_BYTES:,} bytes")


def _grammar(name: str, value: Any, size: int) -> None:
    if not isinstance(value, str):
        return
    if size > limits.GRAMMAR_BYTES and _is_over(value, limits.GRAMMAR_BYTES):
        raise InvalidField(name, f"{name} may have at most {limits.GRAMMAR_BYTES >> 10} KiB")
    is_deep = value.count("(") > limits.GRAMMAR_DEPTH
    if not is_deep and "{" not in value:
        return
    # Replaced by a space, not by nothing: what stands on either side of it must not grow together.
    text = _NO_STRUCTURE.sub(b" ", value.encode())
    if _is_reversed(text):
        raise InvalidField(name, f"{name} repeats something at least n and at most m times with n > m")
    if not is_deep:
        return
    steps = array("b", text.translate(_PAREN_STEPS, _NO_PARENS))
    if max(accumulate(steps, initial=0)) > limits.GRAMMAR_DEPTH:
        raise InvalidField(name, f"{name} is nested deeper than {limits.GRAMMAR_DEPTH} brackets")


def _schema(name: str, value: Any, size: int) -> None:
    """A schema, or what a schema is inside of."""
    if isinstance(value, str):  # "json" is one of the things that are said instead of a schema
        if size > limits.SCHEMA_BYTES and _is_over(value, limits.SCHEMA_BYTES):
            raise _schema_too_large(name)
        if value.count("[") + value.count("{") > limits.SCHEMA_DEPTH:
            raise InvalidField(name, f"{name} must be an object, not a text")
        return
    if not isinstance(value, dict | list):
        return
    if size > limits.SCHEMA_BYTES and len(orjson.dumps(value)) > limits.SCHEMA_BYTES:
        raise _schema_too_large(name)
    depth = 0
    level: list[Any] = [value]
    while level:
        depth += 1
        if depth > limits.SCHEMA_DEPTH:
            raise InvalidField(
                name, f"the schema in {name} is nested deeper than {limits.SCHEMA_DEPTH} levels"
            )
        below: list[Any] = []
        for each in level:
            inner = each
            if type(each) is dict:
                if size > _SHORTEST:
                    _check_texts(name, each)
                _check_bounds(name, each)
                inner = each.values()
            below += [value for value in inner if type(value) is dict or type(value) is list]
        level = below


def _check_texts(name: str, schema: Mapping[str, Any]) -> None:
    """Refuse long texts that the engine searches by regular expressions, whose search is recursive."""
    pattern, reference = schema.get("pattern"), schema.get("$ref")
    if isinstance(pattern, str) and _is_over(pattern, limits.PATTERN_BYTES):
        raise InvalidField(name, f"a pattern in {name} may have at most {limits.PATTERN_BYTES:,} bytes")
    if isinstance(reference, str):
        _check_name(name, reference)
    for key in schema:
        _check_name(name, key)


def _check_name(place: str, name: str) -> None:
    if _is_over(name, limits.SCHEMA_NAME_BYTES):
        raise InvalidField(place, f"a name in {place} may have at most {limits.SCHEMA_NAME_BYTES:,} bytes")


def _check_bounds(name: str, schema: Mapping[str, Any]) -> None:
    """Refuse bounds that the engine makes rules of without end, until it has no memory left."""
    for fewest, most in _FEWEST_AND_MOST:
        least, greatest = schema.get(fewest), schema.get(most)
        if not isinstance(least, int | float) or not isinstance(greatest, int | float):
            continue
        if _as_int32(least) > _as_int32(greatest):
            raise InvalidField(name, f"{fewest} is more than {most} in {name}")
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and "{" in pattern and _is_reversed(pattern.encode()):
        raise InvalidField(
            name, f"a pattern in {name} repeats something at least n and at most m times with n > m"
        )
    if schema.get("type") == "number":
        return
    least, greatest = _numbers(schema, _LEAST), _numbers(schema, _GREATEST)
    if (not greatest and any(each > _FARTHEST for each in least)) or (
        not least and any(each < -_FARTHEST for each in greatest)
    ):
        raise InvalidField(name, f"a bound in {name} is beyond 1e15 and needs another on its other side")


def _numbers(schema: Mapping[str, Any], names: Iterable[str]) -> list[float]:
    return [value for name in names if isinstance(value := schema.get(name), int | float)]


def _as_int32(number: float) -> int:
    """A number as the engine holds it, which keeps the last 32 bits."""
    return (int(number) + (1 << 31)) % (1 << 32) - (1 << 31)


def _is_reversed(text: bytes) -> bool:
    """Whether something is to be repeated at least so often, and at most less often."""
    for least, most in _REPEATED.findall(text):
        fewest, greatest = least.lstrip(b"0"), most.lstrip(b"0")
        if (len(fewest), fewest) > (len(greatest), greatest):
            return True
    return False


def _schema_too_large(name: str) -> InvalidField:
    return InvalidField(name, f"the schema in {name} may have at most {limits.SCHEMA_BYTES >> 10} KiB")


def _absent(name: str, value: Any, _size: int) -> None:
    if isinstance(value, list | dict) and value:
        raise InvalidField(name, f"{name} cannot be given: the engine sets it itself")


def _tools(name: str, value: Any, size: int) -> None:
    if not isinstance(value, list):
        return
    if len(value) > limits.TOOLS:
        raise InvalidField(name, f"{name} may have at most {limits.TOOLS} entries")
    for number, tool in enumerate(value):
        if not isinstance(tool, dict):
            continue
        place = f"{name}[{number}]"
        function = tool.get("function")
        for named in (tool, function) if isinstance(function, dict) else (tool,):
            if isinstance(title := named.get("name"), str):
                _check_name(place, title)
        for key in ("parameters", "input_schema"):
            if key in tool:
                _schema(f"{place}.{key}", tool[key], size)
        if isinstance(function, dict) and "parameters" in function:
            _schema(f"{place}.function.parameters", function["parameters"], size)


def _options(name: str, value: Any, size: int) -> None:
    """What the Ollama API keeps apart."""
    if isinstance(value, dict):
        for key in value.keys() & _CHECKED_OPTIONS:
            _CHECKS[key](f"{name}.{key}", value[key], size)


def _text(name: str, value: Any, size: int) -> None:
    """Where the Responses API has its schema."""
    if isinstance(value, dict) and "format" in value:
        _schema(f"{name}.format", value["format"], size)


def _is_over(text: str, most: int) -> bool:
    """Whether it has more bytes in UTF-8."""
    return len(text) > most or (len(text) * 4 > most and not text.isascii() and len(text.encode()) > most)


_CHECKS: Mapping[str, _Check] = {
    "messages": _length(limits.MESSAGES),
    "tools": _tools,
    "functions": _tools,
    "n": _at_most(limits.CHOICES),
    "n_cmpl": _at_most(limits.CHOICES),
    "n_probs": _at_most(limits.PROBABILITIES),
    "logprobs": _at_most(limits.PROBABILITIES),
    "top_logprobs": _at_most(limits.PROBABILITIES),
    "logit_bias": _length(limits.LOGIT_BIASES),
    "stop": _stop,
    "stop_sequences": _stop,
    "dry_sequence_breakers": _length(limits.BREAKERS),
    "grammar": _grammar,
    # Kinds that it does not know end the engine, and a pattern may keep it busy for ever.
    "grammar_triggers": _absent,
    "json_schema": _schema,
    "response_format": _schema,
    "format": _schema,
    "output_config": _schema,
    "output_format": _schema,
    "text": _text,
    "options": _options,
}
_CHECKED_OPTIONS = _CHECKS.keys() - {"options", "text", "messages"}
