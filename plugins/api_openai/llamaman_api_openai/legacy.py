"""Text completions as OpenAI's older clients know them: logprobs in lists side by side. Pure.

Read by the dialect. llama-server gives the probabilities of a completion in the form of chat completions; that stays
beside the lists.
"""

from __future__ import annotations

import json
from typing import Any

Lists = dict[str, list[Any]]


def most(body: dict[str, Any]) -> int | None:
    """How many tokens are asked for at each place beside the one that was taken; None where none are asked for."""
    count = body.get("logprobs")
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


class Logprobs:
    """Adds the lists to the choices of one request.

    :param body: the client's request.
    """

    __slots__ = ("_ends", "_first", "_most")

    def __init__(self, body: dict[str, Any]) -> None:
        prompt = body.get("prompt")
        self._first = len(prompt) if isinstance(prompt, str) else 0
        self._most = most(body) or 0
        self._ends: dict[int, int] = {}  # by a choice's index, where its text ends

    def add(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A whole answer, or a chunk of one, with the lists."""
        for choice in answer.get("choices") or ():
            told = choice.get("logprobs")
            if isinstance(told, dict) and isinstance(told.get("content"), list):
                choice["logprobs"] = {**self._lists(choice.get("index", 0), told["content"]), **told}
        return answer

    def _lists(self, index: int, content: list[dict[str, Any]]) -> Lists:
        lists: Lists = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        end = self._ends.get(index, self._first)
        for token in content:
            lists["tokens"].append(token["token"])
            lists["token_logprobs"].append(token["logprob"])
            others = token.get("top_logprobs") or ()
            lists["top_logprobs"].append({each["token"]: each["logprob"] for each in others[: self._most]})
            lists["text_offset"].append(end)
            end += len(token["token"])
        self._ends[index] = end
        return lists


def frame(chunk: dict[str, Any]) -> bytes:
    """A chunk as an event of the stream."""
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode(errors="backslashreplace") + b"\n\n"
