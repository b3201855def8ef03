"""ollama-js, the npm package, unmodified, in Node."""

from __future__ import annotations

import json

import pytest
from foreign_env import ForeignClient, Raised
from samples import HELLO, MOOD, ONLY_MOOD, WEATHER_TOOL
from scripted_model import CALL, THOUGHT, WORDS

from llamaman.testing.manager import FOR_EVER, Manager

pytestmark = pytest.mark.real("engine")


def test_a_chat_is_answered(ollama_js: ForeignClient) -> None:
    answer = ollama_js("chat", model="words", messages=HELLO)
    assert answer["message"] == {"role": "assistant", "content": WORDS}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")


def test_a_chat_streams(ollama_js: ForeignClient) -> None:
    chunks = ollama_js("chat_stream", model="words", messages=HELLO)
    assert "".join(chunk["message"]["content"] for chunk in chunks) == WORDS
    assert len(chunks) > 4
    assert chunks[-1]["done"]


def test_a_prompt_is_answered_streamed_and_not(ollama_js: ForeignClient) -> None:
    assert ollama_js("generate", model="words", prompt="Say it")["response"] == WORDS
    chunks = ollama_js("generate_stream", model="words", prompt="Say it")
    assert "".join(chunk["response"] for chunk in chunks) == WORDS


def test_tools_thoughts_and_schemas(ollama_js: ForeignClient) -> None:
    called = ollama_js("chat", model="words", messages=HELLO, tools=[WEATHER_TOOL])
    (call,) = called["message"]["tool_calls"]
    assert {"name": call["function"]["name"], "arguments": call["function"]["arguments"]} == CALL
    thought = ollama_js("chat", model="thinker", messages=HELLO, think=True)["message"]
    assert thought["thinking"].strip() == THOUGHT
    assert thought["content"] == WORDS
    kept = ollama_js("chat", model="words", messages=HELLO, format=MOOD)
    assert json.loads(kept["message"]["content"]) == ONLY_MOOD


def test_embeddings(ollama_js: ForeignClient) -> None:
    assert len(ollama_js("embed", model="embed", input=["llama", "alpaca"])["embeddings"]) == 2


def test_models_are_listed_shown_and_unloaded(ollama_js: ForeignClient, site: Manager) -> None:
    assert "words:latest" in [model["name"] for model in ollama_js("list")["models"]]
    assert "tools" in ollama_js("show", model="words")["capabilities"]
    assert ollama_js("version")["version"].count(".") == 2
    assert ollama_js("generate", model="other", prompt="")["done_reason"] == "load"
    assert "other:latest" in [model["name"] for model in ollama_js("ps")["models"]]
    assert ollama_js("generate", model="other", prompt="", keep_alive=0)["done_reason"] == "unload"
    site.until(
        lambda: "other:latest" not in [model["name"] for model in ollama_js("ps")["models"]],
        "the model to be gone",
    )


def test_errors_are_its_response_error_with_status_and_words(ollama_js: ForeignClient) -> None:
    for function in ("chat", "chat_stream"):
        with pytest.raises(Raised, match="model 'no-such-model' not found") as caught:
            ollama_js(function, model="no-such-model", messages=HELLO)
        assert (caught.value.kinds, caught.value.status) == (["ResponseError"], 404)
    with pytest.raises(Raised, match="does not support chat") as caught:
        ollama_js("chat", model="embed", messages=HELLO)
    assert caught.value.status == 400
    with pytest.raises(Raised) as caught:
        ollama_js("chat_without_key", model="words", messages=HELLO)
    assert caught.value.status == 401


def test_an_abort_frees_the_slot(ollama_js: ForeignClient, site: Manager) -> None:
    ended = ollama_js("abort_after_first", model="slow", messages=HELLO, options={"num_predict": FOR_EVER})
    assert ended["seen"] >= 1
    assert ended["name"] == "AbortError"
    (slow,) = [each for each in site.instances() if each["model"] == "slow"]
    site.until(lambda: site.busy_slots(slow["id"]) == 0, "the slot to be free", seconds=30)
