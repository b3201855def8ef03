"""Requests as the pipeline hands them to a dialect, and a scripted engine that answers its calls. Pure.

Read by :mod:`llamaman.testing.dialect_contract` and by tests of single dialects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaman.gateway.body import parse_object, splice
from llamaman.gateway.dialect import (
    Call,
    Calls,
    Chunk,
    Dialect,
    Emit,
    Event,
    InferenceRoute,
    Intent,
    Lease,
    Next,
    Op,
    Reply,
    Request,
    Result,
    Results,
    Start,
    Value,
    Work,
)
from llamaman.records import NOBODY, InstanceView, ModelDetails, ModelView

MODELS = (
    ModelView(
        "alpha",
        Path("/models/Alpha.gguf"),
        1000,
        "Q4_K_M",
        1_700_000_000.5,
        context_length=8192,
        details=ModelDetails(
            architecture="llama",
            name="Alpha",
            parameters=8_030_261_248,
            embedding_length=64,
            capabilities=frozenset({"completion", "tools", "thinking", "insert", "vision"}),
            digest="a" * 64,
            template="{% for message in messages %}{{ message.content }}{% endfor %}",
            metadata={"general.architecture": "llama", "llama.context_length": 8192},
        ),
    ),
    ModelView(
        "beta",
        Path("/models/beta.gguf"),
        2000,
        None,
        1_700_000_001.0,
        embedding=True,
        context_length=512,
        details=ModelDetails("bert", "Beta", 30_000_000, 64, frozenset({"embedding"}), "b" * 64),
    ),
    ModelView("folder", Path("/models/folder"), 3000, None, 1_700_000_002.0, kind="hf", runnable=False),
)
MODEL = MODELS[0]
RECEIVED = 1_700_000_100.0
LEASE = Lease("5f1d", RECEIVED + 0.25, context_length=4096, slots=4)
_MOST_OPS = 10_000


@dataclass(frozen=True, slots=True)
class Example:
    """A request that the dialect must accept.

    :ivar values: the values of the pattern's ``{name}`` segments.
    :ivar raw: the body of a route whose bodies are only read, of ``content_type``.
    :ivar refused: the status of a route that refuses everybody, whatever they ask.
    """

    pattern: str
    body: dict[str, Any] = field(default_factory=dict)
    method: str = "POST"
    values: Mapping[str, str] = field(default_factory=dict)
    raw: bytes = b""
    content_type: bytes = b"application/json"
    refused: int | None = None


def request_for(
    route: InferenceRoute,
    body: dict[str, Any],
    values: Mapping[str, str] | None = None,
    *,
    models: Sequence[ModelView] = MODELS,
    own_model: ModelView | None = None,
    raw: bytes = b"",
    content_type: bytes = b"application/json",
    instances: Sequence[InstanceView] = (),
    presets: Mapping[Path, Mapping[str, Any]] | None = None,
) -> Request:
    """A request as the pipeline makes it: the body has been parsed, the path fits the pattern."""
    values = dict(values or {})
    path = route.pattern
    for name, value in values.items():
        path = path.replace("{" + name + "}", value).replace("{" + name + "...}", value)
    has_body = route.body == "json"
    return Request(
        route=route,
        path=path,
        values=values,
        query=b"",
        identity=NOBODY,
        json=body if has_body else {},
        raw=json.dumps(body, ensure_ascii=False).encode() if has_body else raw,
        models=models,
        own_model=own_model,
        request_id="1-1",
        content_type=content_type,
        received=RECEIVED,
        instances=instances if route.instances else (),
        presets=presets or {},
    )


def route_of(dialect: Dialect, example: Example) -> InferenceRoute:
    """The route that an example is for; fails the test when there is none."""
    found = [r for r in dialect.routes if (r.method, r.pattern) == (example.method, example.pattern)]
    assert found, f"the dialect has no route {example.method} {example.pattern}"
    return found[0]


# --- a scripted engine ----------------------------------------------------------------------------------

Answer = Callable[[Call], Result]
Stream = Callable[[Call], Sequence[dict[str, Any]]]

_USAGE: dict[str, Any] = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
_TIMINGS: dict[str, Any] = {
    "cache_n": 1,
    "prompt_n": 4,
    "prompt_ms": 2.0,
    "prompt_per_second": 2000.0,
    "predicted_n": 2,
    "predicted_ms": 4.0,
    "predicted_per_second": 500.0,
}
_ENVELOPE: dict[str, Any] = {
    "created": 1_700_000_000,
    "model": MODEL.name,
    "system_fingerprint": "b1",
    "id": "chatcmpl-1",
}
_BODIES: Mapping[str, Any] = {
    "/v1/chat/completions": {
        "choices": [
            {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "hi ä"}}
        ],
        **_ENVELOPE,
        "object": "chat.completion",
        "usage": _USAGE,
        "timings": _TIMINGS,
    },
    "/v1/completions": {
        "choices": [{"text": "hi ä", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        **_ENVELOPE,
        "object": "text_completion",
        "usage": _USAGE,
        "timings": _TIMINGS,
    },
    "/completion": {"content": "hi ä", "stop": True, "stop_type": "eos", "timings": _TIMINGS, "tokens": []},
    "/v1/embeddings": {
        "object": "list",
        "model": MODEL.name,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    },
    "/embeddings": [{"index": 0, "embedding": [[0.5, -0.5]]}],
    "/embedding": [{"index": 0, "embedding": [[0.5, -0.5]]}],
    "/v1/rerank": {"object": "list", "results": [{"index": 0, "relevance_score": 0.5}], "usage": _USAGE},
    "/tokenize": {"tokens": [1, 2, 3]},
    "/detokenize": {"content": "abc"},
    "/apply-template": {"prompt": "<user>hi"},
    "/props": {"total_slots": 1, "default_generation_settings": {"n_ctx": 4096}, "model_path": "/secret"},
    "/slots": [],
    "/lora-adapters": [],
}


def good_answer(call: Call) -> Result:
    """What llama-server says when all is well, by path; ``{}`` where this script knows no better."""
    return Result(200, json.dumps(_BODIES.get(call.path, {}), ensure_ascii=False).encode())


def good_stream(call: Call) -> list[dict[str, Any]]:
    """The events of a good stream, as the pipeline hands them on."""
    if call.path in ("/completion", "/infill"):
        texts = [{"index": 0, "content": text, "tokens": [7], "stop": False} for text in ("hi ", "ä")]
        return [*texts, {**_BODIES["/completion"], "content": ""}]
    if call.path == "/v1/responses":
        return _responses_stream()
    if "chat" in call.path:
        deltas: list[dict[str, Any]] = [
            {"role": "assistant", "content": None},
            {"content": "hi "},
            {"content": "ä"},
        ]
        parts: list[dict[str, Any]] = [
            {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
        ]
        parts.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        kind = "chat.completion.chunk"
    else:
        parts = [
            {"index": 0, "text": text, "logprobs": None, "finish_reason": end}
            for text, end in (("hi ", None), ("ä", None), ("", "stop"))
        ]
        kind = "text_completion"
    events: list[dict[str, Any]] = [{"choices": [part], **_ENVELOPE, "object": kind} for part in parts]
    events.append({"choices": [], **_ENVELOPE, "object": kind, "usage": _USAGE, "timings": _TIMINGS})
    return events


def _responses_stream() -> list[dict[str, Any]]:
    begun = {"id": "resp_1", "object": "response", "status": "in_progress"}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    done = {**item, "content": [{"type": "output_text", "text": "hi ä"}], "status": "completed"}
    usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    delta = {"type": "response.output_text.delta", "item_id": "msg_1"}
    return [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "item": item},
        {**delta, "delta": "hi "},
        {**delta, "delta": "ä"},
        {"type": "response.output_item.done", "item": done},
        {
            "type": "response.completed",
            "response": {
                **begun,
                "status": "completed",
                "model": MODEL.name,
                "output": [done],
                "usage": usage,
            },
            "timings": _TIMINGS,
        },
    ]


def refusal(call: Call) -> Result:
    """llama-server's way to refuse a request."""
    error = {"code": 400, "message": "the engine refuses this", "type": "invalid_request_error"}
    return Result(400, json.dumps({"error": error}).encode())


