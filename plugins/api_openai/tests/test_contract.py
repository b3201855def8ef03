"""The OpenAI dialect keeps the contract that every dialect keeps."""

from __future__ import annotations

from llamaman.gateway.dialect import Dialect
from llamaman.testing.dialect_contract import DialectContract, Example
from llamaman_api_openai.dialect import (
    CHAT,
    CHAT_TOKENS,
    COMPLETIONS,
    EMBEDDINGS,
    MODEL,
    MODELS,
    RERANKS,
    RESPONSES,
    RESPONSES_TOKENS,
    TRANSCRIPTIONS,
    OpenAI,
)

HELLO = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
ASKED = {"model": "alpha", "input": "hi", "max_output_tokens": 5, "reasoning": {"effort": "none"}}
FORMAT = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}
RANKED = {"model": "beta", "query": "a", "documents": ["b"]}
FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nalpha\r\n--b--\r\n'


class TestOpenAI(DialectContract):
    examples = (
        Example(MODELS, method="GET"),
        Example(MODEL, method="GET", values={"model": "alpha"}),
        Example(CHAT, HELLO),
        Example(CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}}),
        Example(CHAT, {**HELLO, "n": 2, "max_tokens": 5, "id_slot": 3, "verbose": False}),
        Example(
            CHAT, {**HELLO, "model": "ALPHA:latest", "max_completion_tokens": 3, "reasoning_effort": "low"}
        ),
        Example(COMPLETIONS, {"model": "alpha", "prompt": "a", "max_tokens": 5}),
        Example(COMPLETIONS, {"model": "alpha", "prompt": ["a", "b"], "stream": False}),
        Example(COMPLETIONS, {"model": "alpha", "prompt": "a", "stream": True}),
        Example(EMBEDDINGS, {"model": "beta", "input": ["a"], "stream": True}),
        Example(EMBEDDINGS, {"model": "beta", "input": "a", "dimensions": 2, "encoding_format": "base64"}),
        Example(RESPONSES, ASKED),
        Example(RESPONSES, {**ASKED, "stream": True, "text": FORMAT, "tools": [], "metadata": {"a": "b"}}),
        Example(RESPONSES_TOKENS, ASKED),
        Example(CHAT_TOKENS, HELLO),
        *(Example(path, RANKED if path == RERANKS[0] else {}) for path in RERANKS),
        Example(TRANSCRIPTIONS, raw=FORM, content_type=b"multipart/form-data; boundary=b"),
    )

    def make_dialect(self) -> Dialect:
        return OpenAI()
