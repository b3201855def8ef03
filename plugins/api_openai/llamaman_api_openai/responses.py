"""The Responses API: llama-server's own answers made whole.

llama-server streams text, thoughts and calls, but its events lack indexes and numbers, its objects lack members
that OpenAI's clients require, items end only when everything ends, and an answer that was cut is called
completed. So its deltas are taken, and all events around them are made here. Pure.

Nothing is stored: a request carries its whole conversation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from llamaman import InvalidField
from llamaman_api_openai import fields

Event = dict[str, Any]

_COPIED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "user",
)


def check(body: dict[str, Any]) -> None:
    """Refuse what needs stored answers.

    :raises InvalidField: naming it.
    """
    for name in ("previous_response_id", "conversation"):
        if body.get(name) is not None:
            raise InvalidField(
                name, f"{name} is not supported: nothing is stored; send the whole conversation as input"
            )
    if body.get("background"):
        raise InvalidField("background", "background is not supported: nothing is stored; leave it out")
    items = body.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("type") == "item_reference":
            raise InvalidField(
                "input", "input refers to a stored item, and nothing is stored; send the item itself"
            )
    if items == []:
        raise InvalidField("input", "input must not be empty")


def conversation(body: dict[str, Any]) -> dict[str, Any]:
    """The input where the engine would not know one of its items.

    An assistant's turn needs no type at OpenAI's, and a thought may be told by its summary alone.
    """
    items = body.get("input")
    if not isinstance(items, list) or not any(_is_untyped_turn(item) or _is_closed(item) for item in items):
        return {}
    told = [{**item, "type": "message"} if _is_untyped_turn(item) else item for item in items]
    return {"input": [_opened(item) if _is_closed(item) else item for item in told if _says_something(item)]}


def _is_untyped_turn(item: object) -> bool:
    return isinstance(item, dict) and item.get("role") == "assistant" and item.get("type") is None


def _is_closed(item: object) -> bool:
    """Whether it is a thought without its words."""
    return isinstance(item, dict) and item.get("type") == "reasoning" and not item.get("content")


def _says_something(item: Any) -> bool:
    return not _is_closed(item) or bool(_summary(item))


def _opened(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "content": [{"type": "reasoning_text", "text": _summary(item)}]}


def _summary(item: dict[str, Any]) -> str:
    parts = item.get("summary")
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n".join(text for text in texts if isinstance(text, str))


def patch(body: dict[str, Any]) -> dict[str, Any]:
    """What is laid over a body for the engine, which does not read ``text.format`` or ``reasoning.effort``."""
    laid: dict[str, Any] = fields.thinking(body) | conversation(body)
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        laid["top_logprobs"] = None  # which the engine refuses alone, and its answers hold none anyway
    text = body.get("text")
    shape = text.get("format") if isinstance(text, dict) else None
    if isinstance(shape, dict) and shape.get("type") == "json_schema":
        schema = {name: shape[name] for name in ("name", "schema", "strict") if name in shape}
        laid["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif isinstance(shape, dict) and shape.get("type") == "json_object":
        laid["response_format"] = {"type": "json_object"}
    if fields.most_tokens(body) is not None:
        laid["timings_per_token"] = True  # tells whether the last token was text or the end
    return laid


@dataclass(slots=True)
class _Item:
    """One member of ``output`` that is being made.

    :ivar text: of a message, a thought or a call's arguments.
    """

    index: int
    kind: str
    id: str
    name: str = ""
    text: list[str] = field(default_factory=list)
    is_open: bool = True
    status: str = "completed"

    def whole(self, *, status: str | None = None) -> dict[str, Any]:
        """The item as clients get it; ``status`` in_progress: as it begins."""
        begins = status == "in_progress"
        text, status = "" if begins else "".join(self.text), status or self.status
        if self.kind == "function_call":
            return {
                "type": "function_call",
                "id": self.id,
                "call_id": "call_" + self.id.removeprefix("fc_"),
                "name": self.name,
                "arguments": text,
                "status": status,
            }
        content = [] if begins else [self.part()]
        if self.kind == "reasoning":
            return {"type": "reasoning", "id": self.id, "summary": [], "content": content, "status": status}
        return {"type": "message", "id": self.id, "role": "assistant", "content": content, "status": status}

    def part(self, *, empty: bool = False) -> dict[str, Any]:
        """The content of a message or a thought."""
        text = "" if empty else "".join(self.text)
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Answer:
    """One answer in the making: takes the engine's events and gives OpenAI's.

    :param body: the client's request. :param model: the model's name as the client wrote it.
    :param created: epoch seconds. :param context: tokens that the request may use, None when that is unknown.
    """

    __slots__ = (
        "_base",
        "_begun",
        "_calls",
        "_context",
        "_items",
        "_limit",
        "_number",
        "_seen",
        "_thoughts",
        "final",
    )

    def __init__(self, body: dict[str, Any], model: str, created: float, context: int | None) -> None:
        self._base = _base(body, model, int(created))
        self._limit = fields.most_tokens(body)
        self._context = context
        self._items: list[_Item] = []
        self._calls: dict[str, _Item] = {}
        self._number = 0
        self._seen = 0  # tokens up to the last delta
        self._thoughts = 0
        self._begun = False
        self.final: dict[str, Any] | None = None

    def take(self, event: Event) -> list[Event]:
        """What the client gets for one event of the engine."""
        made = list(self._made(event))
        for one in made:
            one["sequence_number"] = self._number
            self._number += 1
        return made

    def _made(self, event: Event) -> list[Event]:
        kind = event.get("type")
        made = [] if self._begun else self._begin(event)
        if isinstance(timings := event.get("timings"), dict) and kind != "response.completed":
            self._seen = timings.get("predicted_n") or self._seen
        if kind == "response.output_item.added":
            item = event.get("item") or {}
            if item.get("type") == "function_call":
                number = (
                    str(item.get("call_id") or item.get("id") or "").removeprefix("call_").removeprefix("fc_")
                )
                made += self._open("function_call", "fc_" + number, str(item.get("name") or ""))
            elif item.get("type") in ("message", "reasoning"):
                made += self._open(item["type"], str(item.get("id")))
        elif kind == "response.output_text.delta":
            made += self._more("message", event)
        elif kind == "response.reasoning_text.delta":
            self._thoughts += 1
            made += self._more("reasoning", event)
        elif kind == "response.function_call_arguments.delta":
            made += self._more("function_call", event)
        elif kind == "response.completed":
            made += self._end(event.get("response") or {})
        return made

    def _begin(self, event: Event) -> list[Event]:
        self._begun = True
        told = event.get("response")
        if isinstance(told, dict) and told.get("id"):
            self._base["id"] = told["id"]
        return [
            {"type": "response.created", "response": dict(self._base)},
            {"type": "response.in_progress", "response": dict(self._base)},
        ]

    # --- items ---------------------------------------------------------------------------------------

    def _open(self, kind: str, item_id: str, name: str = "") -> list[Event]:
        made = self._close_all()
        item = _Item(len(self._items), kind, item_id, name)
        self._items.append(item)
        where = {"item_id": item.id, "output_index": item.index}
        made.append(
            {
                "type": "response.output_item.added",
                "output_index": item.index,
                "item": item.whole(status="in_progress"),
            }
        )
        if kind != "function_call":
            made.append(
                {
                    "type": "response.content_part.added",
                    **where,
                    "content_index": 0,
                    "part": item.part(empty=True),
                }
            )
        return made

    def _more(self, kind: str, event: Event) -> list[Event]:
        made: list[Event] = []
        last = self._items[-1] if self._items else None
        if last is None or last.kind != kind or not last.is_open:
            made += self._open(kind, str(event.get("item_id")))
            last = self._items[-1]
        return [*made, self._delta(last, str(event.get("delta") or ""))]

    def _delta(self, item: _Item, text: str) -> Event:
        item.text.append(text)
        where = {"item_id": item.id, "output_index": item.index, "delta": text}
        if item.kind == "function_call":
            return {"type": "response.function_call_arguments.delta", **where}
        if item.kind == "reasoning":
            return {"type": "response.reasoning_text.delta", **where, "content_index": 0}
        return {"type": "response.output_text.delta", **where, "content_index": 0, "logprobs": []}

    def _close_all(self) -> list[Event]:
        return [event for item in self._items if item.is_open for event in self._close(item)]

    def _close(self, item: _Item) -> list[Event]:
        item.is_open = False
        where = {"item_id": item.id, "output_index": item.index}
        text = "".join(item.text)
        done = {"type": "response.output_item.done", "output_index": item.index, "item": item.whole()}
        if item.kind == "function_call":
            return [
                {
                    "type": "response.function_call_arguments.done",
                    **where,
                    "name": item.name,
                    "arguments": text,
                },
                done,
            ]
        where["content_index"] = 0
        ended: Event = {"type": "response.reasoning_text.done", **where, "text": text}
        if item.kind == "message":
            ended = {"type": "response.output_text.done", **where, "text": text, "logprobs": []}
        return [ended, {"type": "response.content_part.done", **where, "part": item.part()}, done]

    # --- the end -------------------------------------------------------------------------------------

    def _end(self, told: dict[str, Any]) -> list[Event]:
        made: list[Event] = []
        held_back = False
        for number, item in enumerate(told.get("output") or ()):
            kind, text = item.get("type"), _text_of(item)
            if number >= len(self._items):  # which no delta has announced
                made += self._open(
                    kind, str(item.get("id") or item.get("call_id")), str(item.get("name") or "")
                )
            mine = self._items[number]
            have = "".join(mine.text)
            if mine.is_open and mine.kind == kind and len(text) > len(have) and text.startswith(have):
                held_back = True
                made.append(self._delta(mine, text[len(have) :]))
        usage = _usage(told.get("usage"), self._thoughts)
        cut = self._was_cut(usage, held_back=held_back)
        if cut and self._items and self._items[-1].is_open:
            self._items[-1].status = "incomplete"
        made += self._close_all()
        self.final = {
            **self._base,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": told.get("completed_at") or told.get("created_at"),
            "output": [item.whole() for item in self._items],
            "usage": usage,
        }
        if cut:
            self.final["completed_at"] = None
        made.append({"type": "response.incomplete" if cut else "response.completed", "response": self.final})
        return made

    def _was_cut(self, usage: dict[str, Any], *, held_back: bool) -> bool:
        """Whether the answer ran into a limit, which the engine does not say.

        At the limit exactly one more token than deltas have told of is the one that ends an answer.
        """
        if self._limit is not None and usage["output_tokens"] >= self._limit:
            return held_back or not self._seen or usage["output_tokens"] - self._seen != 1
        return self._context is not None and usage["total_tokens"] >= self._context


def frame(event: Event) -> bytes:
    """An event as bytes of the stream."""
    data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event['type']}\ndata: {data}\n\n".encode()


def _base(body: dict[str, Any], model: str, created: int) -> dict[str, Any]:
    """The object as it is before there is anything to say, with all that was asked for."""
    text, parallel = body.get("text"), body.get("parallel_tool_calls")
    return {
        "id": f"resp_{created}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        **{name: body.get(name) for name in _COPIED},
        "metadata": body.get("metadata") if isinstance(body.get("metadata"), dict) else {},
        "model": model,
        "output": [],
        "parallel_tool_calls": parallel if isinstance(parallel, bool) else True,
        "previous_response_id": None,
        "reasoning": {"effort": fields.effort(body), "summary": None},
        "store": False,
        "temperature": _number(body.get("temperature")),
        "text": text if isinstance(text, dict) and "format" in text else {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") if isinstance(body.get("tools"), list) else [],
        "top_p": _number(body.get("top_p")),
        "truncation": "disabled",
        "usage": None,
    }


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text_of(item: dict[str, Any]) -> str:
    if item.get("type") == "function_call":
        return str(item.get("arguments") or "")
    return "".join(str(part.get("text") or "") for part in item.get("content") or ())


def _usage(told: Any, thoughts: int) -> dict[str, Any]:
    """The figures with the members that OpenAI's clients require.

    :param thoughts: the engine does not count tokens of thoughts; one delta is one token.
    """
    told = told if isinstance(told, dict) else {}
    details = told.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return {
        "input_tokens": told.get("input_tokens") or 0,
        "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
        "output_tokens": told.get("output_tokens") or 0,
        "output_tokens_details": {"reasoning_tokens": thoughts},
        "total_tokens": told.get("total_tokens") or 0,
    }
