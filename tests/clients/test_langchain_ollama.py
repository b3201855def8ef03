"""langchain-ollama, unmodified."""

from __future__ import annotations

import pytest
from foreign_env import ForeignClient, Raised
from samples import MOOD, ONLY_MOOD
from scripted_model import CALL, THOUGHT, WEATHER, WORDS

pytestmark = pytest.mark.real("engine")


def test_a_chat_is_answered_and_counted(langchain: ForeignClient) -> None:
    answer = langchain("invoke", model="words", text="hello", validate_model_on_init=True)
    assert answer["content"] == WORDS
    assert answer["response_metadata"]["done_reason"] == "stop"
    assert answer["usage_metadata"]["output_tokens"] > 3


def test_a_chat_streams(langchain: ForeignClient) -> None:
    chunks = langchain("stream", model="words", text="hello")
    assert "".join(chunk["content"] for chunk in chunks) == WORDS
    assert len([chunk for chunk in chunks if chunk["content"]]) > 3
    counted = [chunk["usage_metadata"] for chunk in chunks if chunk["usage_metadata"]]
    assert len(counted) == 1, "what it sees in each chunk it adds up"


def test_thoughts_are_apart_from_words(langchain: ForeignClient) -> None:
    answer = langchain("invoke", model="thinker", text="hello", reasoning=True)
    assert answer["additional_kwargs"]["reasoning_content"].strip() == THOUGHT
    assert answer["content"] == WORDS


def test_a_tool_is_called_and_its_answer_used(langchain: ForeignClient) -> None:
    used = langchain("use_tool", model="words", text="hello")
    (call,) = used["calls"]
    assert {"name": call["name"], "arguments": call["args"]} == CALL
    assert used["end"] == WEATHER


def test_a_schema_is_kept(langchain: ForeignClient) -> None:
    schema = {"title": "mood", **MOOD}
    assert langchain("structured", model="words", text="hello", schema=schema) == ONLY_MOOD


def test_completions_and_embeddings(langchain: ForeignClient) -> None:
    assert langchain("complete", model="words", text="Say it") == WORDS
    one, other = langchain("embed", model="embed", texts=["llama", "alpaca"])
    assert len(one) == 64
    assert one != other


def test_errors_carry_status_and_words(langchain: ForeignClient) -> None:
    with pytest.raises(Raised, match="'no-such-model' not found") as caught:
        langchain("invoke", model="no-such-model", text="hello")
    assert ("ResponseError" in caught.value.kinds, caught.value.status) == (True, 404)
    with pytest.raises(Raised, match="does not support chat"):
        langchain("invoke", model="embed", text="hello")
