"""The events of a message put together to the whole message. Pure.

Read by the dialect for clients that do not stream: they get what a streaming client would put together, except
for a tool call that the limit cut off, which is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llamaman_api_anthropic.stream import Event, arguments


def whole(events: Iterable[Event]) -> dict[str, Any]:
    """The message that the events tell."""
    message: dict[str, Any] = {}
    blocks: list[dict[str, Any]] = []
    pieces: list[list[str]] = []
    for event in events:
        match event["type"]:
            case "message_start":
                message = dict(event["message"])
            case "content_block_start":
                blocks.append(dict(event["content_block"]))
                pieces.append([])
            case "content_block_delta":
                delta = event["delta"]
                if delta["type"] != "signature_delta":  # it is empty, as the block has it already
                    pieces[-1].append(delta.get("text") or delta.get("thinking") or delta.get("partial_json"))
            case "message_delta":
                message |= {**event["delta"], "usage": event["usage"]}
    cut = message["stop_reason"] == "max_tokens"
    told = [_filled(block, "".join(parts), cut) for block, parts in zip(blocks, pieces, strict=True)]
    message["content"] = [block for block in told if block is not None]
    return message


def _filled(block: dict[str, Any], said: str, cut: bool) -> dict[str, Any] | None:
    """A block with what was said in it; None for a call that was not told to its end."""
    if block["type"] != "tool_use":
        return {**block, block["type"]: said}
    given = arguments(said)
    return None if given is None or (cut and not said) else {**block, "input": given}
