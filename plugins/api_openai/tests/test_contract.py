"""The OpenAI dialect keeps the contract that every dialect keeps."""

from __future__ import annotations

from llamaman.gateway.dialect import Dialect
from llamaman.testing.dialect_contract import DialectContract, Example
from llamaman_api_openai.dialect import CHAT, COMPLETIONS, EMBEDDINGS, OpenAI

HELLO = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}


class TestOpenAI(DialectContract):
    examples = (
        Example("/v1/models", method="GET"),
        Example("/v1/models/{model}", method="GET", values={"model": "alpha"}),
        Example(CHAT, HELLO),
        Example(CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}}),
        Example(CHAT, {**HELLO, "n": 2, "max_tokens": 5, "id_slot": 3, "verbose": False}),
        Example(CHAT, {**HELLO, "model": "ALPHA:latest", "max_completion_tokens": 3}),
        Example(COMPLETIONS, {"model": "alpha", "prompt": "a", "max_tokens": 5}),
        Example(COMPLETIONS, {"model": "alpha", "prompt": ["a", "b"], "stream": False}),
        Example(COMPLETIONS, {"model": "alpha", "prompt": "a", "stream": True}),
        Example(EMBEDDINGS, {"model": "beta", "input": ["a"], "stream": True}),
    )

    def make_dialect(self) -> Dialect:
        return OpenAI()
