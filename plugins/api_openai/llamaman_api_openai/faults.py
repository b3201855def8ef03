"""OpenAI's error object, for LlamaMan's own errors and for the engine's. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamaman import JSON_HEADERS, LlamaManError, Reply, Result

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
#: How llama-server calls a prompt that is too long, and OpenAI.
_TOO_LONG, _EXCEEDED = "exceed_context_size_error", "context_length_exceeded"


def told(error: LlamaManError) -> dict[str, Any]:
    """The error object of one of LlamaMan's errors."""
    return {
        "message": error.message,
        "type": _TYPES.get(error.status, "server_error"),
        "param": error.field,
        "code": error.code,
    }


def event(error: Mapping[str, Any]) -> bytes:
    """An error object as the last event of a stream, which is an ``error`` event of the Responses API, too."""
    told = {**error, "type": "error", "error": error}
    return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


def read(body: bytes) -> dict[str, Any]:
    """The error object of an engine's body in OpenAI's words; one that says so where there is none."""
    try:
        found = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):  # not llama-server's, but something in between
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("message"), str):
        return {"message": "the engine failed", "type": "server_error", "param": None, "code": None}
    code = found.get("code")
    error = {"param": None, **found, "code": code if isinstance(code, str) else None}  # not the status again
    if found.get("type") == _TOO_LONG:
        error |= {"message": _too_long(found), "type": _TYPES[400], "code": _EXCEEDED}
    return error


def answer(result: Result) -> Reply:
    """The engine's answer; an error in OpenAI's words."""
    if result.status < 400:
        return Reply(result.status, JSON_HEADERS, result.body)
    error = read(result.body)
    body = json.dumps({"error": error}, ensure_ascii=False).encode()
    return Reply(result.status, JSON_HEADERS, body, late=event(error))


def _too_long(error: Mapping[str, Any]) -> str:
    """With the words by which clients know OpenAI's refusal, and those by which they know llama-server's."""
    tokens, most = error.get("n_prompt_tokens"), error.get("n_ctx")
    if not isinstance(tokens, int) or not isinstance(most, int):
        return str(error.get("message"))
    return (
        f"This model's maximum context length is {most} tokens. However, the request has {tokens} tokens, which "
        f"exceeds the available context size. Shorten it, or give the model's preset more context (ctx_size)."
    )
