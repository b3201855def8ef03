"""The Responses API: what llama-server says becomes what OpenAI's clients require, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaman.errors import InvalidField
from llamaman.gateway.dialect import Intent
from llamaman.testing.dialect_script import LEASE, MODEL, Transcript, drive, request_for
from llamaman_api_openai.dialect import RESPONSES, RESPONSES_TOKENS, OpenAI
from llamaman_api_openai.responses import check, conversation

DIALECT = OpenAI()
ROUTES = {route.pattern: route for route in DIALECT.routes if route.method == "POST"}
Events = list[dict[str, Any]]


def created() -> Events:
    begun = {"id": "resp_1", "object": "response", "status": "in_progress"}
    return [{"type": f"response.{word}", "response": begun} for word in ("created", "in_progress")]


def text(*parts: str, seen: int | None = None) -> Events:
    """How the engine streams a message; ``seen``: tokens at its first part, where timings are asked for."""
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    made: Events = [{"type": "response.output_item.added", "item": item}]
    made.append({"type": "response.content_part.added", "item_id": "msg_1", "part": {"type": "output_text"}})
    for number, part in enumerate(parts):
        delta = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": part}
        made.append({**delta, "timings": {"predicted_n": seen + number}} if seen else delta)
    return made


def thought(*parts: str) -> Events:
    item = {"id": "rs_1", "type": "reasoning", "summary": [], "content": [], "encrypted_content": ""}
    made: Events = [{"type": "response.output_item.added", "item": item}]
    made += ({"type": "response.reasoning_text.delta", "item_id": "rs_1", "delta": part} for part in parts)
    return made


def tool(number: str, name: str, *parts: str) -> Events:
    item = {"type": "function_call", "call_id": f"fc_{number}", "name": name, "arguments": ""}
    made: Events = [{"type": "response.output_item.added", "item": {**item, "status": "in_progress"}}]
    delta = {"type": "response.function_call_arguments.delta", "item_id": f"fc_{number}"}
    return [*made, *({**delta, "delta": part} for part in parts)]


def completed(tokens: int, *output: dict[str, Any], prompt: int = 5) -> Events:
    """The end; before it the engine tells once more of every item."""
    usage = {"input_tokens": prompt, "output_tokens": tokens, "total_tokens": prompt + tokens}
    told = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_700_000_101,
        "status": "completed",
        "model": MODEL.name,
        "output": list(output),
        "usage": {**usage, "input_tokens_details": {"cached_tokens": 3}},
    }
    done: Events = [{"type": "response.output_item.done", "item": item} for item in output]
    return [*done, {"type": "response.completed", "response": told, "timings": {"predicted_n": tokens}}]


def said(words: str) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": words}]}


def called(number: str, name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"fc_{number}", "name": name, "arguments": arguments}


THOUGHT = {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "mm"}]}


def asked(body: dict[str, Any] | None = None, path: str = RESPONSES) -> Intent:
    intent = DIALECT.open(request_for(ROUTES[path], {"model": "Alpha", "input": "hi", **(body or {})}))
    assert isinstance(intent, Intent)
    return intent


def streamed(events: Events, body: dict[str, Any] | None = None) -> Events:
    done = drive(DIALECT, asked({**(body or {}), "stream": True}), stream=lambda call: events)
    assert done.begun is not None
    return parsed(done)


def parsed(done: Transcript) -> Events:
    found: Events = []
    for block in done.emitted.decode().strip().split("\n\n"):
        event, _, data = block.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {found[-1]['type']}"
    return found


def whole(events: Events, body: dict[str, Any] | None = None) -> dict[str, Any]:
    reply = drive(DIALECT, asked(body), stream=lambda call: events).reply
    assert reply is not None
    assert reply.status == 200
    return dict(json.loads(reply.body))


SIMPLE = [*created(), *text("hi ", "ä\u2028🦙"), *completed(3, said("hi ä\u2028🦙"))]
RICH = [
    *created(),
    *thought("m", "m"),
    *text("a"),
    *tool("A", "f", "{", '"x":1}'),
    *tool("B", "g", "{}"),
    *completed(9, THOUGHT, said("a"), called("A", "f", '{"x":1}'), called("B", "g", "{}")),
]


def test_a_message_has_all_of_its_events_in_order() -> None:
    events = streamed(SIMPLE)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [e["delta"] for e in events if "delta" in e] == ["hi ", "ä\u2028🦙"]


def test_every_item_ends_before_the_next_begins_and_keeps_its_index() -> None:
    events = streamed(RICH)
    steps = [
        (event["type"].removeprefix("response.output_item."), event["output_index"])
        for event in events
        if "output_item" in event["type"]
    ]
    assert steps == [(word, index) for index in range(4) for word in ("added", "done")]
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert [event["item"] for event in events if event["type"].endswith("item.done")] == final["output"]
    first, second = final["output"][2:]
    assert (first["name"], first["arguments"], first["id"], first["call_id"]) == (
        "f",
        '{"x":1}',
        "fc_A",
        "call_A",
    )
    assert (second["name"], second["arguments"]) == ("g", "{}")
    assert final["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


def test_a_call_tells_its_arguments_once_more_when_it_is_complete() -> None:
    done = [e for e in streamed(RICH) if e["type"] == "response.function_call_arguments.done"]
    assert [(e["item_id"], e["name"], e["arguments"]) for e in done] == [
        ("fc_A", "f", '{"x":1}'),
        ("fc_B", "g", "{}"),
    ]


@pytest.mark.parametrize("events", [SIMPLE, RICH])
def test_the_whole_answer_is_the_one_that_ends_the_stream(events: Events) -> None:
    assert whole(events) == streamed(events)[-1]["response"]


def test_the_object_tells_what_was_asked_for() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {}, "strict": True}]
    body = {
        "instructions": "be",
        "tools": tools,
        "tool_choice": "required",
        "temperature": 0.5,
        "metadata": {"a": "b"},
    }
    final = whole(SIMPLE, {**body, "parallel_tool_calls": False, "reasoning": {"effort": "low"}})
    assert {name: final[name] for name in body} == body
    assert (final["model"], final["id"], final["object"]) == ("Alpha", "resp_1", "response")
    assert (final["parallel_tool_calls"], final["reasoning"]["effort"]) == (False, "low")
    assert (final["store"], final["previous_response_id"], final["error"]) == (False, None, None)
    assert final["usage"]["input_tokens_details"]["cached_tokens"] == 3
    bare = whole(SIMPLE)
    assert (bare["tools"], bare["tool_choice"], bare["parallel_tool_calls"]) == ([], "auto", True)
    assert bare["text"] == {"format": {"type": "text"}}


def test_openais_own_types_take_it_all_under_strict_validation() -> None:
    types = pytest.importorskip("openai.types.responses")
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(types.ResponseStreamEvent)
    for events in (SIMPLE, RICH, CUT):
        body = {"max_output_tokens": 2} if events is CUT else {}
        for event in streamed(events, body):
            adapter.validate_python(event)
            assert "output_index" in event or "response" in event
        types.Response.model_validate(whole(events, body))


# --- how it ends ----------------------------------------------------------------------------------------

CUT = [*created(), *text("a", "b", seen=1), *completed(2, said("ab"))]


def test_an_answer_that_was_cut_is_incomplete() -> None:
    events = streamed(CUT, {"max_output_tokens": 2})
    assert events[-1]["type"] == "response.incomplete"
    final = events[-1]["response"]
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert final["output"][-1]["status"] == "incomplete"
    assert whole(CUT, {"max_output_tokens": 2}) == final


@pytest.mark.parametrize("limit", [{}, {"max_output_tokens": 3}, {"max_output_tokens": None}])
def test_an_answer_within_its_limit_is_complete(limit: dict[str, Any]) -> None:
    final = whole(CUT, limit)
    assert (final["status"], final["incomplete_details"]) == ("completed", None)
    assert final["output"][-1]["status"] == "completed"


def test_an_answer_that_ends_by_itself_with_its_last_token_is_complete() -> None:
    events = [*created(), *text("a", "b", seen=1), *completed(3, said("ab"))]  # the third token is the end
    assert whole(events, {"max_output_tokens": 3})["status"] == "completed"


def test_text_that_was_held_back_at_the_limit_is_sent_and_was_cut() -> None:
    events = [*created(), *text("a", "b", seen=1), *completed(3, said("abc"))]
    made = streamed(events, {"max_output_tokens": 3})
    assert [e["delta"] for e in made if "delta" in e] == ["a", "b", "c"]
    assert made[-1]["response"]["status"] == "incomplete"


def test_an_answer_that_filled_the_context_was_cut() -> None:
    assert LEASE.context_length == 4096
    events = [*created(), *text("a"), *completed(96, said("a"), prompt=4000)]
    assert whole(events)["status"] == "incomplete"
    assert whole([*created(), *text("a"), *completed(95, said("a"), prompt=4000)])["status"] == "completed"


def test_an_answer_of_nothing_is_one() -> None:
    final = whole([*created(), *completed(1)])
    assert (final["output"], final["status"]) == ([], "completed")


@pytest.mark.parametrize("count", range(len(SIMPLE)))
def test_a_stream_that_breaks_off_ends_with_an_error(count: int) -> None:
    cut = [event for event in SIMPLE if event["type"] != "response.completed"][:count]
    assert drive(DIALECT, asked(), stream=lambda call: cut).reply.status == 502  # type: ignore[union-attr] # it is there
    done = drive(DIALECT, asked({"stream": True}), stream=lambda call: cut)
    last = done.emitted.strip().split(b"\n\n")[-1] if done.begun else b"data: " + done.reply.body  # type: ignore[union-attr] # one of both
    event = json.loads(last.removeprefix(b"data: "))
    assert event["error"]["message"]
    assert not done.begun or event["type"] == "error"


# --- what is asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("previous_response_id", "resp_0"), ("conversation", {"id": "c"}), ("background", True), ("input", [])],
)
@pytest.mark.parametrize("path", [RESPONSES, RESPONSES_TOKENS])
def test_what_needs_stored_answers_is_refused(field: str, value: Any, path: str) -> None:
    with pytest.raises(InvalidField) as error:
        asked({field: value}, path)
    assert (error.value.status, error.value.field) == (400, field)


def test_the_shape_of_an_answer_reaches_the_engine_in_its_own_words() -> None:
    schema = {"type": "object", "properties": {}}
    shape = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    (call,) = drive(DIALECT, asked({"text": {"format": shape}})).calls
    inner = {"name": "x", "schema": schema, "strict": True}
    assert call.patch["response_format"] == {"type": "json_schema", "json_schema": inner}
    (call,) = drive(DIALECT, asked({"text": {"format": {"type": "json_object"}}})).calls
    assert call.patch["response_format"] == {"type": "json_object"}
    (call,) = drive(DIALECT, asked({"text": {"format": {"type": "text"}}})).calls
    assert "response_format" not in call.patch


@pytest.mark.parametrize("path", [RESPONSES, RESPONSES_TOKENS])
def test_an_assistants_turn_needs_no_type(path: str) -> None:
    before, after = {"role": "user", "content": "a"}, {"role": "user", "content": "c"}
    turn = {"role": "assistant", "content": "b"}
    (call,) = drive(DIALECT, asked({"input": [before, turn, after]}, path)).calls
    assert call.patch["input"] == [before, {**turn, "type": "message"}, after]
    for known in ("a", [before], [{**turn, "type": "message"}, after], ["?"]):
        (call,) = drive(DIALECT, asked({"input": known}, path)).calls
        assert "input" not in call.patch


def test_an_answer_is_streamed_from_the_engine_either_way_so_that_leaving_frees_the_slot() -> None:
    for stream in (True, False):
        (call,) = drive(DIALECT, asked({"stream": stream, "reasoning": {"effort": "minimal"}})).calls
        assert (call.mode, call.path, call.patch["stream"]) == ("stream", RESPONSES, True)
        assert call.patch["reasoning_effort"] == "low"


def test_tokens_are_counted_beside_the_slots() -> None:
    intent = asked({}, RESPONSES_TOKENS)
    (call,) = drive(DIALECT, intent).calls
    assert (intent.slots, call.path, call.mode) == (0, RESPONSES_TOKENS, "plain")


def test_a_thought_without_its_words_is_told_by_its_summary_or_left_out() -> None:
    summary = [{"type": "summary_text", "text": "s"}]
    closed = {"type": "reasoning", "id": "rs_1", "summary": summary, "content": None}
    items = [
        {"role": "user", "content": "a"},
        closed,
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
    ]
    told = conversation({"input": items})["input"]
    assert told == [items[0], {**closed, "content": [{"type": "reasoning_text", "text": "s"}]}]
    assert (
        conversation({"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]}]})
        == {}
    )


def test_what_would_have_to_be_stored_is_refused() -> None:
    with pytest.raises(InvalidField, match="send the item itself"):
        check({"input": [{"type": "item_reference", "id": "x"}]})
