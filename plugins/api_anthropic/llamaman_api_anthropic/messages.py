"""The conversation of a request as the messages of a chat completion. Pure.

Read by :mod:`llamaman_api_anthropic.request`. Guarantees an order that chat templates understand: one system
message, at the beginning; turns of one side after another are one turn, as with Anthropic; the results of tools
directly behind the calls; every message has a content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamaman_api_anthropic.blocks import Part, blocks_of, joined, parts_of, text_part
from llamaman_api_anthropic.fields import array, flag, invalid, join, obj, required, text

Message = dict[str, Any]


def messages_of(body: Mapping[str, Any]) -> list[Message]:
    """The engine's messages.

    :raises InvalidField: the conversation is malformed.
    """
    given = array(required(body, "messages"), "messages")
    if not given:
        raise invalid("messages", "at least one message is required")
    system = _system(body.get("system"), "system")
    told: list[Message] = []
    names: dict[str, str] = {}
    for number, message in enumerate(given):
        here = join("messages", number)
        role = required(obj(message, here), "role", here)
        content = required(message, "content", here)
        inside = join(here, "content")
        if role == "user":
            _user(told, content, inside, names)
        elif role == "assistant":
            _assistant(told, content, inside, names)
        elif role == "system":
            said = _system(content, inside)
            if told:
                _add_user(told, [text_part(f"<system>\n{line}\n</system>") for line in said])
            else:
                system += said
        else:
            raise invalid(join(here, "role"), "Input should be 'user', 'assistant' or 'system'")
    if told and told[-1].get("tool_calls"):
        raise invalid(
            join("messages", len(given) - 1),
            "`tool_use` blocks must be followed by a user message with a `tool_result` block for each",
        )
    told = [_flat(message) for message in told]
    if told and told[-1] == {"role": "assistant", "content": ""}:
        told.pop()
    if system:
        told.insert(0, {"role": "system", "content": "\n\n".join(system)})
    if not told:
        raise invalid("messages", "at least one message with content is required")
    return told


def continues(messages: list[Message]) -> bool:
    """Whether the answer has been begun by the client."""
    return bool(messages[-1]["role"] == "assistant")


def _system(content: Any, place: str) -> list[str]:
    """The texts of a system prompt."""
    if content is None:
        return []
    parts = [part for block, here in blocks_of(content, place) for part in parts_of(block, here)]
    return [part["text"] for part in parts if part["type"] == "text"]


def _user(told: list[Message], content: Any, place: str, names: Mapping[str, str]) -> None:
    parts: list[Part] = []
    results: list[Message] = []
    for block, here in blocks_of(content, place):
        if block["type"] == "tool_result":
            result, images = _result(block, here, names)
            results.append(result)
            parts += images  # OpenAI's results are text; what a tool has drawn is shown by the user
        else:
            parts += parts_of(block, here)
    told += results
    _add_user(told, parts, empty=not results)


def _result(block: dict[str, Any], place: str, names: Mapping[str, str]) -> tuple[Message, list[Part]]:
    call = text(required(block, "tool_use_id", place), join(place, "tool_use_id"))
    content = block.get("content")
    inside = join(place, "content")
    parts = [
        part
        for inner, here in ([] if content is None else blocks_of(content, inside))
        for part in parts_of(inner, here)
    ]
    said = joined(parts)
    if flag(block.get("is_error"), join(place, "is_error")) and not said.lower().startswith("error"):
        said = f"Error: {said}" if said else "Error"
    message: Message = {"role": "tool", "tool_call_id": call, "content": said}
    if call in names:
        message["name"] = names[call]
    return message, [part for part in parts if part["type"] != "text"]


def _add_user(told: list[Message], parts: list[Part], *, empty: bool = False) -> None:
    """Let the user say this, in the turn that is the user's already if there is one."""
    if told and told[-1]["role"] == "user":
        told[-1]["content"] += parts
    elif parts or empty:
        told.append({"role": "user", "content": parts})


def _assistant(told: list[Message], content: Any, place: str, names: dict[str, str]) -> None:
    said, thoughts = [], []
    calls: list[dict[str, Any]] = []
    for block, here in blocks_of(content, place):
        match block["type"]:
            case "text":
                said.append(text(required(block, "text", here), join(here, "text")))
            case "thinking":
                thoughts.append(text(required(block, "thinking", here), join(here, "thinking")))
            case "tool_use":
                calls.append(_call(block, here, names))
    if not (told and told[-1]["role"] == "assistant"):
        told.append({"role": "assistant", "content": []})
    turn = told[-1]
    turn["content"] += said  # joined in the end: a turn may come in thousands of pieces
    if any(thoughts):
        turn.setdefault("reasoning_content", []).extend(thoughts)
    if calls:
        turn.setdefault("tool_calls", []).extend(calls)


def _call(block: dict[str, Any], place: str, names: dict[str, str]) -> dict[str, Any]:
    call = text(required(block, "id", place), join(place, "id"))
    name = text(required(block, "name", place), join(place, "name"))
    arguments = obj(required(block, "input", place), join(place, "input"))
    names[call] = name
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": call, "type": "function", "function": function}


def _flat(message: Message) -> Message:
    """Texts alone are one string, which every template understands; what the assistant said always is."""
    content = message["content"]
    if message["role"] == "assistant":
        flat = {**message, "content": "".join(content)}
        if "reasoning_content" in message:
            flat["reasoning_content"] = "".join(message["reasoning_content"])
        return flat
    if isinstance(content, list) and all(part["type"] == "text" for part in content):
        return {**message, "content": joined(content)}
    return message
