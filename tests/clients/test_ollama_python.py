"""ollama-python, unmodified, sync and async, as its users and Home Assistant run it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import ollama
import pytest
from ollama import AsyncClient, Client
from samples import HELLO, MOOD, ONLY_MOOD, PIXEL, WEATHER_TOOL
from scripted_model import CALL, THOUGHT, WEATHER, WORDS

from llamaman.testing.manager import FOR_EVER, Manager

pytestmark = pytest.mark.real("engine")


@pytest.fixture(scope="module")
def client(site: Manager, url: str) -> Iterator[Client]:
    with Client(host=url, headers={"Authorization": f"Bearer {site.inference_key}"}) as client:
        yield client


def test_a_chat_is_answered(client: Client) -> None:
    answer = client.chat("words", HELLO)
    assert answer.message.role == "assistant"
    assert answer.message.content == WORDS
    assert (answer.model, answer.done, answer.done_reason) == ("words", True, "stop")
    for figure in (
        answer.total_duration,
        answer.load_duration,
        answer.prompt_eval_count,
        answer.eval_count,
        answer.eval_duration,
    ):
        assert isinstance(figure, int)
        assert figure > 0
    assert answer.created_at is not None
    assert abs((datetime.now(UTC) - datetime.fromisoformat(answer.created_at)).total_seconds()) < 60


def test_a_chat_streams(client: Client) -> None:
    *chunks, last = client.chat("words", HELLO, stream=True)
    assert "".join(chunk.message.content or "" for chunk in [*chunks, last]) == WORDS
    assert len(chunks) > 3
    assert not any(chunk.done or chunk.eval_count for chunk in chunks)
    assert (last.done, last.done_reason) == (True, "stop")
    assert last.eval_count


def test_the_async_client_streams_the_same(url: str, site: Manager) -> None:
    async def pieces() -> list[str]:
        client = AsyncClient(host=url, headers={"Authorization": f"Bearer {site.inference_key}"})
        stream: AsyncIterator[Any] = await client.chat("words", HELLO, stream=True)
        found = [chunk.message.content async for chunk in stream]
        whole = await client.generate("words", "Say it")
        assert whole.response == WORDS
        return found

    assert "".join(asyncio.run(pieces())) == WORDS


def test_a_prompt_is_answered_streamed_and_not(client: Client) -> None:
    answer = client.generate("words", "Say it", system="Be brief.")
    assert (answer.response, answer.done_reason) == (WORDS, "stop")
    assert answer.context, "old clients continue a talk with it"
    assert client.generate("words", "Go on", context=answer.context).response == WORDS
    streamed = [chunk.response for chunk in client.generate("words", "Say it", stream=True)]
    assert "".join(streamed) == WORDS
    assert client.generate("words", "Say it", raw=True).response == WORDS


def test_options_count(client: Client) -> None:
    answer = client.generate("words", "Say it", options={"num_predict": 3, "seed": 2**62, "top_k": 4})
    assert (answer.eval_count, answer.done_reason) == (3, "length")
    stopped = client.chat("words", HELLO, options={"stop": [" friendly"], "repeat_last_n": -1})
    assert stopped.message.content == "Llamas are"


def test_a_tool_is_called_and_its_answer_used(client: Client) -> None:
    first = client.chat("words", HELLO, tools=[WEATHER_TOOL])
    (call,) = first.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == (CALL["name"], CALL["arguments"])
    assert first.done_reason == "stop"
    turns = [*HELLO, first.message, {"role": "tool", "content": "sunny", "tool_name": "get_weather"}]
    assert client.chat("words", turns, tools=[WEATHER_TOOL]).message.content == WEATHER
    nameless = [*HELLO, first.message, {"role": "tool", "content": "sunny"}]
    assert client.chat("words", nameless, tools=[WEATHER_TOOL]).message.content == WEATHER


def test_a_python_function_is_a_tool(client: Client) -> None:
    def get_weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: where
        """
        return f"sunny in {city}"

    chunks = list(client.chat("words", HELLO, tools=[get_weather], stream=True))
    (call,) = [call for chunk in chunks for call in chunk.message.tool_calls or []]
    assert get_weather(**call.function.arguments) == "sunny in Paris"
    assert chunks[-1].done


