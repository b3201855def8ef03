"""llama-server's events as Ollama's lines: what a chunk says, tool calls in one piece, figures. Pure.

Every line is ASCII: clients break lines at characters such as U+2028 that JSON allows inside strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import orjson

from llamaman_api_ollama.errors import Told

NDJSON: Sequence[tuple[bytes, bytes]] = (
    (b"content-type", b"application/x-ndjson"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)

Shape = Literal["chat", "generate"]

_COMPACT = json.JSONEncoder(separators=(",", ":"))


@dataclass(slots=True)
class Delta:
    """What one event adds.

    :ivar calls: pieces of tool calls, as OpenAI streams them.
    :ivar finish: why it ended, in the engine's words, on the event that ends it.
    """

    content: str = ""
    thinking: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    timings: Mapping[str, Any] | None = None

    @property
    def is_news(self) -> bool:
        """Whether a client is sent something for it. A token that is part of a character has no text yet."""
        return bool(self.content or self.thinking or self.logprobs)


def read_chat(event: Mapping[str, Any]) -> Delta:
    """An event of ``/v1/chat/completions``, or its whole answer."""
    timings = event.get("timings")
    delta = Delta(timings=timings if isinstance(timings, dict) else None)
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return delta  # the usage event has none
    choice = choices[0]
    said = choice.get("delta") or choice.get("message")
    if isinstance(said, dict):
        delta.content = said.get("content") or ""
        delta.thinking = said.get("reasoning_content") or ""
        calls = said.get("tool_calls")
        delta.calls = calls if isinstance(calls, list) else []
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
        delta.logprobs = logprobs["content"]
    delta.finish = choice.get("finish_reason")
    return delta


def read_completion(event: Mapping[str, Any]) -> Delta:
    """An event of ``/completion`` or ``/infill``."""
    timings = event.get("timings")
    content, logprobs = event.get("content"), event.get("completion_probabilities")
    finish = None
    if event.get("stop") is True:
        finish = "length" if event.get("stop_type") == "limit" else "stop"
    return Delta(
        content=content if isinstance(content, str) else "",
        logprobs=logprobs if isinstance(logprobs, list) else [],
        finish=finish,
        timings=timings if isinstance(timings, dict) else None,
    )


# --- lines ------------------------------------------------------------------------------------------------


def moment(at: float) -> str:
    """RFC 3339 in UTC, of epoch seconds."""
    return f"{_second(int(at))}.{int(at % 1 * 1e6):06d}Z"


@lru_cache(maxsize=8)
def _second(at: int) -> str:
    """All but the fraction: formatting a time was a sixth of what a line of a stream cost."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def answer(
    shape: Shape,
    model: str,
    at: float,
    *,
    content: str = "",
    thinking: str = "",
    calls: Sequence[Mapping[str, Any]] = (),
    done: bool = False,
) -> dict[str, Any]:
    """One object of an answer, without figures. ``at``: epoch seconds."""
    said: dict[str, Any] = {"content" if shape == "chat" else "response": content}
    if thinking:
        said["thinking"] = thinking
    if calls:
        said["tool_calls"] = list(calls)
    if shape == "chat":
        said = {"message": {"role": "assistant", **said}}
    return {"model": model, "created_at": moment(at), **said, "done": done}


def line(data: Mapping[str, Any]) -> bytes:
    """One line of a stream."""
    return text(data) + b"\n"


def text(data: Mapping[str, Any]) -> bytes:
    """Compact JSON in ASCII."""
    return _COMPACT.encode(data).encode()


def logprobs(given: Sequence[Any], top: int) -> list[dict[str, Any]]:
    """Tokens with their probabilities; alternatives only where they were asked for, the likeliest first."""
    made = []
    for entry in given:
        if not isinstance(entry, dict):
            continue
        token = _token(entry)
        if top > 0:
            others = [_token(each) for each in entry.get("top_logprobs") or () if isinstance(each, dict)]
            others.sort(key=lambda each: each["logprob"], reverse=True)
            token["top_logprobs"] = others[:top]
        made.append(token)
    return made


def _token(entry: Mapping[str, Any]) -> dict[str, Any]:
    text = entry.get("token")
    text = text if isinstance(text, str) else ""
    chance = entry.get("logprob")
    return {
        "token": text,
        "logprob": chance if isinstance(chance, int | float) else 0.0,
        "bytes": list(text.encode("utf-8", "surrogatepass")),
    }


# --- tool calls ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)


class ToolCalls:
    """Collects the pieces of tool calls."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def add(self, pieces: Sequence[Any]) -> None:
        """Take the pieces of one event."""
        for position, piece in enumerate(pieces):
            if not isinstance(piece, dict):
                continue
            index = piece.get("index")
            call = self._calls.setdefault(index if isinstance(index, int) else position, _Call())
            call.id = piece.get("id") or call.id
            function = piece.get("function")
            if isinstance(function, dict):
                call.name = function.get("name") or call.name
                call.pieces.append(function.get("arguments") or "")

    def whole(self, *, cut_off: bool) -> list[dict[str, Any]]:
        """Every call as Ollama tells it, with arguments as an object.

        :param cut_off: the answer ended at its limit, so that a call may be a fragment, which is left out.
        :raises Told: a call is none although the answer came to its end.
        """
        made: list[dict[str, Any]] = []
        for index in sorted(self._calls):
            call = self._calls[index]
            raw = "".join(call.pieces)
            try:
                arguments = orjson.loads(raw) if raw.strip() else {}
            except orjson.JSONDecodeError:
                arguments = None
            if not isinstance(arguments, dict) or (cut_off and not raw.strip()):
                if cut_off:
                    continue
                raise Told(500, f"error parsing tool call: raw='{raw}'")
            number = len(made)
            function = {"index": number, "name": call.name, "arguments": arguments}
            made.append({"id": call.id or f"call_{number}", "function": function})
        return made


# --- figures -------------------------------------------------------------------------------------------------


def figures(
    timings: Mapping[str, Any] | None, *, received: float, granted: float, ended: float
) -> dict[str, int]:
    """The final line's figures: counts, and durations in nanoseconds; what is 0 or unknown is left out.

    :param timings: llama-server's, in milliseconds. The other three are epoch seconds.
    """
    load = max(1, _ns(granted - received))
    found = {"total_duration": max(load, _ns(ended - received)), "load_duration": load}
    timings = timings or {}
    found["prompt_eval_count"] = _whole(timings.get("cache_n")) + _whole(timings.get("prompt_n"))
    found["prompt_eval_duration"] = _ns(_number(timings.get("prompt_ms")) / 1e3)
    found["eval_count"] = _whole(timings.get("predicted_n"))
    found["eval_duration"] = _ns(_number(timings.get("predicted_ms")) / 1e3)
    return {name: value for name, value in found.items() if value > 0}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0
