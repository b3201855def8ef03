"""A chat completion's chunks as the events of an Anthropic message. Pure.

Read by the dialect, for streamed and for whole answers. Guarantees the order of events: one message_start; blocks
one after another, with indexes that rise by one, each started, filled and stopped before the next; message_delta
with the figures; message_stop.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamaman import LlamaManError

Event = dict[str, Any]

_JSON = json.JSONEncoder(ensure_ascii=False)  # json.dumps would make one for every event
_STOPPED = {"length": "max_tokens", "tool_calls": "tool_use"}


class Translator:
    """The state of one answer.

    :param message_id: ``msg_...``.
    :param model: as the client named it.
    :param estimate: tokens of the prompt, about; the true number is known at the end.
    :param silent: thoughts are told as empty blocks, as the client asked.
    """

    __slots__ = (
        "_arguments",
        "_cached",
        "_call",
        "_estimate",
        "_finish",
        "_id",
        "_index",
        "_kind",
        "_model",
        "_output",
        "_prompt",
        "_silent",
        "_stop",
    )

    def __init__(self, message_id: str, model: str, estimate: int, *, silent: bool = False) -> None:
        self._id = message_id
        self._model = model
        self._estimate = estimate
        self._silent = silent
        self._index = -1
        self._kind: str | None = None  # of the block that is open
        self._call = -1  # the engine's index of the last tool call begun
        self._arguments = ""
        self._finish: str | None = None
        self._stop: str | None = None
        self._prompt: int | None = None
        self._cached = 0
        self._output = 0

    # --- the three steps -----------------------------------------------------------------------------

    def begin(self) -> list[Event]:
        """The events before the first block."""
        usage = self._usage(self._estimate, 0, 0)
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def add(self, chunk: Mapping[str, Any]) -> list[Event]:
        """The events of one chunk.

        :raises LlamaManError: a tool call that no client could make sense of.
        """
        events: list[Event] = []
        self._figures(chunk)
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                self._text(events, "thinking", thought)
            if said := delta.get("content"):
                self._text(events, "text", said)
            for call in delta.get("tool_calls") or ():
                self._fragment(events, call)
            self._finish = choice.get("finish_reason") or self._finish
        return events

    def end(self) -> list[Event]:
        """The events after the last chunk.

        :raises LlamaManError: the last tool call is no JSON although the answer was not cut off.
        """
        events: list[Event] = []
        self._close(events)
        reason = _STOPPED.get(self._finish or "", "end_turn")
        if reason == "end_turn" and self._stop is not None:
            reason = "stop_sequence"
        elif reason == "end_turn" and self._call >= 0:
            reason = "tool_use"
        prompt = self._estimate if self._prompt is None else self._prompt
        usage = self._usage(prompt - self._cached, self._cached, self._output)
        stop = self._stop if reason == "stop_sequence" else None
        events.append(
            {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": stop}, "usage": usage}
        )
        events.append({"type": "message_stop"})
        return events

    # --- blocks --------------------------------------------------------------------------------------

    def _text(self, events: list[Event], kind: str, said: str) -> None:
        if self._kind != kind:
            empty = {"thinking": "", "signature": ""} if kind == "thinking" else {"text": ""}
            self._open(events, kind, {"type": kind, **empty})
        if not (self._silent and kind == "thinking"):
            self._delta(events, {"type": f"{kind}_delta", kind: said})

    def _fragment(self, events: list[Event], call: Mapping[str, Any]) -> None:
        number = call.get("index", 0)
        function = call.get("function") or {}
        if number > self._call:
            identity = call.get("id") or f"{self._id.removeprefix('msg_')}_{number}"
            name = function.get("name") or ""
            block: dict[str, Any] = {"type": "tool_use", "id": f"toolu_{identity}", "name": name, "input": {}}
            self._open(events, "tool_use", block)
            self._call = number
            self._arguments = ""
        elif number < self._call or self._kind != "tool_use":
            raise LlamaManError("the engine went on with a tool call that it had ended")
        if piece := function.get("arguments"):
            self._arguments += piece
            self._delta(events, {"type": "input_json_delta", "partial_json": piece})

    def _open(self, events: list[Event], kind: str, block: dict[str, Any]) -> None:
        self._close(events)
        self._kind = kind
        self._index += 1
        events.append({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, events: list[Event], delta: dict[str, Any]) -> None:
        events.append({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self, events: list[Event]) -> None:
        if self._kind is None:
            return
        if self._kind == "thinking":
            self._delta(events, {"type": "signature_delta", "signature": ""})
        elif self._kind == "tool_use" and self._finish != "length" and arguments(self._arguments) is None:
            raise LlamaManError(
                "the model called a tool with arguments that are not a JSON object; ask again"
            )
        events.append({"type": "content_block_stop", "index": self._index})
        self._kind = None

    # --- figures -------------------------------------------------------------------------------------

    def _figures(self, chunk: Mapping[str, Any]) -> None:
        verbose = chunk.get("__verbose")
        if verbose and verbose.get("stop_type") == "word":
            self._stop = verbose.get("stopping_word") or None
        if usage := chunk.get("usage"):
            self._prompt = usage.get("prompt_tokens")
            self._output = usage.get("completion_tokens") or 0
            self._cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    @staticmethod
    def _usage(fresh: int, cached: int, output: int) -> dict[str, int]:
        return {
            "input_tokens": fresh,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": output,
        }


def arguments(text: str) -> dict[str, Any] | None:
    """A tool call's arguments; None when they are cut off or no object."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def encoded(events: list[Event]) -> bytes:
    """Events as bytes of a stream."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _JSON.encode(event).encode())
        for event in events
    )
