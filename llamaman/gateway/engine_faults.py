"""Whose fault an error of llama-server's is. Read by `native.py`. Pure.

It answers with 500 where a request holds what it cannot read, and with 501 where a model or its launch cannot do what
is asked. Clients try again after a 5xx, which changes neither.
"""

from __future__ import annotations

import json

#: How it begins what it calls a fault of its own (500), though the request is at fault.
_CLIENTS_FAULTS = (
    "'messages' is required",
    "Failed to parse",
    "Failed to load image",
    "Invalid diff",
    "Unable to generate parser",
    "Unknown reasoning format",
    "audio input is not supported",
    "image input is not supported",
    "video input is not supported",
    "vector::_M_range_check",  # a token that the model does not have
)
#: An input over the batch of an embedding model: the number of its tokens stands before it.
_TOO_LONG = "is too large to process"


def put_right(status: int, body: bytes) -> tuple[int, bytes]:
    """Status and body as a client is told them; unchanged unless the wrong side is blamed."""
    if status not in (500, 501):
        return status, body
    try:
        error = json.loads(body)["error"]
        message = error["message"]
    except (ValueError, LookupError, TypeError):  # not its error object, but something in between
        return status, body
    if not isinstance(message, str):
        return status, body
    if status == 500 and not message.startswith(_CLIENTS_FAULTS) and _TOO_LONG not in message:
        return status, body
    right = {**error, "code": 400, "type": "invalid_request_error"}
    return 400, json.dumps({"error": right}, ensure_ascii=False).encode()
