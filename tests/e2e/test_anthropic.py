"""The Anthropic API over real engines: what its clients see of answers, tools, thoughts, errors and ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from llamaman.testing import write_tiny_model
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager
from llamaman.testing.wire import Answer, Request

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HELLO = [{"role": "user", "content": "hello"}]

#: A template whose tool calls the engine can force on any model: no text may come before them.
WITH_TOOLS = (
    "{# >>>all #}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}>>>all\n{% endif %}{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}>>>{{ c.function.name }}\n{{ c.function.arguments | tojson }}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n>>>{% endif %}"
)
#: One that opens a thought unless it shall not.
WITH_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% else %}<think>\n{% endif %}"
    "{% endif %}"
)
TEXT = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 6}}, "required": ["text"]}
TOOLS = [{"name": "say", "description": "d", "input_schema": TEXT}, {"name": "sing", "input_schema": TEXT}]


def ask(manager: Manager, path: str = MESSAGES, *, port: int | None = None, **fields: Any) -> Request:
    """A request as Anthropic's clients send it."""
    headers = {"x-api-key": manager.inference_key, "anthropic-version": "2023-06-01"}
    body = {"model": "tiny", "messages": HELLO, "temperature": 0, **fields}
    if path == MESSAGES:
        body.setdefault("max_tokens", 12)
    return Request(port or manager.proxy_port, "POST", path, headers=headers, body=body)


def message(manager: Manager, **fields: Any) -> dict[str, Any]:
    answer = ask(manager, **fields).answer()
    assert answer.status == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def events(manager: Manager, **fields: Any) -> list[dict[str, Any]]:
    with ask(manager, stream=True, **fields) as request:
        assert request.begun.getheader("content-type", "").startswith("text/event-stream")
        return [json.loads(event) for event in request.events()]


def error(answer: Answer) -> tuple[int, str]:
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["message"]
    assert body["request_id"] == answer.headers["request-id"] != ""
    return answer.status, body["error"]["type"]


def streamed(told: list[dict[str, Any]], kind: str) -> str:
    return "".join(e["delta"].get(kind, "") for e in told if e["type"] == "content_block_delta")


def model(manager: Manager, name: str, template: str) -> str:
    write_tiny_model(manager.models / f"{name}.gguf", chat_template=template)
    manager.manage("POST", "/api/models/rescan")
    manager.launch(name)
    return name


def test_streams_and_whole_answers_agree_with_one_another_and_with_the_count(manager: Manager) -> None:
    instance = manager.launch("tiny")
    whole = message(manager, model="TINY:latest")
    assert (whole["model"], whole["stop_reason"], whole["type"]) == ("TINY:latest", "max_tokens", "message")
    (block,) = whole["content"]
    assert len(block["text"]) == 12, "one byte is one token"
    told = events(manager)
    assert [event["type"] for event in told if event["type"] != "content_block_delta"] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert streamed(told, "text") == block["text"]
    assert streamed(events(manager, port=instance["port"], model=None), "text") == block["text"]
    counted = ask(manager, COUNT).answer().json()["input_tokens"]
    for usage in (whole["usage"], told[-2]["usage"]):
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted
        assert usage["output_tokens"] == 12
    longer = ask(manager, COUNT, system="be brief").answer().json()["input_tokens"]
    assert longer > counted

    begun = [*HELLO, {"role": "assistant", "content": block["text"][:4]}]
    rest = message(manager, messages=begun, max_tokens=8)["content"][0]["text"]
    assert rest == block["text"][4:], "what the client began is continued, not echoed"

    stop = block["text"][5:8]
    stopped = message(manager, stop_sequences=["not this", stop])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", stop)
    assert stopped["content"][0]["text"] == block["text"].partition(stop)[0]


