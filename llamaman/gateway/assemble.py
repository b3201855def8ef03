"""From a stream to a body: pure functions that rebuild the engine's non-streamed answer from its chunks.

Used so that a client which does not stream still frees its slot the moment it leaves: llama-server
notices a lost client only while it streams. Equality with the engine's own body is proven by a test
against real engines.
"""

from __future__ import annotations

from typing import Any

from llamaman.gateway.body import dump


class _Choice:
    __slots__ = ("finish", "index", "logprobs", "reasoning", "role", "text", "tool_calls")

    def __init__(self, index: int) -> None:
        self.index = index
        self.role = "assistant"
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.finish: str | None = None
        self.logprobs: list[Any] | None = None

    def add_delta(self, delta: dict[str, Any]) -> None:
        if role := delta.get("role"):
            self.role = role
        if content := delta.get("content"):
            self.text.append(content)
        if reasoning := delta.get("reasoning_content"):
            self.reasoning.append(reasoning)
        for part in delta.get("tool_calls") or ():
            self._add_tool_call(part)

    def _add_tool_call(self, part: dict[str, Any]) -> None:
        call = self.tool_calls.setdefault(
            part.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}, "id": ""}
        )
        if part.get("id"):
            call["id"] = part["id"]
        function = part.get("function") or {}
        if function.get("name"):
            call["function"]["name"] = function["name"]
        if function.get("arguments"):
            call["function"]["arguments"] += function["arguments"]

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self.role, "content": "".join(self.text)}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tool_calls:
            message["tool_calls"] = [self.tool_calls[i] for i in sorted(self.tool_calls)]
        return message


class Assembler:
    """Collects the chunks of one streamed chat or text completion.

    :param chat: True for ``chat.completion.chunk`` objects, False for ``text_completion`` ones.
    """

    __slots__ = ("_chat", "_choices", "_envelope", "_timings", "_usage")

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._choices: dict[int, _Choice] = {}
        self._envelope: dict[str, Any] = {}
        self._usage: Any = None
        self._timings: Any = None

    def add(self, chunk: dict[str, Any]) -> None:
        """Take one parsed event."""
        if not self._envelope:
            self._envelope = {
                k: chunk[k] for k in ("created", "model", "system_fingerprint", "id") if k in chunk
            }
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        if chunk.get("timings") is not None:
            self._timings = chunk["timings"]
        for raw in chunk.get("choices") or ():
            choice = self._choices.get(raw.get("index", 0))
            if choice is None:
                choice = self._choices[raw.get("index", 0)] = _Choice(raw.get("index", 0))
            if self._chat:
                choice.add_delta(raw.get("delta") or {})
            elif text := raw.get("text"):
                choice.text.append(text)
            if raw.get("finish_reason") is not None:
                choice.finish = raw["finish_reason"]
            if isinstance(raw.get("logprobs"), dict):
                choice.logprobs = (choice.logprobs or []) + (raw["logprobs"].get("content") or [])

    def body(self) -> bytes:
        """The whole answer, in the shape and key order of llama-server's own."""
        choices = [self._choice(self._choices[i]) for i in sorted(self._choices)]
        answer: dict[str, Any] = {"choices": choices}
        envelope = self._envelope
        for key in ("created", "model", "system_fingerprint"):
            if key in envelope:
                answer[key] = envelope[key]
        answer["object"] = "chat.completion" if self._chat else "text_completion"
        if self._usage is not None:
            answer["usage"] = self._usage
        if "id" in envelope:
            answer["id"] = envelope["id"]
        if self._timings is not None:
            answer["timings"] = self._timings
        return dump(answer)

    def _choice(self, choice: _Choice) -> dict[str, Any]:
        if self._chat:
            out: dict[str, Any] = {
                "finish_reason": choice.finish,
                "index": choice.index,
                "message": choice.message(),
            }
        else:
            out = {"text": "".join(choice.text), "index": choice.index, "logprobs": None}
        if choice.logprobs is not None:
            out["logprobs"] = {"content": choice.logprobs}
        if not self._chat:
            out["finish_reason"] = choice.finish
        return out
