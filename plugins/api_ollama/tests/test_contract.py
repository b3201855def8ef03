"""The Ollama dialect keeps the contract that every dialect keeps."""

from __future__ import annotations

from llamaman.gateway.dialect import Dialect
from llamaman.testing.dialect_contract import DialectContract, Example
from llamaman_api_ollama.dialect import CHAT, EMBED, EMBEDDINGS, GENERATE, PS, SHOW, TAGS, Ollama

HELLO = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
    },
}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


class TestOllama(DialectContract):
    examples = (
        Example(TAGS, method="GET"),
        Example(PS, method="GET"),
        Example(SHOW, {"model": "alpha", "verbose": True}),
        Example(CHAT, HELLO),
        Example(
            CHAT, {**HELLO, "stream": False, "options": {"num_ctx": 2048, "stop": ["a"], "temperature": 0}}
        ),
        Example(CHAT, {**HELLO, "tools": [TOOL], "think": "high", "logprobs": True, "top_logprobs": 2}),
        Example(CHAT, {**HELLO, "format": {"type": "object"}, "_debug_render_only": True}),
        Example(
            CHAT,
            {
                "model": "alpha",
                "stream": False,
                "messages": [
                    {"role": "user", "content": "", "images": [PNG]},
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                    {"role": "tool", "tool_name": "f", "content": "1"},
                    {"role": "assistant", "content": "so", "thinking": "hm"},
                ],
            },
        ),
        Example(CHAT, {"model": "alpha", "messages": [], "keep_alive": "5m"}),
        Example(CHAT, {"model": "alpha", "keep_alive": 0}),
        Example(GENERATE, {"model": "alpha", "prompt": "hi", "system": "s", "context": [1, 2]}),
        Example(GENERATE, {"model": "alpha", "prompt": "hi", "stream": False, "format": "json"}),
        Example(GENERATE, {"model": "alpha", "prompt": "<s>hi", "raw": True, "logprobs": True}),
        Example(GENERATE, {"model": "alpha", "prompt": "hi", "suffix": "ho"}),
        Example(GENERATE, {"model": "alpha", "prompt": "hi", "template": "{{ .System }}{{ .Prompt }}"}),
        Example(GENERATE, {"model": "alpha", "prompt": "", "keep_alive": "0s"}),
        Example(EMBED, {"model": "beta", "input": ["a", "b"], "dimensions": 1}),
        Example(EMBED, {"model": "beta", "input": "", "truncate": False}),
        Example(EMBEDDINGS, {"model": "beta", "prompt": "a"}),
        Example("/api/status", method="GET"),
        Example("/api/experimental/model-recommendations", method="GET"),
        Example("/api/experimental/web_search", refused=403),
        Example("/api/experimental/web_fetch", refused=403),
        Example("/api/me", refused=401),
        Example("/api/signout", refused=401),
        Example("/api/user/keys/{key}", method="DELETE", values={"key": "k"}, refused=401),
        *(Example(f"/api/{action}", refused=501) for action in ("pull", "push", "create", "copy")),
        Example("/api/delete", method="DELETE", refused=501),
        Example("/api/blobs/{digest}", method="GET", values={"digest": "sha256:a"}, refused=404),
        Example("/api/blobs/{digest}", values={"digest": "sha256:a"}, refused=501),
    )

    def make_dialect(self) -> Dialect:
        return Ollama()
