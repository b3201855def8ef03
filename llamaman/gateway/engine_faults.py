"""Whose fault an error of llama-server's is. Read by `engine_calls.py` and the pipeline, for every API. Pure.

It answers with 500 where a request holds what it cannot read, and with 501 where a model or its launch cannot do what
is asked. Clients try again after a 5xx, which changes neither.
"""

from __future__ import annotations

import json

from llamaman.errors import ContextFull, ContextTooSmall
from llamaman.gateway.dialect import Result

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
#: What it tells all whom it works on when they need more context together than they share. One request alone is
#: refused (400) or cut (``length``) long before; unless it asks for several answers.
_CONTEXT_FULL = b'"Context size has been exceeded."'


def is_context_full(result: Result) -> bool:
    """Whether a request failed because of what it shares the context with."""
    return result.status == 500 and len(result.body) < 1024 and _CONTEXT_FULL in result.body


def context_full(model: str, context: int | None) -> ContextFull:
    """What those are told who have some of an answer already.

    :param context: tokens that the engine has, None where that is unknown.
    """
    return ContextFull(
        f"the requests that model '{model}' answers at the same time need more context together than it "
        f"has{_tokens(context)}; ask again, or give its preset more context (ctx_size) or fewer slots (parallel)",
        retry_after=1,
    )


def context_too_small(model: str, context: int | None) -> ContextTooSmall:
    """What a request is told that had the engine to itself."""
    return ContextTooSmall(
        f"the answers that are asked for at the same time (n, or several prompts) need more context together than "
        f"model '{model}' has{_tokens(context)}; ask for fewer at once, or for shorter ones"
    )


def _tokens(context: int | None) -> str:
    return f" ({context} tokens)" if context else ""


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
