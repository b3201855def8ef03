"""What a client hears: the order of events, whole answers, and how both end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from llamaman.errors import LlamaManError
from llamaman.gateway.dialect import Call, Chunk, Emit, Event, Intent, Next, Reply, Result, Start
from llamaman.testing.dialect_script import LEASE, MODEL, Transcript, drive, request_for
from llamaman_api_anthropic.dialect import MESSAGES, Anthropic

DIALECT = Anthropic()
ROUTE = next(route for route in DIALECT.routes if route.pattern == MESSAGES)
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 7,
    "total_tokens": 37,
    "prompt_tokens_details": {"cached_tokens": 10},
}
FIGURES = {
    "input_tokens": 20,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 10,
    "output_tokens": 7,
}

Delta = dict[str, Any]
ROLE: Delta = {"role": "assistant", "content": None}


def said(text: str) -> Delta:
    return {"content": text}


def thought(text: str) -> Delta:
    return {"reasoning_content": text}


def call(index: int, arguments: str, name: str | None = None, identity: str | None = None) -> Delta:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"tool_calls": [{"index": index, "function": function, **({"id": identity} if identity else {})}]}


def ask(deltas: list[Delta], finish: str | None = "stop", **options: Any) -> Transcript:
    """One request, answered by these deltas."""
    more = options.pop("last", {})
    body = {"model": "ALPHA", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **options}
    intent = DIALECT.open(request_for(ROUTE, body))
    assert isinstance(intent, Intent)
    parts = [{"index": 0, "delta": delta, "finish_reason": None} for delta in [ROLE, *deltas]]
    parts.append({"index": 0, "delta": {}, "finish_reason": finish})
    chunks: list[dict[str, Any]] = [{"id": "chatcmpl-1", "choices": [part]} for part in parts]
    chunks[-1] |= more
    chunks.append({"id": "chatcmpl-1", "choices": [], "usage": USAGE})
    return drive(DIALECT, intent, MODEL, stream=lambda _: chunks)


def events(*args: Any, **options: Any) -> list[dict[str, Any]]:
    """The events of a stream, which say the same in both lines."""
    raw = ask(*args, stream=True, **options).emitted.decode()
    assert raw.endswith("\n\n")
    found = []
    for event in raw[:-2].split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def message(*args: Any, **options: Any) -> dict[str, Any]:
    """A whole answer."""
    reply = ask(*args, **options).reply
    assert reply is not None
    assert reply.status == 200
    found = json.loads(reply.body)
    assert isinstance(found, dict)
    return found


def blocks(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that a client puts together; fails where the order of events is wrong."""
    types = [event["type"] for event in told]
    assert types[:2] == ["message_start", "ping"]
    assert types[-2:] == ["message_delta", "message_stop"]
    content: list[dict[str, Any]] = []
    is_open = False
    for event in told[2:-2]:
        match event["type"]:
            case "content_block_start":
                assert not is_open, "one block at a time"
                assert event["index"] == len(content), "indexes rise by one"
                content.append({**event["content_block"], "pieces": []})
                is_open = True
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(content) - 1
                content[-1]["pieces"].append(event["delta"])
            case "content_block_stop":
                assert is_open
                assert event["index"] == len(content) - 1
                is_open = False
            case other:
                raise AssertionError(other)
    assert not is_open
    return content


def test_a_text_is_told_in_order() -> None:
    usage = {
        "input_tokens": 1,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    assert events([said("a"), said("ä")]) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "ALPHA",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage,
            },
        },
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ä"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": FIGURES,
        },
        {"type": "message_stop"},
    ]


