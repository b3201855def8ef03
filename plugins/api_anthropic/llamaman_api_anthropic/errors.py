"""Errors in Anthropic's envelope. Pure.

Read by the dialect: errors of the kernel, and those that llama-server reports in its own shape.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llamaman import JSON_HEADERS

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def kind_of(status: int) -> str:
    """Anthropic's type of an error with this HTTP status."""
    return _TYPES.get(status) or ("invalid_request_error" if 400 <= status < 500 else "api_error")


def envelope(status: int, message: str, request_id: str | None = None) -> bytes:
    """The body of an error."""
    error = {"type": kind_of(status), "message": message}
    return json.dumps(
        {"type": "error", "error": error, "request_id": request_id}, ensure_ascii=False
    ).encode()


def event(body: bytes) -> bytes:
    """An error's body as the last event of a stream."""
    return b"event: error\ndata: " + body + b"\n\n"


def headers(request_id: str, base: Sequence[tuple[bytes, bytes]] = JSON_HEADERS) -> list[tuple[bytes, bytes]]:
    """An answer's headers, with the id that Anthropic's clients show."""
    return [*base, (b"request-id", request_id.encode())]


def engines(status: int, body: bytes) -> tuple[int, str]:
    """What llama-server's error says to a client: status and message."""
    try:
        error = json.loads(body)["error"]
        message = error["message"]
    except (ValueError, LookupError, TypeError):  # not its error object, but something in between
        return status, f"the engine answered {status} without saying why"
    if not isinstance(message, str) or not message:
        return status, f"the engine answered {status} without saying why"
    tokens, most = error.get("n_prompt_tokens"), error.get("n_ctx")
    if isinstance(tokens, int) and isinstance(most, int):
        # The words by which clients know that they must shorten it.
        return status, f"prompt is too long: {tokens} tokens > {most} maximum"
    return status, message
