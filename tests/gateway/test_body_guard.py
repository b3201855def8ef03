"""What a body may look like: each bound holds exactly, its refusal names the field, and nothing breaks the guard."""

from __future__ import annotations

import asyncio
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaman import limits
from llamaman.errors import InvalidField, InvalidRequest, LlamaManError, UnsupportedMediaType
from llamaman.gateway import body_fields, body_guard
from llamaman.gateway.body import dump
from llamaman.gateway.body_guard import parse

KIB = 1024
TEXT = {"type": "string"}


def refused(body: Any) -> LlamaManError:
    """What a body (text, or what is to be written as JSON) is refused with."""
    with pytest.raises(InvalidRequest) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert caught.value.status == 400
    return caught.value


def passes(body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    assert parse(raw) == body


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def schema(levels: int) -> dict[str, Any]:
    """A schema with so many objects inside one another."""
    found: dict[str, Any] = {}
    for _ in range(levels - 1):
        found = {"not": found}
    return found


# --- the text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b" ", b"\r\n\t "])
def test_an_empty_body_is_missing(raw: bytes) -> None:
    assert refused(raw).message == "missing request body"


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"a"', b"null", b"[{}]"])
def test_a_body_is_an_object(raw: bytes) -> None:
    assert refused(raw).message == "the body must be a JSON object"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xff"}',
        b'{"\xc0\x80":1}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":1}x',
        b'{"a":"\n"}',
        b'{"a"',
        b'{"a":"',
        b"\\",
        b'"\\',
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_not_strict_utf8_json_is_refused(raw: bytes) -> None:
    assert refused(raw).message.startswith("the body is not valid JSON")


def test_a_body_may_be_nested_128_levels_and_not_one_more() -> None:
    assert limits.BODY_DEPTH == 128
    parse(b'{"messages":%b}' % nested(127))
    error = refused(b'{"model":"a","messages":%b}' % nested(128))
    assert error.field == "messages"
    assert error.message == "messages is nested deeper than 128 levels"


@pytest.mark.parametrize("padding", [0, 70_000, 600_000])
def test_depth_is_found_wherever_it_stands_and_brackets_in_strings_are_none(padding: int) -> None:
    text = '\\"[{[{' * (padding // 6 + 30)
    parse(b'{"a":"%b","b":%b}' % (text.encode(), nested(127)))
    assert refused(b'{"a":"%b","b":%b}' % (text.encode(), nested(128))).field == "b"


def test_many_brackets_beside_one_another_are_no_depth() -> None:
    passes({"a": [[]] * 5_000, "b": [{"c": []}] * 20_000})


@pytest.mark.parametrize("raw", [nested(200_000), b'{"a":' * 50_000, b'{"x":%b}' % nested(200_000)])
def test_hundreds_of_thousands_of_levels_are_refused_at_once(raw: bytes) -> None:
    begun = time.monotonic()
    assert "nested deeper than 128 levels" in refused(raw).message
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("padding", [0, 70_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_may_have_64_digits_and_not_one_more(padding: int, sign: str) -> None:
    blank = " " * padding
    parse(f'{{"seed":{sign}{"7" * 64},"a":"{"7" * 500}"{blank}}}'.encode())
    error = refused(f'{{"a":[1,{{"seed":1}}],"seed":{sign}{"7" * 65}{blank}}}'.encode())
    assert (error.field, error.message) == ("seed", "seed holds a number of more than 64 digits")


def test_a_long_number_that_lies_across_two_pieces_is_found() -> None:
    for before in range(70):
        filling = b" " * (body_guard._PIECE - 30 - before)
        assert refused(b'{"seed":%b%b}' % (filling, b"7" * 65)).field == "seed"
        parse(b'{"seed":%b%b,"a":[%b]}' % (filling, b"7" * 64, b"1," * 99 + b"1"))


@pytest.mark.parametrize("key", ["model", "stream", "n", "messages", "input", "keep_alive", "whatever"])
def test_a_key_that_is_given_twice_is_refused_however_it_is_written(key: str) -> None:
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
    for again in (key, escaped, key[:-1] + escaped[-6:]):
        error = refused(f'{{"{key}":1,"x":[{{"y":"a:b"}}],"{again}":1}}'.encode())
        assert (error.field, error.message) == (key, f"{key} is given more than once")
    assert refused(f'{{"options":{{"{key}":1,"{escaped}":2}}}}'.encode()).field == key


def test_the_same_key_in_different_objects_is_not_given_twice() -> None:
    passes({"a": {"a": {"a": [{"a": 1}, {"a": ': "a":'}]}}, "b": "\\", '"': '\\"', ":": "::"})


def test_a_body_that_is_mostly_lists_is_bounded_before_it_is_parsed() -> None:
    values = b"1," * (limits.BODY_VALUES - 2)
    parse(b'{"a":[%b1]}' % values)
    assert "more than 1,000,000 values" in refused(b'{"a":[%b1,1]}' % values).message
    objects = b"[]," * (limits.BODY_OBJECTS - 3)
    parse(b'{"a":[%b[]]}' % objects)
    assert "more than 200,000 lists and objects" in refused(b'{"a":[%b[],[]]}' % objects).message


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"deflate, gzip", b" GZIP ", b"nothing-we-know"])
def test_a_coded_body_is_refused(coding: bytes) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        body_guard.check_head({b"content-encoding": coding})
    assert caught.value.status == 415


def test_a_body_without_a_coding_passes() -> None:
    body_guard.check_head({})
    body_guard.check_head({b"content-encoding": b"identity"})


def test_a_large_body_does_not_hold_up_the_loop() -> None:
    raw = b'{"messages":[%b{}]}' % (b'{"role":"user","content":"some \\"words\\" of text"},' * 150_000)

    async def main() -> float:
        worst, last, reading = 0.0, time.perf_counter(), asyncio.ensure_future(body_guard.read_json(raw))
        while not reading.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
        with pytest.raises(InvalidRequest):
            reading.result()  # more messages than anybody may send, which is noticed last
        return worst

    assert asyncio.run(main()) < 1.0


# --- fields ------------------------------------------------------------------------------------------


GRAMMAR = 'root ::= %s"a"%s'
SCHEMA_PLACES: dict[str, Callable[[Any], Any]] = {
    "response_format": lambda s: {"type": "json_schema", "json_schema": {"schema": s}},
    "json_schema": lambda s: s,
    "format": lambda s: s,
    "text.format": lambda s: {"type": "json_schema", "schema": s},
    "output_config": lambda s: {"format": {"type": "json_schema", "schema": s}},
    "tools[1].function.parameters": lambda s: s,
    "tools[1].input_schema": lambda s: s,
    "tools[1].parameters": lambda s: s,
}


def at(place: str, value: Any) -> dict[str, Any]:
    """A body with a value at a place as errors name it."""
    if place.startswith("tools[1]."):
        tool: dict[str, Any] = {}
        *outer, last = place.removeprefix("tools[1].").split(".")
        inner = tool
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
        return {"tools": [{}, tool]}
    head, _, rest = place.partition(".")
    return {head: {rest: value} if rest else value}


@pytest.mark.parametrize(
    ("good", "bad", "field", "limit"),
    [
        ({"n": 128}, {"n": 129}, "n", "128"),
        ({"n": True}, {"n": 1e300}, "n", "128"),
        ({"n_cmpl": 128}, {"n_cmpl": 129}, "n_cmpl", "128"),
        ({"n_probs": 100}, {"n_probs": 101}, "n_probs", "100"),
        ({"logprobs": True}, {"logprobs": 101}, "logprobs", "100"),
        ({"top_logprobs": 100}, {"top_logprobs": 100.5}, "top_logprobs", "100"),
        ({"messages": [{}] * 10_000}, {"messages": [{}] * 10_001}, "messages", "10,000"),
        ({"tools": [{}] * 256}, {"tools": [{}] * 257}, "tools", "256"),
        ({"logit_bias": [[1, 1]] * 1000}, {"logit_bias": [[1, 1]] * 1001}, "logit_bias", "1,000"),
        (
            {"logit_bias": {str(i): 1 for i in range(1000)}},
            {"logit_bias": {str(i): 1 for i in range(1001)}},
            "logit_bias",
            "1,000",
        ),
        (
            {"dry_sequence_breakers": ["a"] * 128},
            {"dry_sequence_breakers": ["a"] * 129},
            "dry_sequence_breakers",
            "128",
        ),
        ({"stop": ["a"] * 64}, {"stop": ["a"] * 65}, "stop", "64"),
        ({"stop": "a" * KIB}, {"stop": "a" * (KIB + 1)}, "stop", "1,024"),
        ({"stop": ["\u00e4" * 512]}, {"stop": ["b", "\u00e4" * 512 + "a"]}, "stop", "1,024"),
        ({"stop_sequences": ["a"] * 64}, {"stop_sequences": ["a"] * 65}, "stop_sequences", "64"),
        ({"options": {"stop": ["a"] * 64}}, {"options": {"stop": ["a"] * 65}}, "options.stop", "64"),
        ({"grammar": "a" * 64 * KIB}, {"grammar": "a" * (64 * KIB + 1)}, "grammar", "64 KiB"),
        ({"grammar": GRAMMAR % ("(" * 64, "")}, {"grammar": GRAMMAR % ("(" * 65, "")}, "grammar", "64"),
        ({"grammar": '"("' * 99}, {"grammar": '"(" ' * 9 + "(" * 65}, "grammar", "64"),
        ({"grammar": "[(]" * 99}, {"grammar": '"\\"" ' + "( " * 65}, "grammar", "64"),
        ({"grammar": "(a)" * 999}, {"grammar": "(a (b) " * 65}, "grammar", "64"),
        ({"grammar": "# " + "(" * 99}, {"grammar": "# \n" + "(" * 65}, "grammar", "64"),
        (
            {"grammar": '[^"] "\\\\" "' + "(" * 99 + '"'},
            {"grammar": '[^"] [\\]"] ' + "(" * 65},
            "grammar",
            "64",
        ),
    ],
)
def test_a_field_may_be_at_its_limit_and_not_beyond(
    good: dict[str, Any], bad: dict[str, Any], field: str, limit: str
) -> None:
    passes(good)
    passes({"a": "x" * 70_000, **good})
    for body in (bad, {"a": "x" * 70_000, **bad}):
        error = refused(body)
        assert error.field == field
        assert field in error.message
        assert limit in error.message


@pytest.mark.parametrize(
    "bad",
    [
        {"Messages": [{}] * 10_001},
        {"TOOLS": [{}] * 257},
        {"Format": schema(70)},
        {"format": "json", "FORMAT": schema(70)},
        {"Options": {"stop": ["a"] * 65}},
        {"Top_Logprobs": 101},
    ],
)
def test_a_name_in_another_case_is_no_way_around(bad: dict[str, Any]) -> None:
    """The Ollama API takes names in any case, as Go does."""
    *_, name = bad
    assert (refused(bad).field or "").startswith(name)


@pytest.mark.parametrize("place", SCHEMA_PLACES)
def test_a_schema_is_bounded_wherever_a_client_api_has_one(place: str) -> None:
    wrap = SCHEMA_PLACES[place]
    levels = 0
    while True:  # what is around it counts, too
        levels += 1
        try:
            parse(dump(at(place, wrap(schema(levels)))))
        except InvalidRequest:
            break
    assert 61 <= levels - 1 <= 64
    error = refused(at(place, wrap(schema(levels))))
    assert error.field is not None
    assert place.startswith(error.field)
    assert error.field in error.message
    assert "64 levels" in error.message
    assert "1,024 bytes" in refused(at(place, wrap({"items": {**TEXT, "pattern": "a" * (KIB + 1)}}))).message
    passes(at(place, wrap({"items": {**TEXT, "pattern": "a" * KIB}, "pattern": {"pattern": TEXT}})))
    assert "256 KiB" in refused(at(place, wrap({"enum": ["a" * 256 * KIB]}))).message
    passes(at(place, wrap({"enum": ["a" * 255 * KIB]})))


@pytest.mark.parametrize("place", SCHEMA_PLACES)
@pytest.mark.parametrize("at_fault", ["properties", "$defs", "$ref"])
def test_names_in_a_schema_are_bounded(place: str, at_fault: str) -> None:
    """The engine searches them by regular expressions: 30,000 brackets in a row end it."""

    def named(size: int) -> dict[str, Any]:
        name = "(" * size
        part = {"$ref": name} if at_fault == "$ref" else {at_fault: {name: TEXT}}
        return at(place, SCHEMA_PLACES[place]({"items": part}))

    passes(named(KIB))
    error = refused(named(KIB + 1))
    assert "1,024 bytes" in error.message
    assert error.field is not None
    assert place.startswith(error.field)


@pytest.mark.parametrize("shape", ["function", "flat"])
def test_names_of_tools_are_bounded(shape: str) -> None:
    def named(size: int) -> dict[str, Any]:
        tool: dict[str, Any] = {"name": "(" * size}
        return {"tools": [{}, {"type": "function", "function": tool} if shape == "function" else tool]}

    passes(named(KIB))
    error = refused(named(KIB + 1))
    assert (error.field, "1,024 bytes" in error.message) == ("tools[1]", True)


@pytest.mark.parametrize(
    "around",
    [
        lambda call: {"messages": [{"role": "assistant", "tool_calls": [{"function": call}]}]},
        lambda call: {"input": [{"type": "function_call", **call}]},
        lambda call: {"messages": [{"function_call": call}]},
    ],
)
def test_arguments_that_are_json_in_a_string_are_no_deeper_than_a_body(
    around: Callable[[Any], dict[str, Any]],
) -> None:
    passes(around({"arguments": f'{{"a":{nested(127).decode()}}}'}))
    passes(around({"arguments": '{"a":"%s"}' % ("[" * 500)}))
    passes(around({"arguments": {"a": 1}}))
    error = refused(around({"arguments": f'{{"a":{nested(128).decode()}}}'}))
    assert (error.field, error.message) == ("arguments", "arguments is nested deeper than 128 levels")


@pytest.mark.parametrize("name", ["arguments", "Arguments"])
def test_arguments_in_strings_hold_no_more_than_a_body(name: str) -> None:
    def calls(*texts: str) -> dict[str, Any]:
        return {"messages": [{"tool_calls": [{"function": {name: text}} for text in texts]}]}

    half = "[" + ",".join(["[]"] * (limits.BODY_OBJECTS // 2 - 1)) + "]"
    passes(calls(half, half))
    error = refused(calls(half, half, "[]"))
    assert (error.field, error.message) == ("arguments", "arguments hold more than 200,000 lists and objects")
    many = "[" + ",".join(["1"] * limits.BODY_VALUES) + "]"
    passes(calls(many))
    error = refused(calls(many, '{"a":1,"b":2}'))
    assert (error.field, error.message) == ("arguments", "arguments hold more than 1,000,000 values")
    passes(calls('{"text":"%s"}' % ("[]," * limits.BODY_VALUES)))


def test_arguments_are_looked_at_in_pieces_however_deep_they_are() -> None:
    deep = "[" * 100 + '"' + "a" * (1 << 20) + '",' + "[" * 28
    passes({"arguments": deep + "]" * 128})
    tracemalloc.start()
    assert refused({"arguments": deep + "[" + "]" * 129}).field == "arguments"
    quotes = '"bb"' * (1 << 21) + "[]" * 200
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    body_guard._check_arguments([quotes])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 3 * len(quotes)


def test_a_schema_that_is_written_into_a_text_is_no_way_around() -> None:
    passes({"format": "json"})
    assert refused({"format": '{"not":' * 65}).field == "format"


def test_the_three_bodies_that_end_an_engine_are_refused() -> None:
    parens = "(" * 50_000 + '"a"' + ")" * 50_000
    assert refused({"grammar": "root ::= " + parens}).field == "grammar"
    assert refused({"prompt": "a", "options": {"grammar": "root ::= " + parens}}).field == "options.grammar"
    deep = b'{"properties":{"a":' * 10_000 + b"{}" + b"}}" * 10_000
    assert refused(b'{"json_schema":%b}' % deep).field == "json_schema"
    assert refused(b'{"messages":%b}' % nested(200_000)).field == "messages"


@pytest.mark.parametrize(
    ("fine", "endless"),
    [
        ({"minLength": 2, "maxLength": 2}, {"minLength": 5, "maxLength": 2}),
        ({"minItems": 2, "maxItems": 5}, {"minItems": 5, "maxItems": 2}),
        ({"minItems": 5, "maxItems": 2**31 - 1}, {"minItems": 5, "maxItems": 2**32 + 1}),
        ({"pattern": "^a{2,5}$"}, {"pattern": "^(a{5,2})$"}),
        ({"pattern": "^a{09,10}{3,}{3}$"}, {"pattern": "^a{ 10 , 9 }$"}),
        ({"minimum": 10**15}, {"minimum": 10**15 + 1}),
        ({"minimum": 10**18, "maximum": 10**18}, {"exclusiveMinimum": 1e18}),
        ({"maximum": 2**53 - 1}, {"maximum": 1 - 2**53}),
        ({"exclusiveMinimum": 1 - 2**53, "maximum": 2**53 - 1}, {"exclusiveMaximum": -(10**18)}),
        ({"type": "number", "minimum": 1e18}, {"type": ["integer", "null"], "minimum": 1e18}),
    ],
)
def test_a_schema_of_which_an_engine_makes_rules_without_end_is_refused(
    fine: dict[str, Any], endless: dict[str, Any]
) -> None:
    passes({"json_schema": {"properties": {"a": fine}}})
    assert refused({"json_schema": {"properties": {"a": endless}}}).field == "json_schema"
    assert refused({"tools": [{"function": {"parameters": endless}}]}).field == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("fine", "endless"),
    [
        ('root ::= "a"{2,5}', 'root ::= "a"{5,2}'),
        ('root ::= "a{5,2}" [{5,2}] # {5,2}', 'root ::= "a" { 5 # b\n , 2 }'),
        ('root ::= "a"{9,10} "b"{3,} "c"{3}', 'root ::= "a"{10,9}'),
        ('root ::= "a"{1,%s}' % ("9" * 5000), 'root ::= "a"{%s,1}' % ("9" * 5000)),
    ],
)
def test_a_grammar_that_repeats_at_least_more_often_than_at_most_is_refused(fine: str, endless: str) -> None:
    passes({"grammar": fine})
    assert refused({"grammar": endless}).field == "grammar"


@pytest.mark.parametrize("name", ['="grammar"', "=grammar", ' = "grammar_triggers"', "*=UTF-8''grammar"])
def test_a_form_is_no_way_around(name: str) -> None:
    part = '--x\r\nContent-Disposition: form-data; name%s\r\n\r\nroot ::= "a"\r\n--x--\r\n'
    body_guard.check_form((part % '="prompt"').replace("root", "my grammar").encode())
    with pytest.raises(InvalidField) as refusal:
        body_guard.check_form((part % name).encode())
    assert refusal.value.field == "grammar"


def test_what_starts_a_grammar_is_for_the_engine_to_say() -> None:
    passes({"grammar_triggers": None})
    trigger = {"type": 4, "value": "x"}
    assert refused({"grammar_triggers": [trigger]}).field == "grammar_triggers"
    assert refused({"options": {"grammar_triggers": [trigger]}}).field == "options.grammar_triggers"


def test_what_is_of_the_wrong_type_is_left_to_those_who_know_the_type() -> None:
    odd: list[Any] = [None, True, 1, "a", [], {}, [None], [[]], {"a": None}, {"format": 1, "stop": 2}]
    for name in body_fields._CHECKS.keys() - {"grammar_triggers"}:  # which may not be given at all
        for value in odd:
            passes({name: value})


# --- slots -------------------------------------------------------------------------------------------


def test_the_choice_of_a_slot_is_taken_out_of_body_and_text() -> None:
    raw = b'{"prompt":"a","id_slot":3,"x":1.50}'
    body = parse(raw)
    cleaned = body_guard.without_slot(raw, body)
    assert body == {"prompt": "a", "x": 1.5}
    assert cleaned.startswith(raw[:-1]), "what a client wrote is not written anew"
    assert json.loads(cleaned) == {"prompt": "a", "x": 1.5, "id_slot": -1}
    raw = b'{"prompt":"id_slot"}'
    assert body_guard.without_slot(raw, parse(raw)) is raw


# --- anything at all ---------------------------------------------------------------------------------

_NAMES = st.sampled_from([*body_fields._CHECKS, "a", "pattern", "parameters", "function", ""])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("(" * 70),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(_NAMES | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
_PIECES = st.lists(
    st.sampled_from(
        [
            *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b'\\"', b"\\u", b"d800", b"\\ud83d\\ude00"),
            *(b'"model":', b'"n":', b"1", b"-", b"e9", b".7" * 65, b"NaN", b"null", b"\xff", b" ", b"\x00"),
            *(b"[" * 130, b"]" * 130, b'{"a":' * 130, "ä".encode()),
        ]
    ),
    max_size=30,
).map(b"".join)


def holds(raw: bytes) -> None:
    """Refused as a client's fault, or readable for everybody."""
    try:
        body = parse(raw)
    except InvalidRequest:
        return
    json.loads(raw)
    assert json.loads(json.dumps(body)) == orjson.loads(dump(body)) == body
    body_guard.without_slot(raw, body)


@given(_JSON.map(lambda value: json.dumps(value).encode()) | _PIECES | st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_nothing_breaks_the_guard_and_nothing_that_it_accepts_breaks_a_parser(raw: bytes) -> None:
    holds(raw)
    holds(b'{"a":%b}' % raw)


def test_small_pieces_see_what_the_whole_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(7)
    letters = [b'"', b"\\", b"[", b"]", b"{", b"}", b":", b",", b"7", b"a", b'\\"', b"\\\\"]
    for _ in range(2_000):
        raw = b"".join(source.choices(letters, k=source.randrange(1, 60)))
        whole = body_guard._outside(raw, inside=False)[0].replace(b'"', b"")
        monkeypatch.setattr(body_guard, "_PIECE", source.randrange(2, 9))
        assert b"".join(body_guard._pieces(raw)).replace(b'"', b"") == whole