def test_a_whole_answer_is_a_message() -> None:
    assert message([said("a"), said("ä")]) == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "ALPHA",
        "content": [{"type": "text", "text": "aä"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": FIGURES,
    }


A, B = (("f", "A"), ("g", "B"))
INTERLEAVED: dict[str, tuple[list[Delta], list[dict[str, Any]]]] = {
    "nothing": ([], []),
    "empty pieces": ([said(""), thought(""), said("a")], [{"type": "text", "text": "a"}]),
    "a thought and a text": (
        [thought("h"), thought("m"), said("yo")],
        [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "yo"}],
    ),
    "both in one piece": (
        [{"reasoning_content": "hm", "content": "yo"}],
        [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "yo"}],
    ),
    "a text, a call, a text, a thought, a call": (
        [
            said("a"),
            call(0, "{", *A),
            call(0, '"x": 1'),
            call(0, "}"),
            said("b"),
            thought("c"),
            call(1, "{}", *B),
        ],
        [
            {"type": "text", "text": "a"},
            {"type": "tool_use", "id": "toolu_A", "name": "f", "input": {"x": 1}},
            {"type": "text", "text": "b"},
            {"type": "thinking", "thinking": "c", "signature": ""},
            {"type": "tool_use", "id": "toolu_B", "name": "g", "input": {}},
        ],
    ),
    "two calls in one piece": (
        [{"tool_calls": call(0, "{}", *A)["tool_calls"] + call(1, '{"y": []}', *B)["tool_calls"]}],
        [
            {"type": "tool_use", "id": "toolu_A", "name": "f", "input": {}},
            {"type": "tool_use", "id": "toolu_B", "name": "g", "input": {"y": []}},
        ],
    ),
    "a call without an id": (
        [call(0, "{}", "f")],
        [{"type": "tool_use", "id": "toolu_1_0", "name": "f", "input": {}}],
    ),
    "a call without arguments": (
        [call(0, "", *A)],
        [{"type": "tool_use", "id": "toolu_A", "name": "f", "input": {}}],
    ),
    "separators of lines that are none": (
        [said("a\u2028b\u0085c"), call(0, '{"x": "\u2029"}', *A)],
        [
            {"type": "text", "text": "a\u2028b\u0085c"},
            {"type": "tool_use", "id": "toolu_A", "name": "f", "input": {"x": "\u2029"}},
        ],
    ),
    "half a surrogate pair": (
        [call(0, '{"x": "\\ud83e"}', *A)],
        [{"type": "tool_use", "id": "toolu_A", "name": "f", "input": {"x": "\ud83e"}}],
    ),
}


@pytest.mark.parametrize("name", INTERLEAVED)
def test_blocks_follow_one_another_and_a_whole_answer_is_what_they_add_up_to(name: str) -> None:
    deltas, content = INTERLEAVED[name]
    finish = "tool_calls" if any("tool_calls" in delta for delta in deltas) else "stop"
    assert message(deltas, finish)["content"] == content
    put_together = []
    for block in blocks(events(deltas, finish)):
        pieces = block.pop("pieces")
        if block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = json.loads("".join(piece["partial_json"] for piece in pieces) or "{}")
        elif block["type"] == "thinking":
            assert pieces.pop() == {"type": "signature_delta", "signature": ""}
            block["thinking"] = "".join(piece["thinking"] for piece in pieces)
        else:
            block["text"] = "".join(piece["text"] for piece in pieces)
        put_together.append(block)
    assert put_together == content


@pytest.mark.parametrize(
    ("deltas", "finish", "reason"),
    [
        ([said("a")], "stop", "end_turn"),
        ([said("a")], "length", "max_tokens"),
        ([call(0, "{}", *A)], "tool_calls", "tool_use"),
        ([call(0, "{}", *A)], "stop", "tool_use"),
        ([said("a")], None, "end_turn"),
    ],
)
def test_why_an_answer_ended(deltas: list[Delta], finish: str | None, reason: str) -> None:
    assert message(deltas, finish)["stop_reason"] == reason
    assert events(deltas, finish)[-2]["delta"]["stop_reason"] == reason


