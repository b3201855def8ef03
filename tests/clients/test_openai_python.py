"""openai-python, unmodified and with strict validation of every answer, hears what it hears from OpenAI."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import Omit, OpenAI
from samples import HELLO, MOOD, ONLY_MOOD, PIXEL, WEATHER_TOOL
from scripted_model import CALL, THOUGHT, WEATHER, WORDS

from llamaman.testing.manager import FOR_EVER, Manager

pytestmark = pytest.mark.real("engine")


@pytest.fixture(scope="module")
def client(site: Manager, url: str) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{url}/v1", api_key=site.inference_key, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="module")
def lenient(site: Manager, url: str) -> Iterator[OpenAI]:
    """For what its own types refuse from OpenAI, too: base64, and a completion's chunks that are not the last."""
    with OpenAI(base_url=f"{url}/v1", api_key=site.inference_key, max_retries=0) as client:
        yield client


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="words", messages=HELLO)
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "words"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_chat_streams(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="words", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == WORDS
    assert len([piece for piece in pieces if piece]) > 3, "it came in pieces"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_the_stream_helper_assembles_the_same_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(model="words", messages=HELLO) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == WORDS
    assert {"content.delta", "content.done", "chunk"} <= kinds


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_a_tool_is_called_and_its_answer_used(client: OpenAI, choice: Any) -> None:
    first = client.chat.completions.create(
        model="words", messages=HELLO, tools=[WEATHER_TOOL], tool_choice=choice
    )
    (call,) = first.choices[0].message.tool_calls or []
    assert first.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    spoken: Any = first.choices[0].message.model_dump(exclude_none=True)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    second = client.chat.completions.create(
        model="words", messages=[*HELLO, spoken, result], tools=[WEATHER_TOOL]
    )
    assert second.choices[0].message.content == WEATHER


def test_a_tool_call_streams_in_fragments_that_add_up(client: OpenAI) -> None:
    with client.chat.completions.stream(model="words", messages=HELLO, tools=[WEATHER_TOOL]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.name == CALL["name"]
    assert call.function.arguments == '{"city": "Paris"}'


def test_thoughts_are_apart_from_words(client: OpenAI) -> None:
    message = client.chat.completions.create(model="thinker", messages=HELLO).choices[0].message
    assert message.content == WORDS
    assert (message.model_extra or {})["reasoning_content"].strip() == THOUGHT


def test_a_schema_is_kept(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="words",
        messages=HELLO,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "llama", "schema": MOOD, "strict": True},
        },
    )
    assert json.loads(answer.choices[0].message.content or "") == ONLY_MOOD


