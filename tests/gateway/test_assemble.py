"""A body rebuilt from a stream is the body the engine itself would have sent: proven with real engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llamaman.gateway.assemble import Assembler, dump
from llamaman.gateway.event_stream import parse_events
from llamaman.runtimes.process import ProcessRuntime
from llamaman.testing import write_tiny_model
from llamaman.testing.engines import available_engines

from .engine_talk import Talk, talking

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "tells the weather",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["a", "b"]}}},
        },
    }
]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ['ä🦙 "quoted"\n']}}, "required": ["a"]}

#: name -> (path, body); temperature, seed and cold cache are added.
CORPUS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {**HELLO, "max_tokens": 12}),
    "several turns": (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            "max_tokens": 6,
        },
    ),
    "one token": (CHAT, {**HELLO, "max_tokens": 1}),
    "no tokens": (CHAT, {**HELLO, "max_tokens": 0}),
    "cut by max_completion_tokens": (CHAT, {**HELLO, "max_completion_tokens": 3}),
    "logprobs": (CHAT, {**HELLO, "max_tokens": 5, "logprobs": True, "top_logprobs": 2}),
    "logprobs without alternatives": (CHAT, {**HELLO, "max_tokens": 5, "logprobs": True}),
    "probabilities after sampling": (
        CHAT,
        {**HELLO, "max_tokens": 3, "logprobs": True, "n_probs": 2, "post_sampling_probs": True},
    ),
    "stop words": (CHAT, {**HELLO, "max_tokens": 40, "stop": ["ml", "zz"]}),
    "a stop word at once": (CHAT, {**HELLO, "max_tokens": 40, "stop": ["a"]}),
    "json object": (CHAT, {**HELLO, "max_tokens": 40, "response_format": {"type": "json_object"}}),
    "json schema": (
        CHAT,
        {
            **HELLO,
            "max_tokens": 90,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
    ),
    "unicode": (CHAT, {**HELLO, "max_tokens": 40, "grammar": 'root ::= "ä🦙é漢字\\n\\t"'}),
    "line separators": (CHAT, {**HELLO, "max_tokens": 40, "grammar": 'root ::= "a\u2028b\u2029\u0085c"'}),
    "white space at both ends": (CHAT, {**HELLO, "max_tokens": 40, "grammar": 'root ::= " \\n a \\n "'}),
    "marks that mean nothing here": (
        CHAT,
        {**HELLO, "max_tokens": 60, "grammar": 'root ::= "<tool_call>{</think><fn"'},
    ),
    "unicode cut inside a character": (CHAT, {**HELLO, "max_tokens": 4, "grammar": 'root ::= "ä🦙é漢字"'}),
    "an empty answer": (CHAT, {**HELLO, "max_tokens": 9, "grammar": 'root ::= ""'}),
    "tools that are offered": (CHAT, {**HELLO, "max_tokens": 20, "tools": TOOLS}),
    "tools that are required": (CHAT, {**HELLO, "max_tokens": 60, "tools": TOOLS, "tool_choice": "required"}),
    "timings with each token": (CHAT, {**HELLO, "max_tokens": 6, "timings_per_token": True}),
    "fields that the engine does not know": (CHAT, {**HELLO, "max_tokens": 3, "user": "x", "store": True}),
    "text": (TEXT, {"prompt": "a b", "max_tokens": 8}),
    "text with logprobs": (TEXT, {"prompt": "a b", "max_tokens": 4, "logprobs": 2}),
    "text with zero logprobs": (TEXT, {"prompt": "a b", "max_tokens": 4, "logprobs": 0}),
    "text with a stop word": (TEXT, {"prompt": "a b", "max_tokens": 40, "stop": ["a"]}),
    "text with unicode": (TEXT, {"prompt": "ä🦙", "max_tokens": 30, "grammar": 'root ::= "🦙ä"'}),
    "empty text": (TEXT, {"prompt": "a", "max_tokens": 9, "grammar": 'root ::= ""'}),
}

#: A template that opens a thought for the model, so that the engine reports reasoning.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
THOUGHTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a thought and an answer": (CHAT, {**HELLO, "max_tokens": 40, "grammar": 'root ::= "ab ä</think>cd"'}),
    "a thought that is cut": (CHAT, {**HELLO, "max_tokens": 8}),
    "a thought that ends inside its mark": (
        CHAT,
        {**HELLO, "max_tokens": 40, "grammar": 'root ::= "ab</thi"'},
    ),
    "a thought that is cut inside its mark": (
        CHAT,
        {**HELLO, "max_tokens": 7, "grammar": 'root ::= "ab</think>cd"'},
    ),
    "a thought and nothing": (CHAT, {**HELLO, "max_tokens": 40, "grammar": 'root ::= "ab</think>"'}),
    "a thought with a line separator": (
        CHAT,
        {**HELLO, "max_tokens": 60, "grammar": 'root ::= "a\u2028🦙</think>\u2029b\u2028"'},
    ),
}


#: A template with tools: calls are JSON between markers, as in many real ones.
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\ntools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls or [] %}<fn>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</fn>'
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MARK = {"<": "f", "f": "n", "n": ">"}
#: engine -> what its model writes where it is free to: one call, calls without end, some words before a call.
WRITERS: dict[str, dict[str, str]] = {
    "one call": {**_MARK, "\n": "<", ">": ""},
    "many calls": {**_MARK, "\n": "<", ">": "<"},
    "words and a call": {**_MARK, "\n": "o", "o": "k", "k": "<", ">": ""},
}
_CITY = {"type": "object", "properties": {"city": {"enum": ['ä🦙 "q"\u2028\n', "b"]}}, "required": ["city"]}
_NOTHING = {"type": "object", "properties": {}}
CALLED = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}
    for name, parameters in (("weather", _CITY), ("now", _NOTHING))
]
_FORCED: dict[str, Any] = {**HELLO, "tools": CALLED, "tool_choice": "required"}
_HISTORY = [
    *HELLO["messages"],
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "noon"},
]
#: name -> (engine, body, the finish reason, how many calls at least)
CALLS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "a call": ("one call", {**_FORCED, "max_tokens": 200}, "tool_calls", 1),
    "a call of one tool": ("one call", {**_FORCED, "tools": CALLED[:1], "max_tokens": 200}, "tool_calls", 1),
    "a call without arguments": (
        "one call",
        {**_FORCED, "tools": CALLED[1:], "max_tokens": 200},
        "tool_calls",
        1,
    ),
    "a call that is cut": ("one call", {**_FORCED, "tools": CALLED[:1], "max_tokens": 45}, "length", 1),
    "a call after calls": ("one call", {**_FORCED, "messages": _HISTORY, "max_tokens": 200}, "tool_calls", 1),
    "words and half a call": ("words and a call", {**_FORCED, "max_tokens": 8}, "length", 0),
    "words and half a mark": ("words and a call", {**_FORCED, "max_tokens": 4}, "length", 0),
    "parallel calls": (
        "many calls",
        {**_FORCED, "parallel_tool_calls": True, "max_tokens": 220},
        "length",
        2,
    ),
    "words before a call": ("words and a call", {**_FORCED, "max_tokens": 200}, "tool_calls", 1),
    "a call of choice": (
        "one call",
        {**_FORCED, "tool_choice": "auto", "max_tokens": 200},
        "tool_calls",
        1,
    ),
    "no call of choice": ("one call", {**_FORCED, "tool_choice": "none", "max_tokens": 20}, "stop", 0),
}
ENDING: dict[str, tuple[str, dict[str, Any]]] = {
    f"an answer of its own length, seed {seed}": (
        CHAT,
        {**HELLO, "max_tokens": 300, "temperature": 1, "seed": seed},
    )
    for seed in range(3)
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.real(name)) for name in ("llama-server", "embedded")],
)
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[dict[str, Talk]]:
    """Running engines by name: as it comes, with the thinking template, one that ends by itself, and the writers."""
    real = next(engine for engine in available_engines() if engine.name == request.param)
    if real.missing:
        pytest.skip(real.missing)
    folder = tmp_path_factory.mktemp(f"assemble-{real.name}")
    runtime = ProcessRuntime(binary=real.binary, embedded=real.name == "embedded", state_dir=folder / "state")
    with ExitStack() as stack:
        stack.callback(runtime.close)
        engine = runtime.engines()[0]
        models = {"plain": tiny_model, "thinking": tiny_model}
        models["ending"] = write_tiny_model(folder / "ending.gguf", ends=True, chat_template=TOOL_TEMPLATE)
        for number, (name, follows) in enumerate(WRITERS.items()):
            path = folder / f"writer-{number}.gguf"
            models[name] = write_tiny_model(path, follows=follows, chat_template=TOOL_TEMPLATE)
        running = {}
        for number, (name, model) in enumerate(models.items()):
            flags = ("--chat-template", THINKING) if name == "thinking" else ()
            (folder / str(number)).mkdir()
            running[name] = stack.enter_context(talking(runtime, engine, model, folder / str(number), *flags))
        yield running


@pytest.mark.parametrize("name", CORPUS)
def test_an_assembled_answer_equals_the_engines_own(engines: dict[str, Talk], name: str) -> None:
    assert_equal(engines["plain"], *CORPUS[name])


@pytest.mark.parametrize("name", THOUGHTS)
def test_an_assembled_thought_equals_the_engines_own(engines: dict[str, Talk], name: str) -> None:
    own = assert_equal(engines["thinking"], *THOUGHTS[name])
    assert own["choices"][0]["message"]["reasoning_content"]


@pytest.mark.parametrize("name", CALLS)
def test_assembled_calls_equal_the_engines_own(engines: dict[str, Talk], name: str) -> None:
    engine, body, finish, least = CALLS[name]
    (choice,) = assert_equal(engines[engine], CHAT, body)["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert choice["finish_reason"] == finish
    assert len(calls) >= least
    if finish == "tool_calls":
        assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)


@pytest.mark.parametrize("name", ENDING)
def test_an_assembled_answer_that_ends_by_itself_equals_the_engines_own(
    engines: dict[str, Talk], name: str
) -> None:
    own = assert_equal(engines["ending"], *ENDING[name])
    assert own["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("engine", "body"),
    [
        ("plain", {"messages": [*HELLO["messages"], {"role": "assistant", "content": "hey "}]}),
        ("thinking", {**HELLO, "reasoning_format": "none"}),
        ("plain", {**HELLO, "verbose": True}),
        ("one call", {**_FORCED, "max_tokens": 4}),  # cut before the call has a name: text or nothing
        ("one call", {**_FORCED, "max_tokens": 18}),
    ],
)
def test_what_dialects_must_ask_plainly_really_differs(
    engines: dict[str, Talk], engine: str, body: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError):
        assert_equal(engines[engine], CHAT, {"max_tokens": 8, **body})


def test_calls_with_logprobs_must_be_asked_plainly(engines: dict[str, Talk]) -> None:
    body = {**_FORCED, "max_tokens": 200, "logprobs": True}
    assert engines["one call"].post(CHAT, body)[0] == 200
    assert engines["one call"].post(CHAT, {**body, "stream": True})[0] == 400


def assert_equal(talk: Talk, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask both ways; returns the engine's own body."""
    body = {"temperature": 0, "seed": 7, "cache_prompt": False, **body}
    status, own = talk.post(path, body)
    assert status == 200, own
    asked = {"stream": True, "return_progress": True, "stream_options": {"include_usage": True}}
    status, stream = talk.post(path, {**body, **asked})
    assert status == 200, stream
    assembler = Assembler(chat=path == CHAT)
    for event in parse_events(stream):
        assembler.add(event)
    ours = json.loads(assembler.body())
    theirs = json.loads(own)
    assert list(ours) == list(theirs)  # also in the order of members
    assert set(ours["timings"]) == set(theirs["timings"])
    assert ours["id"].startswith("chatcmpl-")
    assert isinstance(ours["created"], int)
    assert _lasting(ours) == _lasting(theirs)
    return dict(theirs)


