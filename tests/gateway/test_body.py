"""Reading and patching JSON bodies: what is refused, and that a splice means what a merge means."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaman.errors import InvalidRequest
from llamaman.gateway.body import parse_object, rename, set_path, splice
from llamaman.records import Engine
from llamaman.runtimes.process import ProcessRuntime

from .engine_talk import talking

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)  # UTF-8 has no surrogates
keys = text
integers = st.integers(-(2**63), 2**64 - 1)
values = st.recursive(
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(keys, values, max_size=6)
blank = st.text(alphabet=" \t\r\n", max_size=3)


@given(objects, st.booleans())
def test_objects_are_read_as_json_reads_them(value: dict[str, Any], ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_object(raw) == json.loads(raw.decode())


@given(objects, objects, blank, blank, st.booleans())
def test_a_splice_reads_like_a_merge(
    body: dict[str, Any], patch: dict[str, Any], before: str, after: str, ascii_only: bool
) -> None:
    raw = (before + json.dumps(body, indent=1 if before else None, ensure_ascii=ascii_only) + after).encode()
    assert json.loads(splice(raw, patch)) == {**body, **patch}


def test_nothing_to_splice_leaves_the_bytes_alone() -> None:
    raw = b' {"a" : 1.50} '
    assert splice(raw, {}) is raw


def test_the_spliced_value_comes_last_and_the_rest_is_untouched() -> None:
    assert splice(b'{"stream" : false, "x":1e3}\n', {"stream": True}) == (
        b'{"stream" : false, "x":1e3,"stream":true}'
    )
    assert splice(b"{ }", {"a": None}) == b'{"a":null}'


@given(st.binary(max_size=40))
def test_whatever_comes_is_an_object_or_a_refusal(raw: bytes) -> None:
    with suppress(InvalidRequest):
        assert isinstance(parse_object(raw), dict)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{} {}", "not valid JSON"),
        (b'{"a":1,}', "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":[-Infinity]}', "not valid JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (rb'{"a":"\ud800"}', "not valid JSON"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
        ('{"a":1}'.encode("utf-16-le"), "not valid JSON"),
        ('{"a":1}'.encode("utf-32-le"), "not valid JSON"),
        (b'{"a":' * 200_000, "not valid JSON"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "not valid JSON"),
    ],
)
def test_a_refusal_says_what_is_wrong(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse_object(raw)


def test_of_a_repeated_key_the_last_counts_here_as_in_the_engine() -> None:
    assert parse_object(b'{"a":1,"a":2}') == {"a": 2}


def test_a_path_replaces_one_member_and_makes_what_is_missing() -> None:
    body = {"a": {"b": 1, "c": 2}, "d": 3}
    assert set_path(body, "a.b", 9) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert set_path(body, "d.e", 9) == {"a": {"b": 1, "c": 2}, "d": {"e": 9}}
    assert set_path({}, "x.y.z", 1) == {"x": {"y": {"z": 1}}}
    assert body == {"a": {"b": 1, "c": 2}, "d": 3}


def test_answers_name_the_model_as_the_client_did() -> None:
    assert rename(b'{"model":"tiny","x":1}', ("tiny", "Tiny:latest")) == b'{"model":"Tiny:latest","x":1}'
    assert rename(b'{"model":"tiny"}', None) == b'{"model":"tiny"}'
    assert rename(b'{"model":"other"}', ("tiny", "T")) == b'{"model":"other"}'


def test_a_text_that_looks_like_a_member_is_not_renamed() -> None:
    text = json.dumps({"content": '"model":"tiny"'}, separators=(",", ":")).encode()
    assert rename(text, ("tiny", "T")) == text


@given(text, text)
def test_a_renamed_body_stays_json_whatever_the_names_are(engine: str, client: str) -> None:
    raw = json.dumps({"model": engine, "n": 1}, ensure_ascii=False, separators=(",", ":")).encode()
    assert json.loads(rename(raw, (engine, client))) == {"model": client, "n": 1}


def test_real_engines_keep_the_last_value_of_a_repeated_key(
    process_runtime: ProcessRuntime, engine: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    with talking(process_runtime, engine, tiny_model, tmp_path) as talk:
        first = json.dumps(
            {
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 3,
                "stream": True,
                "temperature": 9,
            }
        ).encode()
        status, raw = talk.post("/v1/chat/completions", splice(first, {"stream": False, "max_tokens": 7}))
        assert (status, json.loads(raw)["usage"]["completion_tokens"]) == (200, 7)
        patched = splice(first, {"max_tokens": 5, "messages": [{"role": "user", "content": "longer"}]})
        status, raw = talk.post("/v1/chat/completions", splice(patched, {"stream": False}))
        own = talk.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "longer"}], "max_tokens": 5},
        )
        assert json.loads(raw)["usage"]["prompt_tokens"] == json.loads(own[1])["usage"]["prompt_tokens"]
        assert json.loads(raw)["usage"]["completion_tokens"] == 5
        status, raw = talk.post("/v1/completions", b'{"prompt":"a","max_tokens":2,"prompt":"abcdef"}')
        assert (status, json.loads(raw)["usage"]["prompt_tokens"]) == (200, 7)
