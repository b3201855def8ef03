"""Errors in Ollama's form: ``{"error": "one sentence"}``. Pure.

Clients search for parts of these sentences, so what an engine says is passed on as it said it, except where it
means nothing to a client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llamaman import InvalidField, LlamaManError, ModelView, Reply, Result
from llamaman_api_ollama import names

JSON: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json; charset=utf-8"),)

TOO_LONG = "the input length exceeds the context length"
NO_ROOM = "input after truncation exceeds maximum context length"
STOPPED = "model runner has unexpectedly stopped: its answer ended without an end"

#: How llama-server begins its refusal where a vocabulary has no tokens for a prefix and a suffix.
_NO_INSERT = "Infill is not supported"
_BATCH = re.compile(r"too large to process.*current batch size: (\d+)", re.DOTALL)


class Told(LlamaManError):
    """An engine's error, as the client is told it."""

    code = "engine_refused"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def reply(error: LlamaManError) -> Reply:
    """An error as a whole answer."""
    headers = list(JSON)
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    return Reply(error.status, headers, json.dumps({"error": error.message}).encode())


def line(error: LlamaManError) -> bytes:
    """An error as the last line of a stream."""
    return json.dumps({"error": error.message}).encode() + b"\n"


def of_engine(result: Result) -> Told:
    """What a client is told about an engine's answer that is none."""
    message = _message(result.body) or f"the engine answered {result.status}"
    if largest_batch(message) is not None:
        return Told(400, TOO_LONG)
    return Told(result.status if result.status >= 400 else 502, message)


def largest_batch(message: str) -> int | None:
    """Tokens that an input may have, out of the engine's refusal of one that has more; None for any other."""
    found = _BATCH.search(message)
    return int(found[1]) if found else None


def is_without_insert(result: Result) -> bool:
    """Whether an engine says that its model cannot fill in."""
    return result.status >= 400 and _message(result.body).startswith(_NO_INSERT)


def _message(body: bytes) -> str:
    """The sentence of an error of llama-server."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError):  # not its error object, but something in between
        return ""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


# --- what a model cannot do -------------------------------------------------------------------------------


def is_able(model: ModelView, capability: str) -> bool:
    """Whether a model can do something, as far as its files say; one that says nothing gets its chance."""
    if capability == "completion" and model.embedding:
        return False
    return model.details is None or not model.details.capabilities or capability in model.details.capabilities


def require(model: ModelView, typed: str, *, what: str) -> None:
    """See that a model generates text. ``what``: ``chat`` or ``generate``.

    :raises InvalidField: it does not.
    """
    if not is_able(model, "completion"):
        raise InvalidField("model", f'"{typed or model.name}" does not support {what}')


def require_thinking(model: ModelView, typed: str) -> None:
    """:raises InvalidField: the model does not think."""
    if not is_able(model, "thinking"):
        raise InvalidField("think", f'"{typed or model.name}" does not support thinking')


def require_feature(model: ModelView, typed: str, feature: str) -> None:
    """See that a model has ``tools`` or ``insert``.

    :raises InvalidField: it has not.
    """
    if not is_able(model, feature):
        raise no_feature(model, typed, feature)


def no_feature(model: ModelView, typed: str, feature: str) -> InvalidField:
    """The refusal of what a model does not have."""
    field = "tools" if feature == "tools" else "suffix"
    return InvalidField(field, f"{names.parse(typed or model.name).full} does not support {feature}")
