"""A management body is what the route takes, or a 4xx that says why; never a 500."""

from __future__ import annotations

import json
import sys

import pytest

from llamaman.dashboard.bodies import (
    MAX_BODY,
    boolean,
    integer,
    nullable,
    pick,
    read_object,
    text,
    texts,
)
from llamaman.errors import InvalidField, InvalidRequest, LlamaManError, PayloadTooLarge, UnsupportedMediaType

JSON = "application/json"


def test_an_object_is_read() -> None:
    assert read_object(b'{"a": [1, 2.5, null, "\\u00e9", true]}', JSON) == {"a": [1, 2.5, None, "é", True]}


def test_of_duplicate_fields_the_last_wins() -> None:
    assert read_object(b'{"a": 1, "a": 2}', JSON) == {"a": 2}


@pytest.mark.parametrize(
    "kind", [JSON, "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
def test_json_in_utf8_is_taken_however_it_is_spelt(kind: str) -> None:
    assert read_object(b"{}", kind) == {}


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_any_other_type_is_refused(kind: str | None) -> None:
    with pytest.raises(UnsupportedMediaType):
        read_object(b"{}", kind)


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType):
        read_object(b"{}", JSON, content_encoding="gzip")


def test_an_absent_body_is_an_empty_object_only_where_bodies_are_optional() -> None:
    assert read_object(b"", None, optional=True) == {}
    with pytest.raises(LlamaManError):
        read_object(b"", None)
    with pytest.raises(InvalidRequest):
        read_object(b"", JSON)


def test_a_body_over_the_limit_is_refused() -> None:
    body = b'{"a": "' + b"x" * MAX_BODY + b'"}'
    with pytest.raises(PayloadTooLarge):
        read_object(body, JSON)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": [-Infinity]}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"a": "\xff"}',
        b'{"a": 1} trailing',
        b'{"a": "line\nbreak"}',
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_what_is_not_a_sane_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_object(body, JSON)
    assert caught.value.status == 400


def test_nesting_up_to_the_limit_is_read_and_a_level_more_is_not() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a": ' + b"[" * levels + b"]" * levels + b"}"

    read_object(nested(62), JSON)
    with pytest.raises(InvalidRequest, match="64"):
        read_object(nested(64), JSON)


def test_a_deep_body_is_refused_even_with_a_small_stack() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        with pytest.raises(InvalidRequest):
            read_object(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", JSON)
    finally:
        sys.setrecursionlimit(limit)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(InvalidField, match="'nope'") as caught:
        pick({"nope": 1}, {"name": text(10)})
    assert caught.value.field == "nope"


def test_an_unknown_fields_name_is_shown_short_and_harmless() -> None:
    name = "\x1b[31m" + "x" * 500
    with pytest.raises(InvalidField) as caught:
        pick({name: 1}, {"name": text(10)})
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 200


def test_a_required_field_is_required() -> None:
    with pytest.raises(InvalidField, match="name is required"):
        pick({}, {"name": text(10)}, ("name",))


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (text(3), ["four", 1, None, True, [], {}, "\x00"]),
        (boolean, [0, 1, "true", None]),
        (integer(1, 5), [0, 6, True, 1.0, "1", None, 10**400]),
        (texts(2, 3), ["a", ["a", "b", "c"], ["long"], [1], None]),
        (nullable(boolean), [0, "null"]),
    ],
)
def test_a_wrong_value_names_its_field(check: object, wrong: list[object]) -> None:
    for value in wrong:
        with pytest.raises(InvalidField) as caught:
            pick({"field": value}, {"field": check})  # type: ignore[dict-item] # parametrised
        assert caught.value.field == "field"
        assert "field" in caught.value.message


def test_right_values_pass() -> None:
    checks = {"a": text(3), "b": boolean, "c": integer(1, 5), "d": texts(2, 3), "e": nullable(boolean)}
    given = json.loads('{"a": "abc", "b": false, "c": 5, "d": ["x"], "e": null}')
    assert pick(given, checks) == {"a": "abc", "b": False, "c": 5, "d": ("x",), "e": None}