@dataclass(slots=True)
class Transcript:
    """What a dialect did with one request.

    :ivar ops: every operation, in order.
    :ivar reply: its whole answer, or None when it streamed.
    :ivar emitted: the bytes that it sent itself.
    :ivar relayed: whether the engine's stream went to the client untouched.
    """

    ops: list[Op] = field(default_factory=list)
    reply: Reply | None = None
    begun: Start | None = None
    emitted: bytes = b""
    relayed: bool = False

    @property
    def calls(self) -> list[Call]:
        """Every call to the engine, also those made as :class:`Calls`."""
        found: list[Call] = []
        for op in self.ops:
            if isinstance(op, Call):
                found.append(op)
            elif isinstance(op, Calls):
                found.extend(op.calls)
        return found


def drive(
    dialect: Dialect,
    intent: Intent,
    model: ModelView = MODEL,
    *,
    lease: Lease = LEASE,
    answer: Answer = good_answer,
    stream: Stream = good_stream,
    most_ops: int = _MOST_OPS,
) -> Transcript:
    """Run ``serve`` against the script, holding it to the rules of the contract, and close it.

    :param most_ops: stop after this many operations, as a client does that leaves.
    """
    done = Transcript()
    serving = dialect.serve(intent, model, lease)
    pending: list[dict[str, Any]] | None = None
    event: Event = None
    try:
        while len(done.ops) < most_ops:
            try:
                op = serving.send(event)
            except StopIteration:
                return done
            done.ops.append(op)
            assert len(done.ops) < _MOST_OPS, "serve goes on for ever"
            assert done.reply is None, f"{op} after a Reply"
            assert not done.relayed, f"{op} after the stream was relayed"
            event = None
            match op:
                case Call():
                    event, pending = _call(op, answer, stream, done)
                case Next():
                    assert pending is not None, "Next without a stream call in progress"
                    event = Chunk(pending.pop(0)) if pending else Result(200, b"")
                case Calls():
                    for call in op.calls:
                        _check_call(call)
                    event = Results([answer(call) for call in op.calls])
                case Work():
                    event = Value(op.function(*op.arguments))
                case Start():
                    assert done.begun is None, "Start twice"
                    done.begun = op
                case Emit():
                    assert done.begun is not None, "Emit before Start"
                    done.emitted += op.data
                case Reply():
                    assert done.begun is None, "Reply after Start"
                    check_reply(op)
                    done.reply = op
                case _:
                    raise AssertionError(f"serve yielded {op!r}, which is no operation")
    finally:
        serving.close()
    return done