def _lasting(body: dict[str, Any]) -> str:
    """Without what differs between two calls; the order of members counts."""
    kept = {key: value for key, value in body.items() if key not in ("id", "created", "timings")}
    for choice in kept["choices"]:
        for call in choice.get("message", {}).get("tool_calls", []):
            call["id"] = "an id" if call["id"] else ""
    return json.dumps(kept, ensure_ascii=False)


# --- without an engine ----------------------------------------------------------------------------------


def _message(*deltas: dict[str, Any]) -> dict[str, Any]:
    assembler = Assembler(chat=True)
    for delta in deltas:
        assembler.add({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    assembler.add({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    return dict(json.loads(assembler.body())["choices"][0]["message"])


def test_tool_calls_are_put_together_from_their_fragments() -> None:
    message = _message(
        {"role": "assistant", "content": None},
        {"tool_calls": [_call(0, "first", "f", "{")]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"a":1'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
        {"tool_calls": [_call(1, "second", "g", "{")]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]},
    )
    assert message == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}, "id": "first"},
            {"type": "function", "function": {"name": "g", "arguments": "{}"}, "id": "second"},
        ],
    }


def _call(index: int, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id, "type": "function", "function": function}


def test_the_role_may_be_repeated_and_null_text_is_no_text() -> None:
    repeated = {"role": "assistant", "content": None}
    assert _message(repeated, repeated, {"content": "a"}) == {"role": "assistant", "content": "a"}


def test_choices_are_sorted_by_their_index() -> None:
    assembler = Assembler(chat=False)
    for index, text in ((1, "x"), (0, "a"), (1, "y"), (0, "b")):
        assembler.add({"choices": [{"index": index, "text": text, "finish_reason": None}]})
    choices = json.loads(assembler.body())["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == [(0, "ab"), (1, "xy")]


def test_what_an_unknown_engine_leaves_out_is_left_out() -> None:
    assembler = Assembler(chat=True)
    assembler.add({"choices": [{"delta": {"content": "hi"}}]})
    assert json.loads(assembler.body()) == {
        "choices": [{"finish_reason": None, "index": 0, "message": {"role": "assistant", "content": "hi"}}],
        "object": "chat.completion",
    }


def test_text_is_written_as_utf8_without_spaces() -> None:
    assert dump({"a": ["ä🦙", 1]}) == '{"a":["ä🦙",1]}'.encode()
