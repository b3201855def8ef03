"""OpenAI's error object, for LlamaMan's own errors and for the engine's. Pure.

Clients try again after a 5xx; llama-server answers with one, although the request is at fault, in the cases below.
"""

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
#: How llama-server begins what it calls a fault of its own (500), though the request is at fault.
_CLIENTS_FAULTS = (
    "Failed to parse messages",
    "Failed to parse tools",
    "Unknown reasoning format",
    "image input is not supported",
    "audio input is not supported",
    "video input is not supported",
)
#: An input over the batch of an embedding model: the number of its tokens stands in the middle.
_TOO_LONG = "is too large to process"


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
    """The error object of an engine's body; one that says so where there is none."""
    return _object(body) or {
        "message": "the engine failed",
        "type": "server_error",
        "param": None,
        "code": None,
    }


def answer(result: Result) -> Reply:
    """The engine's answer; where it blames the wrong side, that is put right."""
    if result.status not in (500, 501):
        return Reply(result.status, JSON_HEADERS, result.body)
    message = _message(result.body)
    # 501: the model or its launch cannot do this, which trying again does not change.
    if not message or (
        result.status == 500 and not message.startswith(_CLIENTS_FAULTS) and _TOO_LONG not in message
    ):
        return Reply(result.status, JSON_HEADERS, result.body)
    error = {"message": message, "type": _TYPES[400], "param": None, "code": 400}
    return Reply(400, JSON_HEADERS, json.dumps({"error": error}, ensure_ascii=False).encode())


def _message(body: bytes) -> str:
    """The message of an error of llama-server."""
    message = _object(body).get("message")
    return message if isinstance(message, str) else ""


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):  # not llama-server's, but something in between
        return {}
    return found if isinstance(found, dict) else {}
