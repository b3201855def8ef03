"""Which instance of a model has a conversation's beginning in its prompt cache.

A conversation is told by what stays the same while it grows: the system text and the first turn of the user.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import orjson

#: Conversations remembered per model; the least recently seen one is forgotten first.
REMEMBERED = 4096
#: Of a first turn this much counts; a long document need not be hashed to its end.
_COUNTED_BYTES = 1 << 16


class Homes:
    """Conversation -> instance id."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: OrderedDict[str, str] = OrderedDict()

    def of(self, conversation: str) -> str | None:
        """Where it was served last, or None."""
        return self._ids.get(conversation)

    def note(self, conversation: str, instance_id: str) -> None:
        """It is served there."""
        self._ids[conversation] = instance_id
        self._ids.move_to_end(conversation)
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)


def conversation(body: Mapping[str, Any]) -> str | None:
    """The key of a request's conversation, in the shape of every API; None when it shows none.

    :param body: a parsed request. Reads messages or input, system or instructions, and a bare prompt.
    """
    parts: list[Any] = [body.get("system") or body.get("instructions") or ""]
    turns = body.get("messages") or body.get("input")
    if isinstance(turns, list):
        for turn in turns:
            if not isinstance(turn, dict):
                parts.append(turn)
                break
            parts.append(turn.get("content"))
            if turn.get("role") not in ("system", "developer"):
                break
    else:
        parts.append(turns or body.get("prompt"))
    if not any(parts):
        return None
    text = orjson.dumps(parts)
    return hashlib.blake2b(text[:_COUNTED_BYTES], digest_size=16).hexdigest()
