"""Counting what passes: first token, tokens, timings. Pure, and cheap enough to stand in every stream.

llama-server reports ``timings`` with the last event of a stream, and repeats progress while it reads the
prompt; comments are its pings. The meter removes the last two from what the client sees.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from llamaman.records import Usage

_PROGRESS = b'"prompt_progress"'
_TIMINGS = b'"timings"'


class Meter:
    """One request's figures. Times are ``time.monotonic()`` seconds."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "events",
        "first",
        "prompt_per_second",
        "prompt_tokens",
        "started",
        "tokens_per_second",
    )

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first: float | None = None
        self.events = 0
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.tokens_per_second: float | None = None
        self.prompt_per_second: float | None = None

    def pass_events(self, block: bytes) -> bytes:
        """Take whole SSE events; return the ones that the client shall see.

        :param block: ends at an event boundary.
        """
        if _PROGRESS in block or block[:1] == b":" or b"\n:" in block:
            block = _without_noise(block)
            if not block:
                return b""
        if self.first is None:
            self.first = time.monotonic()
        self.events += block.count(b"data: ")
        if _TIMINGS in block:
            self._read_last(block)
        return block

    def saw(self, event: dict[str, Any]) -> None:
        """Take one parsed event or body."""
        if self.first is None:
            self.first = time.monotonic()
        self.events += 1
        if "timings" in event or "usage" in event:
            self._figures(event)

    def _read_last(self, block: bytes) -> None:
        start = block.rfind(b"data: ", 0, block.rfind(_TIMINGS))
        end = block.find(b"\n", start)
        try:
            event = orjson.loads(block[start + 6 : end if end > 0 else None])
        except ValueError:
            return
        if isinstance(event, dict):
            self._figures(event)

    def _figures(self, event: dict[str, Any]) -> None:
        timings = event.get("timings")
        if isinstance(timings, dict):
            cached, prompt = timings.get("cache_n"), timings.get("prompt_n")
            if isinstance(cached, int) and isinstance(prompt, int):
                self.cached_tokens = cached
                self.prompt_tokens = cached + prompt
            if isinstance(timings.get("predicted_n"), int):
                self.completion_tokens = timings["predicted_n"]
            if isinstance(prompt, int) and prompt > 1:
                self.prompt_per_second = _number(timings.get("prompt_per_second"))
            speed = timings.get("predicted_per_second")
            # The engine leaves the first token out of the rate, so one token has none.
            if isinstance(speed, int | float) and (self.completion_tokens or 0) > 1:
                self.tokens_per_second = float(speed)
        usage = event.get("usage")
        if isinstance(usage, dict):
            if isinstance(usage.get("prompt_tokens"), int):
                self.prompt_tokens = usage["prompt_tokens"]
            if isinstance(usage.get("completion_tokens"), int):
                self.completion_tokens = usage["completion_tokens"]

    def usage(self) -> Usage:
        """The figures so far."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            ttft_s=self.first - self.started if self.first is not None else None,
            tokens_per_second=self.tokens_per_second,
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _without_noise(block: bytes) -> bytes:
    """The events of a block that are neither progress nor comments."""
    kept = [
        event
        for event in block.split(b"\n\n")
        if event and not event.startswith(b":") and not _is_progress(event)
    ]
    return b"\n\n".join(kept) + b"\n\n" if kept else b""


def _is_progress(event: bytes) -> bool:
    """A progress event by its own key, not by text of a prompt or an answer that looks like one."""
    if _PROGRESS not in event:
        return False
    try:
        data = orjson.loads(event.removeprefix(b"data: "))
    except ValueError:
        return False
    return isinstance(data, dict) and "prompt_progress" in data