def _call(
    call: Call, answer: Answer, stream: Stream, done: Transcript
) -> tuple[Event, list[dict[str, Any]] | None]:
    _check_call(call)
    result = answer(call)
    if result.status != 200 or call.mode in ("plain", "assemble"):
        return result, None
    if call.mode == "relay":
        done.relayed = True
        return Result(200, b"", relayed=True), None
    events = list(stream(call))
    return (Chunk(events.pop(0)) if events else Result(200, b"")), events


def _check_call(call: Call) -> None:
    assert call.method in ("GET", "POST"), call.method
    assert call.path.startswith("/"), call.path
    assert call.path.isascii(), call.path
    assert not set(call.path) & set(" \r\n?#%"), call.path
    if call.body and call.content_type != b"application/json":
        assert not call.patch, "only JSON can be patched"
        assert not set(call.content_type) & set(b"\r\n"), call.content_type
    elif call.body:
        top = {path: value for path, value in call.patch.items() if "." not in path}
        parse_object(splice(call.body, top))
    else:
        assert not call.patch, "a patch without a body to lay it over"


def check_reply(reply: Reply) -> None:
    """A reply can be sent, and is JSON where it says so."""
    assert 200 <= reply.status <= 599, reply.status
    names = [name for name, _ in reply.headers]
    for name, value in reply.headers:
        assert name == name.lower(), f"{name!r} is not in lower case"
        assert not set(name + value) & set(b"\r\n"), f"{name!r} breaks the head apart"
    assert len(set(names)) == len(names), f"a header is there twice: {names}"
    assert isinstance(reply.body, bytes)
    if dict(reply.headers).get(b"content-type", b"").startswith(b"application/json"):
        json.loads(reply.body)
