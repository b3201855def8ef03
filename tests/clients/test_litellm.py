"""litellm, unmodified, in both of its ways to us: as an OpenAI endpoint and as an Ollama server."""

from __future__ import annotations

import pytest
from foreign_env import ForeignClient, Raised
from samples import HELLO, WEATHER_TOOL
from scripted_model import WORDS

from llamaman.testing.manager import Manager

pytestmark = pytest.mark.real("engine")

WAYS = ["openai/words", "ollama_chat/words", "ollama/words"]


@pytest.mark.parametrize("model", WAYS)
def test_a_chat_is_answered_and_counted(litellm: ForeignClient, model: str) -> None:
    answer = litellm("complete", model=model, messages=HELLO)
    assert answer["choices"][0]["message"]["content"] == WORDS
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 3


@pytest.mark.parametrize("model", WAYS)
def test_a_chat_streams(litellm: ForeignClient, model: str) -> None:
    chunks = litellm("stream", model=model, messages=HELLO)
    assert "".join(chunk["choices"][0]["delta"]["content"] or "" for chunk in chunks) == WORDS
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("model", ["openai/words", "ollama_chat/words", "anthropic/words"])
def test_a_tool_is_called(litellm: ForeignClient, model: str) -> None:
    answer = litellm("complete", model=model, messages=HELLO, tools=[WEATHER_TOOL])
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert '"city": "Paris"' in call["function"]["arguments"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("model", ["openai/embed", "ollama/embed"])
def test_embeddings(litellm: ForeignClient, open_site: Manager, model: str) -> None:
    # It sends an Ollama server no key with this request, so the server must not ask for one.
    data = litellm("embed", model=model, texts=["llama", "alpaca"])["data"]
    assert [len(each["embedding"]) for each in data] == [64, 64]


def test_it_learns_what_an_ollama_model_can(litellm: ForeignClient) -> None:
    info = litellm("info", model="ollama/words")
    assert info["supports_function_calling"]
    assert info["max_tokens"] == 4096, "what the preset gives it"


@pytest.mark.parametrize("way", ["openai", "ollama_chat", "anthropic"])
def test_errors_have_its_classes(litellm: ForeignClient, way: str) -> None:
    with pytest.raises(Raised, match="not found") as caught:
        litellm("complete", model=f"{way}/no-such-model", messages=HELLO)
    assert "NotFoundError" in caught.value.kinds or caught.value.status in (404, 500)
    with pytest.raises(Raised) as caught:
        litellm("complete", model=f"{way}/words", messages=HELLO, api_key="wrong")
    assert "AuthenticationError" in caught.value.kinds or caught.value.status == 401
