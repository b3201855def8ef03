"""The bytes of a llama-server answer, built once and cut to length: pure, no I/O.

Read by :mod:`benchmarks.standin`. Guarantees llama-server's framing: each payload of a stream is its own
HTTP chunk of Server-Sent Events; the first payload packs the role and the first token (two events), every
further token is one event of about 240 bytes, the last payload packs the finish and, where asked for, the
usage, and ``[DONE]`` is alone. All answers of a process carry the same id and time: building them per
request would measure this file.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

WORD = " llama"
PROMPT_TOKENS = 12
FINGERPRINT = "b11434-standin"
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nX-Accel-Buffering: no\r\nCache-Control: no-cache\r\n"
    b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 411: "Length Required"}
_ERROR_TYPES = {401: "authentication_error", 404: "not_found_error"}


def encode(value: object) -> bytes:
    """Compact JSON, as the engine writes it."""
    return json.dumps(value, separators=(",", ":")).encode()


def reply(status: int, body: bytes, content_type: str = "application/json; charset=utf-8") -> bytes:
    """A whole HTTP/1.1 answer with a length."""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nServer: llama.cpp\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def error(status: int, message: str) -> bytes:
    """llama-server's error object as a whole answer."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error")
    return reply(status, encode({"error": {"code": status, "message": message, "type": kind}}))


def chunk(*events: bytes) -> bytes:
    """Events packed into one HTTP chunk."""
    payload = b"".join(events)
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def event(value: object) -> bytes:
    """One Server-Sent Event."""
    return b"data: " + encode(value) + b"\n\n"


@dataclass(frozen=True, slots=True)
class StreamParts:
    """A stream in four parts: ``first``, then ``token`` for each further token, then ``last``."""

    first: bytes
    """Head, role and first token."""
    token: bytes
    """One token as one HTTP chunk."""
    last: bytes
    """Finish, usage where asked for, ``[DONE]`` and the end of the body."""


class Answers:
    """Every answer of one process, by shape and length; each is built at first use and kept."""

    def __init__(self, model_id: str, ctx_size: int) -> None:
        self._model = model_id
        self._ctx_size = ctx_size
        self._created = int(time.time())
        self._bodies: dict[tuple[bool, int], bytes] = {}
        self._streams: dict[tuple[bool, int, bool], StreamParts] = {}

    def whole(self, chat: bool, tokens: int) -> bytes:
        """The answer of a request without ``stream``, head included."""
        key = (chat, tokens)
        if key not in self._bodies:
            self._bodies[key] = reply(200, encode(self._whole_body(chat, tokens)))
        return self._bodies[key]

    def stream(self, chat: bool, tokens: int, usage: bool) -> StreamParts:
        """The parts of a streamed answer; ``usage`` is the request's ``stream_options.include_usage``."""
        key = (chat, tokens, usage)
        if key not in self._streams:
            self._streams[key] = self._chat_stream(tokens, usage) if chat else self._text_stream(tokens)
        return self._streams[key]

    def _common(self, chat: bool, streamed: bool) -> dict[str, object]:
        kind = "chat.completion" if chat else "text_completion"
        return {
            "created": self._created,
            "id": "chatcmpl-standinStandinStandinStandin0000",
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
            "object": kind + ".chunk" if chat and streamed else kind,
        }

    def _whole_body(self, chat: bool, tokens: int) -> dict[str, object]:
        text = WORD * tokens
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"finish_reason": "length", "index": 0, **content}
        extra = {"usage": _usage(tokens), "timings": _timings(tokens)}
        return {"choices": [choice], **self._common(chat, streamed=False), **extra}

    def _chat_delta(self, delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
        choice = {"finish_reason": finish, "index": 0, "delta": delta}
        return {"choices": [choice], **self._common(chat=True, streamed=True)}

    def _chat_stream(self, tokens: int, usage: bool) -> StreamParts:
        role = event(self._chat_delta({"role": "assistant", "content": None}))
        token = event(self._chat_delta({"content": WORD}))
        finish = self._chat_delta({}, "length")
        timings = {"timings": _timings(tokens)}
        if usage:
            tail = {
                "choices": [],
                **self._common(chat=True, streamed=True),
                "usage": _usage(tokens),
                **timings,
            }
            last = chunk(event(finish), event(tail))
        else:
            last = chunk(event({**finish, **timings}))
        return StreamParts(STREAM_HEAD + chunk(role, token), chunk(token), last + chunk(DONE) + LAST_CHUNK)

    def _text_stream(self, tokens: int) -> StreamParts:
        def part(text: str, finish: str | None) -> dict[str, object]:
            choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
            return {"choices": [choice], **self._common(chat=False, streamed=True)}

        token = chunk(event(part(WORD, None)))
        last = event({**part("", "length"), "usage": _usage(tokens), "timings": _timings(tokens)})
        return StreamParts(STREAM_HEAD + token, token, chunk(last) + chunk(DONE) + LAST_CHUNK)

    def props(self, model_path: str, slots: int) -> bytes:
        """``GET /props``."""
        modalities = {"vision": False, "video": False, "audio": False}
        return reply(
            200,
            encode(
                {
                    "default_generation_settings": {"params": {}, "n_ctx": self._ctx_size},
                    "total_slots": slots,
                    "model_alias": self._model,
                    "model_ftype": "F16",
                    "model_path": model_path,
                    "modalities": modalities,
                    "endpoint_slots": True,
                    "endpoint_props": False,
                    "endpoint_metrics": True,
                    "chat_template": "",
                    "chat_template_caps": {},
                    "bos_token": "",
                    "eos_token": "",
                    "build_info": FINGERPRINT,
                    "is_sleeping": False,
                }
            ),
        )

    def slots(self, count: int, busy: int) -> bytes:
        """``GET /slots``; the first ``busy`` ones show as processing."""
        return reply(
            200,
            encode(
                [
                    {"id": n, "n_ctx": self._ctx_size, "speculative": False, "is_processing": n < busy}
                    for n in range(count)
                ]
            ),
        )

    def models(self) -> bytes:
        """``GET /v1/models``."""
        meta = {"vocab_type": 2, "n_vocab": 259, "n_ctx": self._ctx_size, "n_ctx_train": self._ctx_size}
        entry = {
            "id": self._model,
            "aliases": [self._model],
            "tags": [],
            "object": "model",
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "created": self._created,
            "owned_by": "llamacpp",
            "meta": meta,
        }
        return reply(200, encode({"models": [], "object": "list", "data": [entry]}))


def _usage(tokens: int) -> dict[str, object]:
    return {
        "completion_tokens": tokens,
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _timings(tokens: int) -> dict[str, object]:
    spent = 0.001 * max(1, tokens - 1)
    return {
        "cache_n": 0,
        "prompt_n": PROMPT_TOKENS,
        "prompt_ms": 1.0,
        "prompt_per_token_ms": 1.0 / PROMPT_TOKENS,
        "prompt_per_second": 1000.0 * PROMPT_TOKENS,
        "predicted_n": tokens,
        "predicted_ms": spent,
        "predicted_per_token_ms": 0.001 if tokens > 1 else 0.0,
        "predicted_per_second": 1_000_000.0 if tokens > 1 else 0.0,
    }
