"""anthropic, the Python SDK, unmodified and with strict validation of every answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from samples import HELLO, PIXEL
from scripted_model import CALL, THOUGHT, WEATHER, WORDS

from llamaman.testing.manager import Manager

pytestmark = pytest.mark.real("engine")

WEATHER_TOOL: Any = {
    "name": "get_weather",
    "description": "Tell the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def client(site: Manager, url: str) -> Iterator[Anthropic]:
    with Anthropic(
        base_url=url, api_key=site.inference_key, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_is_answered(client: Anthropic) -> None:
    message = client.messages.create(model="words", max_tokens=64, messages=HELLO)
    assert text_of(message) == WORDS
    assert (message.role, message.model, message.stop_reason) == ("assistant", "words", "end_turn")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 3


def test_a_message_streams(client: Anthropic) -> None:
    with client.messages.stream(model="words", max_tokens=64, messages=HELLO, system="Be brief.") as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == text_of(final) == WORDS
    assert len(pieces) > 3
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 3


def test_the_raw_events_come_in_the_documented_order(client: Anthropic) -> None:
    stream = client.messages.create(model="words", max_tokens=64, messages=HELLO, stream=True)
    kinds = [event.type for event in stream]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_a_tool_is_called_and_its_answer_used(client: Anthropic) -> None:
    first = client.messages.create(model="words", max_tokens=128, messages=HELLO, tools=[WEATHER_TOOL])
    assert first.stop_reason == "tool_use"
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert (call.name, call.input) == (CALL["name"], CALL["arguments"])
    turns: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in first.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]},
    ]
    second = client.messages.create(model="words", max_tokens=64, messages=turns, tools=[WEATHER_TOOL])
    assert text_of(second) == WEATHER


def test_a_tool_call_streams(client: Anthropic) -> None:
    with client.messages.stream(
        model="words", max_tokens=128, messages=HELLO, tools=[WEATHER_TOOL], tool_choice={"type": "any"}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds
    (call,) = [block for block in final.content if block.type == "tool_use"]
    assert (call.name, call.input) == (CALL["name"], CALL["arguments"])
    assert final.stop_reason == "tool_use"


def test_thoughts_are_blocks_of_their_own(client: Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    message = client.messages.create(model="thinker", max_tokens=2048, messages=HELLO, thinking=thinking)
    thought, words = message.content
    assert thought.type == "thinking"
    assert thought.thinking.strip() == THOUGHT
    assert words.type == "text"
    assert words.text == WORDS
    with client.messages.stream(
        model="thinker", max_tokens=2048, messages=HELLO, thinking=thinking
    ) as stream:
        assert [block.type for block in stream.get_final_message().content] == ["thinking", "text"]


def test_thinking_can_be_switched_off(client: Anthropic) -> None:
    message = client.messages.create(
        model="thinker", max_tokens=64, messages=HELLO, thinking={"type": "disabled"}
    )
    assert [block.type for block in message.content] == ["text"]
    assert text_of(message) == WORDS


def test_an_answer_is_cut_where_it_must_end(client: Anthropic) -> None:
    short = client.messages.create(model="words", max_tokens=2, messages=HELLO)
    assert short.stop_reason == "max_tokens"
    stopped = client.messages.create(
        model="words", max_tokens=64, messages=HELLO, stop_sequences=[" friendly"]
    )
    assert text_of(stopped) == "Llamas are"
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " friendly")


def test_tokens_are_counted(client: Anthropic) -> None:
    short = client.messages.count_tokens(model="words", messages=HELLO)
    longer = client.messages.count_tokens(model="words", messages=HELLO, tools=[WEATHER_TOOL])
    assert 0 < short.input_tokens < longer.input_tokens


def test_an_image_for_a_model_without_eyes_is_a_bad_request(client: Anthropic) -> None:
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    turn: Any = {"role": "user", "content": [image, {"type": "text", "text": "what is it?"}]}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(model="words", max_tokens=8, messages=[turn])


def test_an_unknown_model_is_not_found_streamed_and_not(client: Anthropic) -> None:
    for stream in (False, True):
        with pytest.raises(anthropic.NotFoundError, match="model 'no-such-model' not found") as caught:
            client.messages.create(model="no-such-model", max_tokens=8, messages=HELLO, stream=stream)
        assert caught.value.type == "not_found_error"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"max_tokens": "many"}}, "max_tokens"),
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"model": "embed"}, "embedding"),
    ],
    ids=["no-messages", "no-tokens", "no-number", "no-temperature", "embedding-model"],
)
def test_bad_input_is_a_bad_request_that_says_what(
    client: Anthropic, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        client.messages.create(**{"model": "words", "max_tokens": 8, "messages": HELLO, **change})
    assert caught.value.type == "invalid_request_error"


def test_a_wrong_key_is_an_authentication_error(client: Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError) as caught:
        client.with_options(api_key="wrong").messages.create(model="words", max_tokens=8, messages=HELLO)
    assert caught.value.type == "authentication_error"


def test_models_are_listed_page_by_page_and_found(client: Anthropic) -> None:
    listed = list(client.models.list(limit=2))
    assert sorted(model.id for model in listed) == ["embed", "other", "slow", "thinker", "words"]
    assert {(model.type, model.lifecycle) for model in listed} == {("model", "active")}
    found = client.models.retrieve("words")
    assert (found.id, found.display_name, found.max_input_tokens) == ("words", "words", 4096)
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="after_id"):
        client.models.list(after_id="no-such-model")


def test_errors_and_answers_have_an_id_to_ask_for(client: Anthropic) -> None:
    message = client.messages.create(model="words", max_tokens=2, messages=HELLO)
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="no-such-model", max_tokens=2, messages=HELLO)
    ids = message._request_id, caught.value.request_id
    assert len({each for each in ids if each}) == 2
    assert caught.value.body["request_id"] == caught.value.request_id  # type: ignore[index] # an object
