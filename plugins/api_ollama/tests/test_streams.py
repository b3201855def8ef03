"""What clients are told: chunks, tool calls, figures, ends and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ollama_script import (
    DIALECT,
    FIGURES,
    HELLO,
    PROMPT,
    TIMINGS,
    TOOL,
    chunk,
    lines,
    replied,
    saying,
    served,
    texts,
)

from llamaman import errors
from llamaman.gateway.dialect import Call, Result
from llamaman.testing.dialect_script import LEASE, Transcript
from llamaman_api_ollama import stream
from llamaman_api_ollama.dialect import CHAT, GENERATE

ROLE = chunk(role="assistant", content=None)
END = chunk("stop")
WHOLE = {**HELLO, "stream": False}


def call_piece(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": first["name"]} if "name" in first else {})}
    piece = {"index": index, "function": function, **({"id": first["id"]} if "id" in first else {})}
    return chunk(tool_calls=[piece])


# --- chat -----------------------------------------------------------------------------------------------


def test_a_chat_streams_one_object_per_line_and_ends_with_the_figures() -> None:
    found = lines(served(CHAT, HELLO, ROLE, chunk(content="hi "), chunk(content="ä"), END))
    assert found == [
        {
            "model": "alpha",
            "created_at": "1970-01-01T00:00:00.000000Z",
            "message": {"role": "assistant", "content": text},
            "done": False,
        }
        for text in ("hi ", "ä")
    ] + [
        {
            "model": "alpha",
            "created_at": "1970-01-01T00:00:00.000000Z",
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
            **FIGURES,
        }
    ]  # fmt: skip


def test_a_whole_answer_holds_the_same() -> None:
    events = (
        ROLE,
        chunk(reasoning_content="t1"),
        chunk(reasoning_content="t2"),
        chunk(content="a"),
        chunk(content="b"),
        END,
    )
    found = replied(served(CHAT, WHOLE, *events))
    assert found["message"] == {"role": "assistant", "content": "ab", "thinking": "t1t2"}
    assert (found["done"], found["done_reason"]) == (True, "stop")
    assert {name: found[name] for name in FIGURES} == FIGURES
    assert "logprobs" not in found


def test_generate_has_its_text_at_the_top() -> None:
    done = served(GENERATE, PROMPT, ROLE, chunk(reasoning_content="t"), chunk(content="x"), END)
    thought, said, last = lines(done)
    assert (thought["response"], thought["thinking"]) == ("", "t")
    assert (said["response"], "thinking" in said, "message" in said) == ("x", False, False)
    assert (last["response"], last["done"], last["context"]) == ("", True, [1, 2, 3])
    assert (
        replied(served(GENERATE, {**PROMPT, "stream": False}, ROLE, chunk(content="x"), END))["response"]
        == "x"
    )


def test_one_chunk_may_think_and_speak() -> None:
    found = lines(served(CHAT, HELLO, chunk(content="a", reasoning_content="b"), END))
    assert found[0]["message"] == {"role": "assistant", "content": "a", "thinking": "b"}


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_line_ends_of_unicode_survive_inside_a_line(path: str) -> None:
    text = "a\u2028b\u2029c\u0085d\ne\U0001f600"
    found = lines(served(path, {**HELLO, **PROMPT}, chunk(content=text), END))
    assert texts(found, path)[0] == text


def test_an_event_without_choices_is_read_for_its_timings() -> None:
    end = {**chunk("stop"), "timings": None}
    usage = {"choices": [], "usage": {}, "timings": TIMINGS}
    assert lines(served(CHAT, HELLO, chunk(content="x"), end, usage))[-1]["eval_count"] == 3


@pytest.mark.parametrize(
    ("finish", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("limit", "stop")]
)
def test_why_it_ended_is_told_in_ollamas_words(finish: str, reason: str) -> None:
    assert lines(served(CHAT, HELLO, chunk(finish)))[-1]["done_reason"] == reason


def test_the_model_is_named_as_the_client_named_it() -> None:
    for name in ("ALPHA", "alpha:latest", "library/alpha"):
        assert {line["model"] for line in lines(served(CHAT, {**HELLO, "model": name}))} == {name}
    assert lines(served(CHAT, {**HELLO, "model": "", "name": "Alpha"}))[0]["model"] == "Alpha"


# --- figures --------------------------------------------------------------------------------------------


def test_durations_are_whole_nanoseconds_and_zeros_are_left_out() -> None:
    timings = {"cache_n": 0, "prompt_n": 1, "prompt_ms": 0.5234567891, "predicted_n": 0, "predicted_ms": 0.0}
    found = stream.figures(timings, received=10.0, granted=10.5, ended=12.0)
    assert found == {
        "total_duration": 2_000_000_000,
        "load_duration": 500_000_000,
        "prompt_eval_count": 1,
        "prompt_eval_duration": 523_456,
    }
    assert all(type(value) is int for value in found.values())


def test_loading_never_takes_no_time() -> None:
    assert stream.figures(None, received=5.0, granted=5.0, ended=5.0) == {
        "total_duration": 1,
        "load_duration": 1,
    }
    assert (
        stream.figures({"prompt_n": "x", "prompt_ms": None}, received=5.0, granted=4.0, ended=5.0)[
            "load_duration"
        ]
        == 1
    )


def test_times_have_a_zone() -> None:
    assert stream.moment(1_700_000_000.25) == "2023-11-14T22:13:20.250000Z"


# --- tool calls -----------------------------------------------------------------------------------------

TOOLS = {**HELLO, "tools": [TOOL]}


def test_tool_calls_come_whole_on_a_line_of_their_own_before_the_last() -> None:
    events = (
        ROLE,
        call_piece(0, "", id="c0", name="lookup"),
        call_piece(0, '{"q":"ti'),
        call_piece(1, "", id="c1", name="now"),
        call_piece(0, 'de","n":2}'),
        chunk("tool_calls"),
    )
    calls = [
        {"id": "c0", "function": {"index": 0, "name": "lookup", "arguments": {"q": "tide", "n": 2}}},
        {"id": "c1", "function": {"index": 1, "name": "now", "arguments": {}}},
    ]
    told, last = lines(served(CHAT, TOOLS, *events))
    assert told["message"] == {"role": "assistant", "content": "", "tool_calls": calls}
    assert told["done"] is False
    assert (last["message"], last["done_reason"]) == ({"role": "assistant", "content": ""}, "stop")
    whole = replied(served(CHAT, {**TOOLS, "stream": False}, *events))
    assert whole["message"] == {"role": "assistant", "content": "", "tool_calls": calls}


def test_a_call_without_an_id_gets_one() -> None:
    told, _ = lines(served(CHAT, TOOLS, call_piece(0, "{}", name="f"), chunk("tool_calls")))
    assert told["message"]["tool_calls"][0]["id"] == "call_0"


@pytest.mark.parametrize("fragment", ["{", "", '{"q": "ti'])
def test_a_call_that_the_limit_cut_off_is_left_out(fragment: str) -> None:
    events = (
        call_piece(0, '{"a":1}', id="c0", name="f"),
        call_piece(1, fragment, id="c1", name="g"),
        chunk("length"),
    )
    told, last = lines(served(CHAT, TOOLS, *events))
    assert [call["function"]["name"] for call in told["message"]["tool_calls"]] == ["f"]
    assert last["done_reason"] == "length"
    (alone,) = lines(served(CHAT, TOOLS, call_piece(0, fragment, name="g"), chunk("length")))
    assert (alone["done"], alone["done_reason"]) == (True, "length")


@pytest.mark.parametrize("arguments", ["{", "[1]", "nonsense", '{"a": NaN}'])
def test_a_call_that_is_none_is_an_error(arguments: str) -> None:
    events = (call_piece(0, arguments, name="f"), chunk("tool_calls"))
    assert "error parsing tool call" in replied(served(CHAT, TOOLS, *events), 500)["error"]
    *_, last = lines(served(CHAT, TOOLS, chunk(content="x"), *events))
    assert "error parsing tool call" in last["error"]


# --- logprobs -------------------------------------------------------------------------------------------

CHANCES = [
    {
        "id": 1,
        "token": "ä",
        "bytes": [1],
        "logprob": -0.5,
        "top_logprobs": [{"token": "b", "logprob": -2.0}, {"token": "ä", "logprob": -0.5, "bytes": []}],
    }
]


def test_probabilities_come_with_each_token_even_without_text() -> None:
    asked = {**HELLO, "logprobs": True, "top_logprobs": 2}
    first, second, last = lines(
        served(CHAT, asked, chunk(content="", logprobs=CHANCES), chunk(content="ä", logprobs=CHANCES), END)
    )
    expected = [
        {
            "token": "ä",
            "logprob": -0.5,
            "bytes": [195, 164],
            "top_logprobs": [
                {"token": "ä", "logprob": -0.5, "bytes": [195, 164]},
                {"token": "b", "logprob": -2.0, "bytes": [98]},
            ],
        }
    ]
    assert first["logprobs"] == second["logprobs"] == expected
    assert first["message"]["content"] == ""
    assert "logprobs" not in last


def test_alternatives_are_told_only_where_they_were_asked_for() -> None:
    found = replied(
        served(
            CHAT,
            {**WHOLE, "logprobs": True},
            chunk(content="x", logprobs=CHANCES),
            chunk(content="y", logprobs=CHANCES),
            END,
        )
    )
    assert found["logprobs"] == [{"token": "ä", "logprob": -0.5, "bytes": [195, 164]}] * 2


def test_probabilities_beside_tools_are_asked_plainly_and_told_the_same_way() -> None:
    message = {
        "role": "assistant",
        "content": "x",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }
    body = {
        "choices": [{"message": message, "finish_reason": "tool_calls", "logprobs": {"content": CHANCES}}],
        "timings": TIMINGS,
    }

    def answer(call: Call) -> Result:
        assert call.mode == "plain"
        return Result(200, json.dumps(body).encode())

    said, called, last = lines(served(CHAT, {**TOOLS, "logprobs": True}, answer=answer))
    assert (said["message"]["content"], len(said["logprobs"])) == ("x", 1)
    assert called["message"]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert last["eval_count"] == 3
    for odd in (b"[]", b"no"):
        replied(served(CHAT, {**TOOLS, "logprobs": True}, answer=lambda call, odd=odd: Result(200, odd)), 502)


# --- /completion ----------------------------------------------------------------------------------------


def test_a_raw_prompts_stream_is_read_the_same_way() -> None:
    chances = [{"token": "x", "logprob": -1.0, "top_logprobs": []}]
    events = (
        {"content": "x", "stop": False, "completion_probabilities": chances},
        {"content": "", "stop": True, "stop_type": "limit", "timings": TIMINGS},
    )
    first, last = lines(served(GENERATE, {**PROMPT, "raw": True, "logprobs": True}, *events))
    assert (first["response"], first["logprobs"][0]["token"]) == ("x", "x")
    assert (last["done_reason"], last["eval_count"], "context" in last) == ("length", 3, False)


@pytest.mark.parametrize(("kind", "reason"), [("eos", "stop"), ("word", "stop"), ("limit", "length")])
def test_why_a_raw_prompt_ended(kind: str, reason: str) -> None:
    end = {"content": "", "stop": True, "stop_type": kind}
    assert lines(served(GENERATE, {**PROMPT, "raw": True}, end))[-1]["done_reason"] == reason


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "told"),
    [
        (400, "request (5024 tokens) exceeds the available context size (2048 tokens)", 400),
        (400, "image input is not supported - hint: provide the mmproj", 400),
        (500, "Compute error.", 500),
        (503, "Loading model", 503),
    ],
)
def test_an_engines_error_is_told_as_it_said_it(status: int, message: str, told: int) -> None:
    assert replied(served(CHAT, HELLO, answer=saying(status, message)), told) == {"error": message}


def test_a_batch_that_is_too_small_is_the_clients_input_that_is_too_long() -> None:
    message = "input (601 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
    said = replied(served(CHAT, HELLO, answer=saying(500, message)), 400)
    assert said == {"error": "the input length exceeds the context length"}


@pytest.mark.parametrize("body", [b"", b"oops", b"[]", b'{"error": 5}'])
def test_an_error_that_is_none_of_llama_servers_names_its_status(body: bytes) -> None:
    assert replied(served(CHAT, HELLO, answer=lambda call: Result(502, body)), 502) == {
        "error": "the engine answered 502"
    }


def failing_stream(*events: dict[str, Any], path: str = CHAT) -> Transcript:
    """An engine that says this and then that it cannot go on."""
    from ollama_script import opened

    from llamaman.gateway.dialect import Call, Chunk, Emit, Next, Reply, Start
    from llamaman.testing.dialect_script import MODEL

    done = Transcript()
    serving = DIALECT.serve(opened(path, {**HELLO, **PROMPT}), MODEL, LEASE)
    pending, event = list(events), None
    for _ in range(50):
        try:
            op = serving.send(event)
        except StopIteration:
            break
        event = None
        if isinstance(op, Call | Next):
            event = (
                Chunk(pending.pop(0)) if pending else Result(500, b'{"error":{"message":"Compute error."}}')
            )
        elif isinstance(op, Start):
            done.begun = op
        elif isinstance(op, Emit):
            done.emitted += op.data
        elif isinstance(op, Reply):
            done.reply = op
    return done


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_an_error_before_the_first_chunk_keeps_its_status(path: str) -> None:
    assert replied(failing_stream(ROLE, path=path), 500) == {"error": "Compute error."}


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_an_error_after_it_is_the_last_line(path: str) -> None:
    said, last = lines(failing_stream(ROLE, chunk(content="x"), path=path))
    assert texts([said], path) == ["x"]
    assert last == {"error": "Compute error."}


def test_an_answer_without_an_end_is_an_error() -> None:
    *_, last = lines(served(CHAT, HELLO, chunk(content="x")))
    assert "unexpectedly stopped" in last["error"]
    assert "unexpectedly stopped" in replied(served(CHAT, WHOLE, chunk(content="x")), 502)["error"]


def test_errors_of_the_kernel_are_one_sentence() -> None:
    reply = DIALECT.error(errors.QueueFull("full", retry_after=3), started=False)
    assert not isinstance(reply, bytes)
    assert (reply.status, json.loads(reply.body), dict(reply.headers)[b"retry-after"]) == (
        429,
        {"error": "full"},
        b"3",
    )
    assert DIALECT.error(errors.EngineDied("äh"), started=True) == b'{"error": "\\u00e4h"}\n'


def test_nothing_is_sent_while_a_client_waits() -> None:
    assert [DIALECT.waiting(phase, 60.0) for phase in ("queue", "load", "prefill")] == [None] * 3


def test_the_engine_is_asked_to_stream_whatever_the_client_wants() -> None:
    for path in (CHAT, GENERATE):
        for wanted in (True, False, None):
            (call, *_) = served(path, {**HELLO, **PROMPT, "stream": wanted}).calls
            assert call.mode == "stream"
