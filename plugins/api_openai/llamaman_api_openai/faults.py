"""OpenAI's error object, for LlamaMan's own errors and for the engine's. Pure.

Clients try again after a 5xx; llama-server answers with one, although the request is at fault, in the cases below.
"""

from __future__ import annotations

import json
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
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):  # not its error object, but something in between
        return ""
    return message if isinstance(message, str) else ""
