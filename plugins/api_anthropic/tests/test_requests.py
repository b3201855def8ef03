"""What of a client's request reaches the engine, and what is refused in which words."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from llamaman.errors import InvalidField
from llamaman.gateway.dialect import Intent
from llamaman.testing.dialect_script import drive, request_for
from llamaman_api_anthropic.dialect import COUNT, MESSAGES, Anthropic
from llamaman_api_anthropic.request import completion_body

DIALECT = Anthropic()
ROUTES = {route.pattern: route for route in DIALECT.routes}
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "ä", "n": 1}}
TOLD_CALL = {
    "id": "toolu_1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at": "ä", "n": 1}'},
}
LOOK = {"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}
LOOK_FUNCTION = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
SMELL = {"name": "smell", "input_schema": {"type": "object"}}


def asked(messages: Any = HI, **fields: Any) -> dict[str, Any]:
    return completion_body({"model": "alpha", "max_tokens": 9, "messages": messages, **fields})


def told(*messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    found = asked(list(messages), **fields)["messages"]
    assert isinstance(found, list)
    return found


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def result(content: Any = None, **more: Any) -> dict[str, Any]:
    given = {} if content is None else {"content": content}
    return {"type": "tool_result", "tool_use_id": "toolu_1", **given, **more}


# --- the conversation -----------------------------------------------------------------------------------

CALLED = {"role": "assistant", "content": [CALL]}
TOLD = {"role": "assistant", "content": "", "tool_calls": [TOLD_CALL]}
ANSWERED = {"role": "tool", "tool_call_id": "toolu_1", "name": "look"}

CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "a text": (HI, HI),
    "blocks of text": ([user(said("a"), said("b", cache_control={}))], [{"role": "user", "content": "a\nb"}]),
    "an image": (
        [user(said("see"), IMAGE)],
        [{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE_PART]}],
    ),
    "a document": (
        [user({"type": "document", "title": "T", "source": {"type": "text", "data": "words"}}, said("?"))],
        [{"role": "user", "content": "T\nwords\n?"}],
    ),
    "a document of blocks": (
        [user({"type": "document", "source": {"type": "content", "content": [said("a"), IMAGE]}})],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE_PART]}],
    ),
    "blocks that nobody knows": (
        [
            user({"type": "hologram", "x": 1}, said("hi")),
            {"role": "assistant", "content": [{"type": "new"}]},
            *HI,
        ],
        [HI[0], {"role": "assistant", "content": ""}, HI[0]],
    ),
    "turns of one side": (
        [
            *HI,
            user(said("there")),
            {"role": "assistant", "content": "he"},
            {"role": "assistant", "content": "llo"},
        ],
        [{"role": "user", "content": "hi\nthere"}, {"role": "assistant", "content": "hello"}],
    ),
    "a thought": (
        [*HI, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, said("yo")]}, *HI],
        [HI[0], {"role": "assistant", "content": "yo", "reasoning_content": "hm"}, HI[0]],
    ),
    "a redacted thought": (
        [
            *HI,
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, said("yo")]},
            *HI,
        ],
        [HI[0], {"role": "assistant", "content": "yo"}, HI[0]],
    ),
    "a call and its result": (
        [*HI, CALLED, user(result("a llama"))],
        [HI[0], TOLD, {**ANSWERED, "content": "a llama"}],
    ),
    "a result and a text behind it": (
        [*HI, CALLED, user(result([said("a"), said("b")]), said("and?"))],
        [HI[0], TOLD, {**ANSWERED, "content": "a\nb"}, {"role": "user", "content": "and?"}],
    ),
    "a text before the result": (
        [*HI, CALLED, user(said("well"), result("a"))],
        [HI[0], TOLD, {**ANSWERED, "content": "a"}, {"role": "user", "content": "well"}],
    ),
    "a result with an image": (
        [*HI, CALLED, user(result([said("seen"), IMAGE]))],
        [HI[0], TOLD, {**ANSWERED, "content": "seen"}, {"role": "user", "content": [IMAGE_PART]}],
    ),
    "a failed call": (
        [*HI, CALLED, user(result("no such thing", is_error=True))],
        [HI[0], TOLD, {**ANSWERED, "content": "Error: no such thing"}],
    ),
    "a failed call that says so": (
        [*HI, CALLED, user(result("Error 5", is_error=True))],
        [HI[0], TOLD, {**ANSWERED, "content": "Error 5"}],
    ),
    "an empty result": ([*HI, CALLED, user(result())], [HI[0], TOLD, {**ANSWERED, "content": ""}]),
    "a result without its call": (
        [user(result("a"))],
        [{"role": "tool", "tool_call_id": "toolu_1", "content": "a"}],
    ),
    "a system message at the beginning": (
        [{"role": "system", "content": "S"}, *HI],
        [{"role": "system", "content": "S"}, HI[0]],
    ),
    "a system message in the middle": (
        [*HI, {"role": "assistant", "content": "yo"}, {"role": "system", "content": [said("S")]}, *HI],
        [
            HI[0],
            {"role": "assistant", "content": "yo"},
            {"role": "user", "content": "<system>\nS\n</system>\nhi"},
        ],
    ),
    "separators of lines that are none": (
        [user(said("a\u2028b\u0085c"))],
        [{"role": "user", "content": "a\u2028b\u0085c"}],
    ),
    "an empty text": ([user(said(""), said("a"))], [{"role": "user", "content": "a"}]),
    "an empty last turn": ([*HI, {"role": "assistant", "content": []}], HI),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_reaches_the_engine_whole(name: str) -> None:
    given, expected = CONVERSATIONS[name]
    assert told(*given) == expected


def test_the_system_prompt_is_the_first_message() -> None:
    expected = {"role": "system", "content": "a\n\nb"}
    assert told(*HI, system=[said("a"), said("b", cache_control={"type": "ephemeral"})])[0] == expected
    assert told({"role": "system", "content": "b"}, *HI, system="a") == [expected, HI[0]]
    assert told(*HI, system="") == HI


def test_every_message_has_a_content_that_is_not_null() -> None:
    for given, _ in CONVERSATIONS.values():
        assert all(message["content"] is not None for message in told(*given))


def test_an_answer_that_the_client_began_is_continued_and_not_echoed() -> None:
    body = asked([*HI, {"role": "assistant", "content": "{"}])
    assert (body["continue_final_message"], body["add_generation_prompt"], body["stream"]) == (
        True,
        False,
        True,
    )
    assert "continue_final_message" not in asked(HI)


# --- tools ----------------------------------------------------------------------------------------------


def test_tools_are_functions() -> None:
    body = asked(tools=[LOOK])
    assert body["tools"] == [LOOK_FUNCTION]
    assert "tool_choice" not in body
    assert "tools" not in asked(tools=[])


@pytest.mark.parametrize(
    ("choice", "names", "told_choice"),
    [
        ({"type": "auto"}, ["look", "smell"], "auto"),
        ({"type": "any"}, ["look", "smell"], "required"),
        ({"type": "none"}, ["look", "smell"], "none"),
        ({"type": "tool", "name": "smell"}, ["smell"], "required"),
    ],
)
def test_a_choice_of_one_tool_offers_only_that(choice: Any, names: list[str], told_choice: str) -> None:
    body = asked(tools=[LOOK, SMELL], tool_choice=choice)
    assert [tool["function"]["name"] for tool in body["tools"]] == names
    assert body["tool_choice"] == told_choice
    assert "parallel_tool_calls" not in body
    alone = asked(tools=[LOOK, SMELL], tool_choice={**choice, "disable_parallel_tool_use": True})
    assert alone["parallel_tool_calls"] is False


@pytest.mark.parametrize(("choice", "thinks"), [("auto", True), ("none", True), ("any", False)])
def test_a_model_that_must_call_a_tool_does_not_think_first(choice: str, thinks: bool) -> None:
    body = asked(tools=[LOOK], tool_choice={"type": choice}, thinking={"type": "adaptive"})
    assert body["chat_template_kwargs"] == {"enable_thinking": thinks}


def test_tools_that_run_at_anthropics_are_left_out() -> None:
    body = asked(tools=[{"type": "web_search_20250305", "name": "web_search"}, {**LOOK, "type": "custom"}])
    assert body["tools"] == [LOOK_FUNCTION]
    only = asked(tools=[{"type": "web_search_20250305", "name": "web_search"}], tool_choice={"type": "auto"})
    assert not {"tools", "tool_choice"} & set(only)


# --- thinking, effort, form -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thinking", "thinks", "budget"),
    [
        (None, False, None),
        ({"type": "disabled"}, False, None),
        ({"type": "adaptive"}, True, None),
        ({"type": "enabled"}, True, None),
        ({"type": "enabled", "budget_tokens": 2048}, True, 2048),
        ({"type": "disabled", "budget_tokens": 2048}, False, None),
    ],
)
def test_a_model_thinks_only_where_it_shall(thinking: Any, thinks: bool, budget: int | None) -> None:
    body = asked(thinking=thinking)
    assert body["chat_template_kwargs"] == {"enable_thinking": thinks}
    assert body.get("thinking_budget_tokens") == budget


@pytest.mark.parametrize(
    ("effort", "level"),
    [("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high"), ("max", "high")],
)
def test_the_effort_is_a_level_that_templates_know(effort: str, level: str) -> None:
    body = asked(thinking={"type": "adaptive"}, output_config={"effort": effort})
    assert body["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": level}


def test_a_schema_is_kept_to() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    expected = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert asked(output_config={"format": form})["response_format"] == expected
    assert asked(output_format=form)["response_format"] == expected


# --- sampling -------------------------------------------------------------------------------------------


def test_only_what_the_client_gave_is_sent() -> None:
    assert asked() == {
        "messages": HI,
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = asked(temperature=0, top_p=1, top_k=3, metadata={"user_id": "x"}, service_tier="auto", seed=5)
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0, 1, 3)
    assert not {"metadata", "service_tier", "seed", "model"} & set(body)


def test_stop_sequences_are_told_and_asked_back() -> None:
    body = asked(stop_sequences=["END", ""])
    assert (body["stop"], body["verbose"]) == (["END"], True)
    assert not {"stop", "verbose"} & set(asked(stop_sequences=[""]))
    long = asked([{"role": "user", "content": "x" * 2_000_000}], stop_sequences=["END"])
    assert "verbose" not in long, "the engine would repeat the prompt"


# --- refusals -------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no max_tokens": ({"max_tokens": None}, "max_tokens: Field required"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
    "max_tokens text": ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
    "max_tokens true": ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
    "max_tokens huge": ({"max_tokens": 2**63}, "max_tokens: Input should be"),
    "no messages": ({"messages": None}, "messages: Field required"),
    "empty messages": ({"messages": []}, "messages: at least one message is required"),
    "messages text": ({"messages": "hi"}, "messages: Input should be a valid array"),
    "nothing said": ({"messages": [{"role": "assistant", "content": ""}]}, "messages: at least one message"),
    "message text": ({"messages": ["hi"]}, "messages.0: Input should be an object"),
    "no role": ({"messages": [{"content": "a"}]}, "messages.0.role: Field required"),
    "role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role: Input should be 'user'"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    "content number": ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: Input should be"),
    "block text": ({"messages": [user("a")]}, "messages.0.content.0: Input should be an object"),
    "no type": ({"messages": [user({})]}, "messages.0.content.0.type: Field required"),
    "text number": (
        {"messages": [user(said(5))]},
        "messages.0.content.0.text: Input should be a valid string",
    ),  # type: ignore[arg-type] # the point
    "image url": (
        {"messages": [user({"type": "image", "source": {"type": "url", "url": "https://a/b.png"}})]},
        "messages.0.content.0.source: images must be sent as base64",
    ),
    "image type": (
        {"messages": [user({"type": "image", "source": {**IMAGE["source"], "media_type": "a/b"}})]},  # type: ignore[dict-item] # it is one
        "messages.0.content.0.source.media_type: Input should be one of image/jpeg",
    ),
    "pdf": (
        {"messages": [user({"type": "document", "source": {"type": "base64", "data": "x"}})]},
        "messages.0.content.0.source: only documents of plain text",
    ),
    "result without id": (
        {"messages": [user({"type": "tool_result", "content": "a"})]},
        "messages.0.content.0.tool_use_id: Field required",
    ),
    "call without input": (
        {"messages": [*HI, {"role": "assistant", "content": [{**CALL, "input": "{}"}]}, *HI]},
        "messages.1.content.0.input: Input should be an object",
    ),
    "call at the end": ({"messages": [*HI, CALLED]}, "messages.1: `tool_use` blocks must be followed"),
    "system number": ({"system": 5}, "system: Input should be a valid string"),
    "stream text": ({"stream": "true"}, "stream: Input should be a valid boolean"),
    "model number": ({"model": 5}, "model: Input should be a valid string"),
    "temperature": ({"temperature": 2.5}, "temperature: Input should be from 0 to 2"),
    "top_k": ({"top_k": 1.5}, "top_k: Input should be a valid integer"),
    "stop": ({"stop_sequences": "END"}, "stop_sequences: Input should be a valid array"),
    "stop number": ({"stop_sequences": ["a", 1]}, "stop_sequences.1: Input should be a valid string"),
    "tools": ({"tools": {}}, "tools: Input should be a valid array"),
    "no schema": ({"tools": [{"name": "x"}]}, "tools.0.input_schema: Field required"),
    "no name": ({"tools": [{"input_schema": {}}]}, "tools.0.name: Field required"),
    "choice": ({"tools": [LOOK], "tool_choice": "any"}, "tool_choice: Input should be an object"),
    "choice type": ({"tools": [LOOK], "tool_choice": {"type": "x"}}, "tool_choice.type: Input should be"),
    "no such tool": (
        {"tools": [LOOK], "tool_choice": {"type": "tool", "name": "x"}},
        "tool_choice.name: Tool 'x' not found in provided tools",
    ),
    "any of no tools": ({"tool_choice": {"type": "any"}}, "tool_choice: may only be 'any'"),
    "thinking": ({"thinking": {"type": "deep"}}, "thinking.type: Input should be one of enabled"),
    "budget": ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens: Input should"),
    "format": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type: Input should be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_field_is_named_in_anthropics_words(name: str) -> None:
    change, words = REFUSED[name]
    body = {"model": "alpha", "max_tokens": 9, "messages": HI, **change}
    with pytest.raises(InvalidField) as error:
        DIALECT.open(request_for(ROUTES[MESSAGES], body))
    assert error.value.message.startswith(words)
    assert error.value.field == words.partition(":")[0]


def test_null_is_as_good_as_nothing() -> None:
    names = (
        "system",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "tools",
        "tool_choice",
        "thinking",
    )
    assert asked(**dict.fromkeys((*names, "output_config", "output_format"))) == asked()


# --- intents --------------------------------------------------------------------------------------------


def opened(path: str, **fields: Any) -> Intent:
    intent = DIALECT.open(request_for(ROUTES[path], {"model": "ALPHA", "messages": HI, **fields}))
    assert isinstance(intent, Intent)
    return intent


def test_messages_need_a_chat_model_and_a_slot_and_counting_needs_none() -> None:
    intent = opened(MESSAGES, max_tokens=5, stream=True)
    assert (intent.model, intent.needs, intent.stream, intent.slots) == ("ALPHA", "chat", True, 1)
    assert intent.launcher == "openai", "what may be evicted for it is what OpenAI's clients may evict"
    counted = opened(COUNT)
    assert (counted.needs, counted.stream, counted.slots) == ("chat", False, 0)


def test_whole_answers_are_streamed_from_the_engine_too_so_that_leaving_frees_the_slot() -> None:
    for stream in (True, False):
        (call,) = drive(DIALECT, opened(MESSAGES, max_tokens=5, stream=stream)).calls
        assert (call.path, call.mode) == ("/v1/chat/completions", "stream")
        assert json.loads(call.body)["stream"] is True


def test_a_turn_in_thousands_of_pieces_takes_no_more_than_its_share_of_time() -> None:
    piece = {
        "role": "assistant",
        "content": [said("x" * 2048), {"type": "thinking", "thinking": "y" * 2048}, CALL],
    }
    results = [{"type": "tool_result", "tool_use_id": CALL["id"]}]
    began = time.process_time()
    sent = told(HI[0], *([piece] * 9000), user(*results))
    assert time.process_time() - began < 8  # adding each piece to all before it takes a minute
    assert len(sent[1]["content"]) == len(sent[1]["reasoning_content"]) == 2048 * 9000
    assert len(sent[1]["tool_calls"]) == 9000
