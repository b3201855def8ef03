"""Messages of Ollama as messages of llama-server. Pure."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from llamaman import BODY_DEPTH, InvalidField
from llamaman_api_ollama import media
from llamaman_api_ollama.fields import Fields
from llamaman_api_ollama.media import Media


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in a conversation's past.

    :ivar arguments: JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message, read and checked.

    :ivar content: text, or OpenAI's parts as they were given.
    :ivar images: base64 of pictures and sounds.
    """

    role: str
    content: str | list[Any] = ""
    thinking: str = ""
    images: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""

    @property
    def is_prefill(self) -> bool:
        """Whether, as the last one, it is the beginning of the answer."""
        return self.role == "assistant" and not self.calls


def read(given: Sequence[Any]) -> tuple[Message, ...]:
    """Read ``messages``.

    :raises InvalidField: one is not what it should be.
    """
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(given))


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise InvalidField(where, f"{where} must be an object")
    fields = Fields(given, f"{where}.")
    content = fields.get("content")
    if content is None:
        content = ""
    elif isinstance(content, list):
        if not all(isinstance(each, dict) for each in content):
            raise fields.wrong("content", "a string or a list of parts")
    elif not isinstance(content, str):
        raise fields.wrong("content", "a string")
    images = tuple(fields.texts("images"))
    media.check(images)
    return Message(
        role=fields.text("role").lower(),
        content=content,
        thinking=fields.text("thinking"),
        images=images,
        calls=tuple(
            _call(call, f"{where}.tool_calls[{index}]")
            for index, call in enumerate(fields.array("tool_calls"))
        ),
        tool_name=fields.text("tool_name"),
        tool_call_id=fields.text("tool_call_id"),
    )


def _call(given: Any, where: str) -> ToolCall:
    if not isinstance(given, dict):
        raise InvalidField(where, f"{where} must be an object")
    fields = Fields(given, f"{where}.")
    function = Fields(fields.object("function"), f"{where}.function.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments) if arguments.strip() else {}
        except orjson.JSONDecodeError:
            raise function.wrong("arguments", "an object") from None
        if _is_deep(arguments):
            name = f"{where}.function.arguments"
            raise InvalidField(name, f"{name} is nested deeper than {BODY_DEPTH} levels")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise function.wrong("arguments", "an object")
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return ToolCall(fields.text("id"), function.text("name"), text)


def _is_deep(value: Any) -> bool:
    """Whether something has more levels than a body may have: an engine's parser is recursive."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(BODY_DEPTH):
        if not level:
            return False
        below = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        level = [each for each in below if isinstance(each, dict | list)]
    return bool(level)


def joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same with the assistant's last messages made one: llama-server goes on with one only."""
    first = len(messages)
    while first and messages[first - 1].is_prefill:
        first -= 1
    run = messages[first:]
    if len(run) < 2:
        return tuple(messages)
    whole = replace(
        run[0],
        content="".join(_text(each.content) for each in run),
        thinking="".join(each.thinking for each in run),
        images=tuple(image for each in run for image in each.images),
    )
    return (*messages[:first], whole)


def _text(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content]
    return "".join(text for text in texts if isinstance(text, str))


def to_engine(messages: Sequence[Message], found: Sequence[Sequence[Media]] = ()) -> list[dict[str, Any]]:
    """Messages as llama-server takes them.

    Several clients lose the ids of tool calls, and some chat templates insist on them: calls without one get one,
    and hand it on to the results that follow.

    :param found: every message's media; none where pictures are left out, as for counting.
    """
    made: list[dict[str, Any]] = []
    waiting = _Calls()
    turns = 0
    for index, message in enumerate(messages):
        entry: dict[str, Any] = {
            "role": message.role,
            "content": _content(message, found[index] if found else ()),
        }
        if message.thinking:
            entry["reasoning_content"] = message.thinking
        if message.calls:
            calls = [
                call if call.id else replace(call, id=f"call_{turns}_{number}")
                for number, call in enumerate(message.calls)
            ]
            waiting = _Calls(calls)
            turns += 1
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        if message.role == "tool":
            call = waiting.answered_by(message)
            entry.update({"name": call.name} if call.name else {})
            entry.update({"tool_call_id": call.id} if call.id else {})
        made.append(entry)
    return made


class _Calls:
    """The calls of one turn that have no answer yet. Each is found in one step: a turn may hold thousands."""

    def __init__(self, calls: Sequence[ToolCall] = ()) -> None:
        self._calls = dict(enumerate(calls))
        self._in_order = deque(self._calls)
        self._by_id: dict[str, deque[int]] = {}
        self._by_name: dict[str, deque[int]] = {}
        for number, call in self._calls.items():
            self._by_id.setdefault(call.id, deque()).append(number)
            self._by_name.setdefault(call.name, deque()).append(number)

    def answered_by(self, message: Message) -> ToolCall:
        """The call that a tool's message answers: by id, by name, else the first that has no answer yet."""
        given, name = message.tool_call_id, message.tool_name
        if given:
            number = self._first(self._by_id.get(given))
        else:
            number = self._first(self._by_name.get(name) if name else self._in_order)
        if number is None:
            return ToolCall(given, name, "")
        call = self._calls[number]
        if name and name != call.name:  # the id of one and the name of another: the first waits on
            return replace(call, name=name)
        del self._calls[number]
        return call

    def _first(self, numbers: deque[int] | None) -> int | None:
        while numbers and numbers[0] not in self._calls:
            numbers.popleft()
        return numbers[0] if numbers else None


def _content(message: Message, found: Sequence[Media]) -> str | list[Any]:
    if not found:
        return message.content
    content = message.content
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if content == "":
        parts = []
    return parts + [media.part(each) for each in found]
