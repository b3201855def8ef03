"""How many answers a request asks for, and how many tasks llama-server makes of it. Pure.

Read by the dialects that llama-server understands. It works on one task in a slot and keeps the others in a queue of
its own, which cannot be left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamaman.errors import InvalidField
from llamaman.limits import CHOICES

#: By the last part of an engine's path, the names of what may be several there; the first that is given counts.
_SEVERAL: Mapping[str, tuple[str, ...]] = {
    "completion": ("prompt",),
    "completions": ("prompt",),
    "embedding": ("input", "content"),
    "embeddings": ("input", "content"),
    "rerank": ("documents", "texts"),
}


def answers_of(body: Mapping[str, Any]) -> int:
    """How many answers to each prompt are asked for; llama-server knows their number by two names.

    :raises InvalidField: it is no number of answers.
    """
    most = 1
    for name in ("n", "n_cmpl"):
        count = body.get(name)
        if count is None:
            continue
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= CHOICES:
            raise InvalidField(name, f"{name} must be an integer from 1 to {CHOICES}")
        most = max(most, count)
    return most


def tasks_of(path: str, body: Mapping[str, Any]) -> int:
    """The tasks of a request that has passed :func:`answers_of`.

    :param path: the engine's.
    """
    if path.endswith("/chat/completions"):
        return answers_of(body)
    last = path.rpartition("/")[2]
    count = 1
    for name in _SEVERAL.get(last, ()):
        if body.get(name) is not None:
            count = _inputs(body[name])
            break
    return count * answers_of(body) if last.startswith("completion") else count


def _inputs(value: object) -> int:
    """How many inputs a field holds; llama-server takes a list with a number in it for the tokens of one."""
    if not isinstance(value, list) or any(isinstance(each, int | float) for each in value):
        return 1
    return max(1, len(value))