def test_logprobs_come_with_each_token(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="words", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [len(token.top_logprobs) for token in logprobs.content or []] == [2, 2, 2]
    assert answer.choices[0].finish_reason == "length"


def test_a_prompt_is_completed_streamed_and_not(client: OpenAI, lenient: OpenAI) -> None:
    whole = client.completions.create(model="words", prompt="Say it", max_tokens=64)
    assert whole.choices[0].text == WORDS
    streamed = lenient.completions.create(model="words", prompt="Say it", max_tokens=64, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == WORDS


def test_probabilities_come_in_the_lists_that_older_clients_read(client: OpenAI) -> None:
    answer = client.completions.create(model="words", prompt="Say it", max_tokens=2, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["Llamas", " are"], [6, 12])
    assert [list(each) for each in logprobs.top_logprobs or []] == [["Llamas"], [" are"]]


def test_a_prompt_that_does_not_fit_has_the_code_that_clients_know(client: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "x" * 9000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
            client.chat.completions.create(model="words", messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_embeddings_are_the_same_as_floats_and_as_base64(client: OpenAI, lenient: OpenAI) -> None:
    inputs = ["llama", "alpaca"]
    default = lenient.embeddings.create(model="embed", input=inputs)  # the SDK asks for base64 and decodes
    floats = client.embeddings.create(model="embed", input=inputs, encoding_format="float")
    for one, other in zip(default.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert len(default.data[0].embedding) == 64
    assert default.data[0].embedding != default.data[1].embedding
    assert default.usage.prompt_tokens > 0
    raw: Any = lenient.embeddings.create(model="embed", input="llama", encoding_format="base64")
    packed = base64.b64decode(raw.data[0].embedding)
    assert struct.unpack("<64f", packed) == pytest.approx(floats.data[0].embedding, abs=1e-6)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert sorted(listed) == ["embed", "other", "slow", "thinker", "words"]
    assert client.models.retrieve("words").id == "words"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_responses_answer_and_stream(client: OpenAI) -> None:
    answer = client.responses.create(model="words", input="hello")
    assert answer.output_text == WORDS
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens > 3
    with client.responses.stream(model="words", input="hello") as stream:
        numbers = [(event.sequence_number, event.type) for event in stream]
        assert stream.get_final_response().output_text == WORDS
    assert [number for number, _ in numbers] == sorted({number for number, _ in numbers})
    assert numbers[0][1] == "response.created"
    assert numbers[-1][1] == "response.completed"


def test_responses_call_tools(client: OpenAI) -> None:
    tool: Any = {"type": "function", "strict": False, **WEATHER_TOOL["function"]}
    first = client.responses.create(model="words", input="weather?", tools=[tool])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
    spoken: Any = [
        {"role": "user", "content": "weather?"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    second = client.responses.create(model="words", input=spoken, tools=[tool])
    assert second.output_text == WEATHER


def test_input_tokens_are_counted(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="words", input="hello")
    assert counted.input_tokens > 5


def test_an_image_for_a_model_without_eyes_is_a_bad_request(client: OpenAI) -> None:
    parts: Any = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model="words", messages=[{"role": "user", "content": parts}])


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'no-such-model' not found") as caught:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert caught.value.type == "not_found_error"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"response_format": {"type": "no-such-type"}}, "response_format"),
    ],
    ids=["no-messages", "no-list", "no-number", "no-format"],
)
def test_bad_input_is_a_bad_request_that_says_what(
    client: OpenAI, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**{"model": "words", "messages": HELLO, **change})


def test_a_stream_that_cannot_begin_raises_with_its_own_status(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=HELLO, stream=True)


def test_a_wrong_key_is_an_authentication_error(client: OpenAI) -> None:
    wrong = client.with_options(api_key="wrong")
    for attempt in (
        lambda: wrong.chat.completions.create(model="words", messages=HELLO),
        wrong.models.list,
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            attempt()
        assert caught.value.status_code == 401


def test_no_key_is_needed_where_none_is_asked_for(client: OpenAI, open_site: Manager) -> None:
    answer = client.chat.completions.create(
        model="words", messages=HELLO, extra_headers={"Authorization": Omit()}
    )
    assert answer.choices[0].message.content == WORDS


def test_a_placeholder_for_a_key_will_do_there_too(client: OpenAI, open_site: Manager) -> None:
    """The SDK insists on a key, so users of open servers are told to write anything."""
    answer = client.with_options(api_key="ollama").chat.completions.create(model="words", messages=HELLO)
    assert answer.choices[0].message.content == WORDS


def test_a_recording_for_a_model_without_ears_is_a_bad_request(client: OpenAI) -> None:
    recording = ("hello.wav", b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0", "audio/wav")
    with pytest.raises(openai.BadRequestError, match="audio"):
        client.audio.transcriptions.create(model="words", file=recording)


def test_leaving_a_stream_frees_the_slot(client: OpenAI, site: Manager) -> None:
    with client.chat.completions.create(
        model="slow", messages=HELLO, stream=True, max_tokens=FOR_EVER
    ) as stream:
        next(iter(stream))
        (slow,) = [each for each in site.instances() if each["model"] == "slow"]
        assert site.busy_slots(slow["id"]) == 1
    site.until(lambda: site.busy_slots(slow["id"]) == 0, "the slot to be free", seconds=30)