def test_the_text_that_stopped_an_answer_is_told() -> None:
    last = {"__verbose": {"stop_type": "word", "stopping_word": "END"}}
    told = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    assert events([said("a")], last=last, stop_sequences=["END"])[-2]["delta"] == told
    whole = message([said("a")], last=last, stop_sequences=["END"])
    assert {name: whole[name] for name in told} == told
    other = message([said("a")], last={"__verbose": {"stop_type": "eos"}}, stop_sequences=["END"])
    assert (other["stop_reason"], other["stop_sequence"]) == ("end_turn", None)


def test_a_call_that_the_limit_cut_off_is_left_out() -> None:
    deltas = [said("a"), call(0, "{}", *A), call(1, '{"x', *B)]
    whole = message(deltas, "length")
    assert [block["type"] for block in whole["content"]] == ["text", "tool_use"]
    assert whole["stop_reason"] == "max_tokens"
    assert message([call(0, "", *A)], "length")["content"] == [], "not a call without arguments"
    streamed = blocks(events(deltas, "length"))
    assert [block["type"] for block in streamed] == ["text", "tool_use", "tool_use"], "its pieces are out"


@pytest.mark.parametrize("arguments", ['{"x', "[]", "5", "nul"])
def test_a_call_with_arguments_that_are_no_object_is_an_error(arguments: str) -> None:
    for stream in (True, False):
        with pytest.raises(LlamaManError, match="not a JSON object"):
            ask([call(0, arguments, *A)], "tool_calls", stream=stream)


def test_thoughts_can_be_left_out_of_their_blocks() -> None:
    hidden = {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}}
    content = [{"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": "yo"}]
    assert message([thought("hm"), said("yo")], **hidden)["content"] == content
    first, _ = blocks(events([thought("hm"), said("yo")], **hidden))
    assert first["pieces"] == [{"type": "signature_delta", "signature": ""}]


def test_answers_carry_the_id_of_their_request() -> None:
    whole, streamed = ask([said("a")]), ask([said("a")], stream=True)
    assert whole.reply is not None
    assert isinstance(streamed.begun, Start)
    for headers in (whole.reply.headers, streamed.begun.headers):
        assert dict(headers)[b"request-id"] == b"req_1-1"


# --- ends that are none ---------------------------------------------------------------------------------


def engine_fails(after: int, status: int, *, stream: bool) -> Transcript:
    """An engine whose stream ends in an error after so many chunks."""
    body = {
        "model": "alpha",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
    }
    intent = DIALECT.open(request_for(ROUTE, body))
    assert isinstance(intent, Intent)
    serving = DIALECT.serve(intent, MODEL, LEASE)
    error = Result(status, json.dumps({"error": {"message": "it broke", "code": status}}).encode())
    chunk = Chunk({"choices": [{"index": 0, "delta": said("a")}]})
    answers: Iterator[Event] = iter([chunk] * after + [error])
    done = Transcript()
    event: Event = None
    with suppress(StopIteration):
        while True:
            op = serving.send(event)
            event = next(answers) if isinstance(op, Call | Next) else None
            if isinstance(op, Reply):
                done.reply = op
            elif isinstance(op, Emit):
                done.emitted += op.data
    return done


def test_an_error_before_the_first_piece_keeps_its_status() -> None:
    for stream in (True, False):
        reply = engine_fails(0, 503, stream=stream).reply
        assert reply is not None
        assert reply.status == 503
        error = {"type": "overloaded_error", "message": "it broke"}
        assert json.loads(reply.body) == {"type": "error", "error": error, "request_id": "req_1-1"}
        assert reply.late == b"event: error\ndata: " + reply.body + b"\n\n", (
            "behind heartbeats it is an event"
        )


def test_an_error_in_a_stream_is_its_last_event() -> None:
    last = engine_fails(2, 500, stream=True).emitted.rstrip().rpartition(b"\n\n")[2]
    name, data = last.split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["error"] == {"type": "api_error", "message": "it broke"}


def test_an_error_while_a_whole_answer_is_made_is_the_answer() -> None:
    reply = engine_fails(2, 500, stream=False).reply
    assert reply is not None
    assert reply.status == 500
