"""Bodies for models that no client would send: what is right for each route, and ways to spoil it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

SAID = [{"role": "user", "content": "hello"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
CALLED = [
    *SAID,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a+$"}}, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}]
CLAUDE_TOOLS = [{"name": "f", "description": "d", "input_schema": SCHEMA}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
FEW = {"max_tokens": 3}

#: Path -> bodies that are right there. The model is filled in by whoever sends them.
RIGHT: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": SAID, "stream": True, **FEW},
        {"messages": CALLED, "tools": TOOLS, "tool_choice": "auto", **FEW},
        {"messages": PARTS, "response_format": FORMAT, "logprobs": True, "top_logprobs": 2, **FEW},
        {"messages": SAID, "stop": ["a"], "logit_bias": {"5": 1}, "seed": 1, "temperature": 0.5, "n": 1, **FEW},
    ],
    "/v1/completions": [
        {"prompt": "hello", "stream": True, **FEW},
        {"prompt": ["a", "b"], "logprobs": 1, "echo": True, "suffix": "x", **FEW},
        {"prompt": [1, 2, 3], "grammar": 'root ::= "a" | [a-z]+', **FEW},
    ],
    "/v1/embeddings": [{"input": "hello"}, {"input": ["a", [1, 2]], "encoding_format": "base64"}],
    "/v1/responses": [
        {"input": "hello", "max_output_tokens": 3},
        {"input": SAID, "instructions": "be short", "stream": True, "max_output_tokens": 3},
    ],
    "/v1/messages": [
        {"messages": SAID, "stream": True, **FEW},
        {"messages": PARTS, "system": [{"type": "text", "text": "s"}], "tools": CLAUDE_TOOLS, **FEW},
        {
            "messages": [
                *SAID,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]},
            ],
            "tools": CLAUDE_TOOLS,
            "stop_sequences": ["a"],
            **FEW,
        },
    ],
    "/v1/messages/count_tokens": [{"messages": SAID, "system": "s", "tools": CLAUDE_TOOLS}],
    "/v1/rerank": [{"query": "a", "documents": ["b", "c"], "top_n": 1}],
    "/api/chat": [
        {"messages": SAID, "options": {"num_predict": 3, "stop": ["a"], "seed": 1}},
        {"messages": SAID, "tools": TOOLS, "stream": False, "options": {"num_predict": 3}},
        {"messages": SAID, "format": SCHEMA, "keep_alive": "5m", "think": False, "options": {"num_predict": 3}},
    ],
    "/api/generate": [
        {"prompt": "hello", "options": {"num_predict": 3}},
        {"prompt": "a", "system": "s", "raw": False, "format": "json", "stream": False, "options": {"num_predict": 3}},
    ],
    "/api/embed": [{"input": ["a", "b"], "truncate": True, "dimensions": 4}],
    "/api/embeddings": [{"prompt": "a"}],
    "/completion": [
        {"prompt": "hello", "n_predict": 3, "n_probs": 2},
        {"prompt": ["a", [1, 2]], "n_predict": 3, "json_schema": SCHEMA, "samplers": ["top_k"], "stream": True},
    ],
    "/infill": [{"input_prefix": "a", "input_suffix": "b", "n_predict": 3, "input_extra": [{"text": "x"}]}],
    "/tokenize": [{"content": "hello", "add_special": True, "with_pieces": True}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
    "/apply-template": [{"messages": SAID, "chat_template_kwargs": {"a": 1}}],
    "/v1/chat/completions/input_tokens": [{"messages": SAID}],
}  # fmt: skip

#: Names that llama-server or a dialect reads, to be put where they do not belong.
NAMES = [
    *(
        "model",
        "messages",
        "prompt",
        "input",
        "stream",
        "n",
        "n_predict",
        "max_tokens",
        "temperature",
        "top_p",
    ),
    *(
        "top_k",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "repeat_last_n",
        "presence_penalty",
        "mirostat",
        "seed",
    ),
    *("dry_multiplier", "dry_base", "dry_sequence_breakers", "xtc_probability", "dynatemp_range", "min_keep"),
    *(
        "logit_bias",
        "n_probs",
        "logprobs",
        "top_logprobs",
        "grammar",
        "json_schema",
        "response_format",
        "format",
    ),
    *(
        "stop",
        "samplers",
        "cache_prompt",
        "return_tokens",
        "timings_per_token",
        "post_sampling_probs",
        "lora",
    ),
    *("ignore_eos", "n_keep", "n_discard", "n_indent", "t_max_predict_ms", "id_slot", "tools", "tool_choice"),
    *("parallel_tool_calls", "chat_template_kwargs", "reasoning_format", "add_generation_prompt", "echo"),
    *(
        "options",
        "keep_alive",
        "think",
        "thinking",
        "images",
        "raw",
        "suffix",
        "template",
        "context",
        "system",
    ),
    *(
        "response_fields",
        "stream_options",
        "grammar_lazy",
        "grammar_triggers",
        "preserved_tokens",
        "speculative",
    ),
    *(
        "n_cmpl",
        "sse_ping_interval",
        "return_progress",
        "backend_sampling",
        "adaptive_target",
        "encoding_format",
    ),
    *("metadata", "stop_sequences", "num_ctx", "num_predict", "truncate", "dimensions", "documents", "query"),
]

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, -1e308, 2**31 - 1, 2**31, -(2**31) - 1, 2**53, 2**63),
    *(
        -(2**63),
        2**64,
        10**63,
        5e-324,
        "",
        " ",
        "a",
        "0",
        "-1",
        "null",
        "\x00",
        "\u2028",
        "\ud83d\ude00",
        "\uffff",
    ),
    *(
        "a" * 3000,
        "{{ x }}",
        "<|im_end|>",
        "data:image/png;base64,AAAA",
        "[1",
        "root ::= (",
        "(" * 60,
        "\\" * 9,
    ),
    *(
        [],
        {},
        [[]],
        [{}],
        [None],
        [1, "a"],
        {"a": None},
        {"type": None},
        {"": ""},
        [[[[1]]]],
        {"a": {"a": {}}},
    ),
    *([-1], [10**9], [[1, 2], [3]], {"type": "object"}, {"$ref": "#/a"}, {"type": ["string", "null"]}),
]

#: What nobody waits for: with these an answer may have as many tokens as there is context.
LONG = ("max_tokens", "n_predict", "max_output_tokens", "max_completion_tokens", "num_predict")

Place = tuple[Any, Any]


def places(value: Any) -> list[Place]:
    """Every (holder, key) in a body."""
    found: list[Place] = []
    todo = [value]
    while todo:
        each = todo.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        for key in keys:
            found.append((each, key))
            todo.append(each[key])
    return found


def _replace(body: dict[str, Any], chance: random.Random) -> None:
    holder, key = chance.choice(places(body))
    holder[key] = copy.deepcopy(chance.choice(ODD))


def _remove(body: dict[str, Any], chance: random.Random) -> None:
    holder, key = chance.choice(places(body))
    del holder[key]


def _add(body: dict[str, Any], chance: random.Random) -> None:
    holders: list[Any] = [body, body, body, *(h for h, _ in places(body))]
    holder = chance.choice(holders)
    value = copy.deepcopy(chance.choice(ODD))
    if isinstance(holder, dict):
        holder[chance.choice(NAMES)] = value
    else:
        holder.append(value)


def _double(body: dict[str, Any], chance: random.Random) -> None:
    lists = [holder[key] for holder, key in places(body) if isinstance(holder[key], list)]
    if lists:
        each = chance.choice(lists)
        each *= max(1, min(chance.choice((2, 20, 300)), 1000 // (len(each) or 1)))


def _swap(body: dict[str, Any], chance: random.Random) -> None:
    (one, a), (other, b) = chance.choices(places(body), k=2)
    one[a], other[b] = copy.deepcopy(other[b]), copy.deepcopy(one[a])


_SPOIL: list[Callable[[dict[str, Any], random.Random], None]] = [
    _replace,
    _replace,
    _add,
    _add,
    _remove,
    _double,
    _swap,
]


def _garble(raw: bytes, chance: random.Random) -> bytes:
    """Spoil the text instead of what it says."""
    at = chance.randrange(len(raw))
    piece = chance.choice(
        [b"", b"\x00", b"\xff", b'"', b"\\", b"{", b"]", b",", b"NaN", b"\\ud800", b"1e999", b"[" * 200]
    )
    return raw[:at] + piece + raw[at + chance.randrange(3) :]


def fuzzed(path: str, model: str, chance: random.Random) -> bytes:
    """A body for a route, spoiled in one to three ways."""
    body = copy.deepcopy(chance.choice(RIGHT[path]))
    body["model"] = model
    for _ in range(chance.choice((1, 1, 2, 3))):
        if not places(body):
            break
        chance.choice(_SPOIL)(body, chance)
    if chance.random() < 0.9:
        body["model"] = model
    raw = json.dumps(body).encode()
    return _garble(raw, chance) if chance.random() < 0.1 else raw
