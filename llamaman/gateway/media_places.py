"""Where in a request's body an engine would fetch something by URL. Pure.

Read by :mod:`llamaman.gateway.media`. Every client API's shapes are looked for in every body: llama-server reads
several of them under one path. Names of members count in any case, as they do in the Ollama API. What merely
mentions a URL (a prompt, a tool's arguments, a schema, where a quotation is from) is no medium.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from llamaman.errors import InvalidRequest

Form = Literal["url", "base64", "source"]

#: Members of a body below which its words and media lie.
_ROOTS = frozenset(
    {"messages", "input", "prompt", "content", "system", "instructions", "query", "documents", "images"}
)
#: Members of a message, block or item below which further ones lie.
_NESTED = frozenset({"content", "output"})
#: Members that are a medium: its URL, or an object that has one.
_MEDIA = frozenset(
    {"image_url", "audio_url", "video_url", "file_url", "input_audio", "input_image", "input_video", "file"}
)
#: Members that list media in base64: Ollama's, and llama-server's own.
_LISTS = frozenset({"images", "multimodal_data"})
#: Members of a medium that say what it is, each with what may stand there.
_URLS: dict[str, Form] = {"url": "url", "uri": "url", "data": "base64", "file_url": "url", "file_data": "url"}
#: Values that are looked at in a body that holds a URL somewhere.
MOST_VALUES = 1_000_000

_Where = tuple[Any, str | int] | None
_Part = tuple[str | int, Any, Form | None]


@dataclass(frozen=True, slots=True)
class Place:
    """One URL in a parsed body.

    :ivar holder: the object or list that has it, or the object around it, under ``key``.
    :ivar path: how a client finds it, such as ``messages[0].content[1].image_url.url``.
    :ivar form: what takes its place: a ``data:`` URL, bare base64, or Anthropic's source object.
    """

    holder: Any
    key: str | int
    path: str
    url: str
    form: Form


def may_name(raw: bytes) -> bool:
    """Whether a text in a JSON body may be a URL, however its characters are escaped. Misses none.

    A URL has a colon with a slash behind it, and of the ways to write a slash all but itself begin with a backslash.
    """
    if b":/" in raw:
        return True
    return b"\\" in raw and (b":\\" in raw or b"\\u003a" in raw or b"\\u003A" in raw)


def is_remote(text: str) -> bool:
    """Whether the text of a medium leads elsewhere, instead of being the medium; no base64 has a colon."""
    return not text.startswith("data:") and (":/" in text or ":\\" in text)


def find(body: dict[str, Any]) -> list[Place]:
    """Every place at which something would be fetched.

    :raises InvalidRequest: the body has more parts than anybody needs.
    """
    places: list[Place] = []
    left = MOST_VALUES
    value: Any = body
    where: _Where = None
    parts = _members(body, _ROOTS)
    below: list[tuple[Any, _Where, Form | None]] = []
    while True:
        for key, item, form in parts:
            if isinstance(item, (dict, list)):
                below.append((item, (where, key), form))
                left -= len(item)
            elif form is not None and isinstance(item, str) and is_remote(item):
                places.append(Place(value, key, _path((where, key)), item, form))
        if left < 0:
            raise InvalidRequest(f"the body has more than {MOST_VALUES} parts; send less at a time")
        if not below:
            return places
        value, where, inside = below.pop()
        if isinstance(value, list):
            parts = ((index, item, inside) for index, item in enumerate(value))
        elif inside is None:
            parts = _members(value, _NESTED)
        else:
            parts = ((key, value[key], _URLS[key]) for key in _URLS if key in value)


def _members(block: dict[str, Any], nested: frozenset[str]) -> Iterator[_Part]:
    """What is looked at in a message, block or item, or (``nested`` says so) in the body."""
    for key, item in block.items():
        name = key.lower()
        if name in _LISTS:
            yield key, item, "base64"
        elif name in nested:
            yield key, item, None
        elif name in _MEDIA:
            yield key, item, "url"
        elif name == "source" and isinstance(item, dict):
            yield key, item.get("url"), "source"
            yield key, item, None  # a document may have blocks of its own


def _path(where: _Where) -> str:
    keys: list[str | int] = []
    while where is not None:
        where, key = where
        keys.append(key)
    first, *rest = reversed(keys)
    return str(first) + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in rest)