def test_tools_for_a_model_without_them_are_refused(client: Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not support tools") as caught:
        client.chat("thinker", HELLO, tools=[WEATHER_TOOL])
    assert caught.value.status_code == 400


def test_thoughts_are_apart_from_words(client: Client) -> None:
    for think in (True, None):
        message = client.chat("thinker", HELLO, think=think).message
        assert (message.thinking or "").strip() == THOUGHT
        assert message.content == WORDS
    chunks = list(client.chat("thinker", HELLO, think=True, stream=True))
    assert "".join(chunk.message.thinking or "" for chunk in chunks).strip() == THOUGHT
    assert "".join(chunk.message.content or "" for chunk in chunks) == WORDS
    silent = client.chat("thinker", HELLO, think=False).message
    assert (silent.thinking, silent.content) == (None, WORDS)
    assert (client.generate("thinker", "hello", think=True).thinking or "").strip() == THOUGHT
    assert client.chat("words", HELLO, think=False).message.content == WORDS
    with pytest.raises(ollama.ResponseError, match='"words" does not support thinking'):
        client.chat("words", HELLO, think=True)


def test_a_schema_is_kept(client: Client) -> None:
    answer = client.chat("words", HELLO, format=MOOD)
    assert json.loads(answer.message.content or "") == ONLY_MOOD
    assert json.loads(client.generate("words", "hello", format=MOOD).response) == ONLY_MOOD
    free = client.chat("words", HELLO, format="json", options={"num_predict": 100})
    assert (free.message.content or "").lstrip().startswith("{")


def test_logprobs_come_with_each_token(client: Client) -> None:
    answer = client.chat("words", HELLO, logprobs=True, top_logprobs=2, options={"num_predict": 3})
    assert answer.logprobs is not None
    assert [len(each.top_logprobs or []) for each in answer.logprobs] == [2, 2, 2]


def test_embeddings_of_one_and_many(client: Client) -> None:
    one = client.embed("embed", "llama")
    many = client.embed("embed", ["llama", "alpaca"])
    assert len(many.embeddings) == 2
    assert many.embeddings[0] == pytest.approx(one.embeddings[0], abs=1e-4)
    assert sum(value**2 for value in one.embeddings[0]) == pytest.approx(1, abs=1e-3)
    assert one.prompt_eval_count
    shorter = client.embed("embed", "llama", dimensions=16).embeddings[0]
    assert len(shorter) == 16
    assert sum(value**2 for value in shorter) == pytest.approx(1, abs=1e-3)
    old = client.embeddings("embed", "llama")
    assert list(old.embedding) == pytest.approx(list(one.embeddings[0]), abs=1e-4)


def test_models_are_listed_each_once(client: Client) -> None:
    models = {model.model: model for model in client.list().models}
    names = ["embed:latest", "other:latest", "slow:latest", "thinker:latest", "words:latest"]
    assert sorted(name or "" for name in models) == names
    words = models["words:latest"]
    assert words.size
    assert len(words.digest or "") == 64
    assert words.modified_at is not None
    assert words.details is not None
    assert (words.details.format, words.details.family) == ("gguf", "llama")


def test_a_model_is_shown(client: Client) -> None:
    shown = client.show("words")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 4096, "what the preset gives it"
    assert "tool_call" in (shown.template or "")
    assert {"completion", "tools"} <= set(shown.capabilities or [])
    assert "thinking" in (client.show("thinker").capabilities or [])
    assert client.show("embed").capabilities == ["embedding"]


def test_loaded_models_are_listed_and_can_be_unloaded(client: Client, site: Manager) -> None:
    def loaded() -> list[str | None]:
        return [model.model for model in client.ps().models]

    client.generate("other", keep_alive="5m")
    (other,) = [model for model in client.ps().models if model.model == "other:latest"]
    assert other.context_length == 4096
    assert other.size
    assert other.expires_at is not None
    left = (other.expires_at - datetime.now(UTC)).total_seconds()
    assert 200 < left < 301
    assert client.generate("other", keep_alive=0).done_reason == "unload"
    site.until(lambda: "other:latest" not in loaded(), "the model to be gone")
    assert client.chat("other", [], keep_alive=-1).done_reason == "load"
    assert "other:latest" in loaded()
    client.chat("other", HELLO, options={"num_predict": 2}, keep_alive=0)
    site.until(lambda: "other:latest" not in loaded(), "the model to be gone after its answer")


def test_an_image_for_a_model_without_eyes_is_refused(client: Client) -> None:
    with pytest.raises(ollama.ResponseError, match="image") as caught:
        client.chat("words", [{"role": "user", "content": "what is it?", "images": [PIXEL]}])
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="image"):
        client.generate("words", "what is it?", images=[PIXEL])


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client: Client, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'no-such-model' not found") as caught:
        list(client.chat("no-such-model", HELLO, stream=stream))
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.show("no-such-model")
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.embed("no-such-model", "llama")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda client: client._request_raw("POST", "/api/chat", json={"model": ""}), "model is required"),
        (lambda client: client.chat("x!", HELLO), "invalid model name"),
        (lambda client: client.chat("embed", HELLO), '"embed" does not support chat'),
        (lambda client: client.generate("embed", "hello"), '"embed" does not support generate'),
        (lambda client: client.generate("words", "hello", suffix="x"), "does not support insert"),
        (lambda client: client.generate("words", "a", raw=True, system="b"), "raw mode does not support"),
        (lambda client: client.chat("words", HELLO, keep_alive="soon"), "invalid duration"),
        (lambda client: client.chat("words", HELLO, keep_alive="300x"), "unit"),
        (lambda client: client.chat("words", HELLO, options={"temperature": "hot"}), "temperature"),
        (lambda client: client.chat("words", HELLO, logprobs=True, top_logprobs=21), "top_logprobs"),
        (lambda client: client._request_raw("POST", "/api/chat"), "missing request body"),
        (lambda client: client._request_raw("POST", "/api/chat", content=b"{"), ""),
        (lambda client: client._request_raw("POST", "/api/chat", json={"model": 7}), "model"),
        (
            lambda client: client._request_raw("POST", "/api/embed", json={"model": "embed", "input": {}}),
            "invalid input type",
        ),
        (
            lambda client: client._request_raw("POST", "/api/chat", json={"model": "words", "think": "hi"}),
            "invalid think value",
        ),
        (
            lambda client: client._request_raw(
                "POST", "/api/generate", json={"model": "words", "prompt": "a", "images": ["%%"]}
            ),
            "illegal base64",
        ),
        (
            lambda client: client._request_raw(
                "POST", "/api/generate", json={"model": "words", "prompt": "a", "format": "xml"}
            ),
            "format",
        ),
    ],
)
def test_bad_input_is_refused_with_the_words_that_clients_look_for(
    client: Client, ask: Any, words: str
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        ask(client)
    assert caught.value.status_code == 400, caught.value
    assert words in caught.value.error


def test_a_prompt_longer_than_the_context_is_refused_or_cut(client: Client) -> None:
    turns = [{"role": "user", "content": "x" * 9000}]
    with pytest.raises(ollama.ResponseError, match="context") as caught:
        client.chat("words", turns)
    assert caught.value.status_code == 400
    assert client.chat("words", [*turns, *HELLO]).message.content == WORDS


def test_a_wrong_key_is_unauthorized(url: str) -> None:
    stranger = Client(host=url, headers={"Authorization": "Bearer wrong"})
    for ask in (stranger.list, lambda: stranger.chat("words", HELLO), lambda: Client(host=url).list()):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 401
        assert caught.value.error


def test_no_key_is_needed_where_none_is_asked_for(url: str, open_site: Manager) -> None:
    assert Client(host=url).chat("words", HELLO).message.content == WORDS


def test_leaving_a_stream_frees_the_slot(client: Client, site: Manager) -> None:
    stream = client.chat("slow", HELLO, stream=True, options={"num_predict": FOR_EVER})
    next(iter(stream))
    (slow,) = [each for each in site.instances() if each["model"] == "slow"]
    assert site.busy_slots(slow["id"]) == 1
    stream.close()
    site.until(lambda: site.busy_slots(slow["id"]) == 0, "the slot to be free", seconds=30)