def test_tools_are_called_and_their_results_understood(manager: Manager) -> None:
    name = model(manager, "tooled", WITH_TOOLS)
    one = {"type": "tool", "name": "sing", "disable_parallel_tool_use": True}
    fields: dict[str, Any] = {"model": name, "max_tokens": 120, "tools": TOOLS}
    told = events(manager, tool_choice=one, **fields)
    (block,) = (event["content_block"] for event in told if event["type"] == "content_block_start")
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "sing", {})
    assert told[-2]["delta"]["stop_reason"] == "tool_use"
    arguments = json.loads(streamed(told, "partial_json"))
    assert set(arguments) == {"text"}

    whole = message(manager, tool_choice=one, **fields)
    (call,) = whole["content"]
    assert (call["name"], call["input"], whole["stop_reason"]) == ("sing", arguments, "tool_use")
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "done"}]}
    history = [
        *HELLO,
        {"role": "assistant", "content": whole["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
    ]
    assert message(manager, messages=history, tool_choice={"type": "any"}, **fields)["content"]
    assert message(manager, messages=history, model=name)["content"], "calls in a history need no tools"
    cut = message(manager, tool_choice=one, **{**fields, "max_tokens": 12})
    assert (cut["content"], cut["stop_reason"]) == ([], "max_tokens")


def test_a_model_thinks_when_it_is_asked_to_and_no_longer_than_it_may(plain_manager: Manager) -> None:
    name = model(plain_manager, "thinker", WITH_THOUGHTS)
    silent = message(plain_manager, model=name)
    assert [block["type"] for block in silent["content"]] == ["text"]
    thinking = {"type": "enabled", "budget_tokens": 6}
    whole = message(plain_manager, model=name, thinking=thinking, max_tokens=40)
    assert [block["type"] for block in whole["content"]] == ["thinking", "text"]
    told = events(plain_manager, model=name, thinking=thinking, max_tokens=40)
    assert streamed(told, "thinking") == whole["content"][0]["thinking"] != ""
    assert streamed(told, "text") == whole["content"][1]["text"] != ""
    history = [*HELLO, {"role": "assistant", "content": whole["content"]}, *HELLO]
    assert message(plain_manager, model=name, messages=history)["content"]


def too_large(manager: Manager) -> Answer:
    """The answer to a request that announces more than anybody may send."""
    connection = http.client.HTTPConnection("127.0.0.1", manager.proxy_port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", MESSAGES)
        connection.putheader("x-api-key", manager.inference_key)
        connection.putheader("content-length", str(1 << 30))
        connection.endheaders()
        got = connection.getresponse()
        return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())


def test_errors_are_told_in_anthropics_shape(plain_manager: Manager, slow: Callable[[Manager], str]) -> None:
    manager = plain_manager
    assert error(ask(manager, model="nobody").answer()) == (404, "not_found_error")
    assert error(ask(manager, max_tokens=None).answer()) == (400, "invalid_request_error")
    stranger = Request(manager.proxy_port, "POST", MESSAGES, headers={"x-api-key": "wrong"}, body={})
    assert error(stranger.answer()) == (401, "authentication_error")
    assert error(too_large(manager)) == (413, "request_too_large")
    instance = manager.launch(slow(manager), max_queue_depth=1, **ENDLESS)
    picture = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    seen = [{"role": "user", "content": [{"type": "image", "source": picture}]}]
    for path in (MESSAGES, COUNT):
        assert error(ask(manager, path, model="slow", messages=seen).answer()) == (
            400,
            "invalid_request_error",
        )
    long = [{"role": "user", "content": "x" * 5000}]
    for stream in (True, False):
        refused = ask(manager, model="slow", messages=long, stream=stream).answer()
        assert error(refused) == (400, "invalid_request_error"), "it does not fit into the context"
    with ask(manager, model="slow", max_tokens=FOR_EVER, stream=True) as running:
        next(running.events())
        with ask(manager, model="slow"):
            manager.until(lambda: manager.instance(instance["id"])["queue"]["queued"] == 1, "a full queue")
            full = ask(manager, model="slow").answer()
            assert error(full) == (429, "rate_limit_error")
            assert int(full.headers["retry-after"]) >= 1


def test_no_room_for_a_model_is_an_overload(embedded: object, new_manager: Callable[..., Manager]) -> None:
    manager = new_manager(env={"LLAMAMAN_MAX_MODELS": "1"})
    write_tiny_model(manager.models / "other.gguf")
    manager.manage("POST", "/api/models/rescan")
    manager.launch("tiny")
    refused = ask(manager, model="other").answer()
    assert error(refused) == (503, "overloaded_error")


def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_event(
    plain_manager: Manager, slow: Callable[[Manager], str]
) -> None:
    instance = plain_manager.launch(slow(plain_manager), **ENDLESS)
    with ask(plain_manager, model="slow", max_tokens=FOR_EVER, stream=True) as request:
        told = []
        for event in request.events():
            told.append(json.loads(event))
            if len(told) == 6:
                os.kill(instance["pid"], signal.SIGKILL)
    assert told[-1]["type"] == "error"
    assert told[-1]["error"]["type"] == "overloaded_error"
    assert not [event for event in told if event["type"] == "message_stop"]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_slot(
    plain_manager: Manager, slow: Callable[[Manager], str], stream: bool
) -> None:
    manager = plain_manager
    instance = manager.launch(slow(manager), **ENDLESS)
    request = ask(manager, model="slow", max_tokens=FOR_EVER, stream=stream)
    manager.until(lambda: manager.busy_slots(instance["id"]) == 1, "the slot to work")
    request.disconnect()
    manager.until(lambda: manager.busy_slots(instance["id"]) == 0, "the slot to be free")
    manager.until(lambda: manager.instance(instance["id"])["queue"]["active"] == 0, "nobody to be left")
