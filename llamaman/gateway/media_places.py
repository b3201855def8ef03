"""Where in a request's body an engine would fetch something by URL. Pure.

Read by :mod:`llamaman.gateway.media`. Every client API's shapes are looked for in every body: llama-server reads
several of them under one path. Names of members count in any case, as they do in the Ollama API. What merely
mentions a URL (a prompt, a tool's arguments, a schema, where a quotation is from) is no medium.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llamaman.errors import InvalidRequest

Form = Literal["url", "base64", "source"]

#: What a member is besides a medium of a form: nothing, or an object that has some.
_PLAIN, _WORDS, _SOURCE, _BODY = "", "words", "source object", "body"
#: Members of a message, block or item: those below which further ones lie, those that are a medium (its URL, or an
#: object that has one), and those that list media in base64 (Ollama's, and llama-server's own).
_IN_BLOCK: dict[str, str] = {
    **dict.fromkeys(("role", "type", "text", "name", "id", "tool_calls", "tool_call_id"), _PLAIN),
    **dict.fromkeys(("content", "output"), _WORDS),
    **dict.fromkeys(
        (
            "image_url",
            "audio_url",
            "video_url",
            "file_url",
            "input_audio",
            "input_image",
            "input_video",
            "file",
        ),
        "url",
    ),
    **dict.fromkeys(("images", "multimodal_data"), "base64"),
    "source": _SOURCE,
}
#: The members that nearly all messages and blocks have; of these, media can be below the content alone.
_ORDINARY = frozenset({"role", "content", "type", "text", "name"})
#: The same of a body.
_IN_BODY: dict[str, str] = {
    **_IN_BLOCK,
    **dict.fromkeys(
        ("messages", "input", "prompt", "content", "system", "instructions", "query", "documents"), _WORDS
    ),
    "output": _PLAIN,
}
#: Members of a medium that say what it is, each with what may stand there.
_URLS: dict[str, Form] = {"url": "url", "uri": "url", "data": "base64", "file_url": "url", "file_data": "url"}
_FORMS: dict[str, Form] = {"url": "url", "base64": "base64", "source": "source"}
#: Values that are looked at in a body.
MOST_VALUES = 1_000_000

_Where = tuple[Any, str | int] | None
_Part = tuple[str | int, Any, str]


@dataclass(frozen=True, slots=True)
class Place:
    """One medium in a parsed body.

    :ivar holder: the object or list that has it, or the object around it, under ``key``.
    :ivar path: how a client finds it, such as ``messages[0].content[1].image_url.url``.
    :ivar text: its URL, ``data:`` URL or base64.
    :ivar form: what takes its place: a ``data:`` URL, bare base64, or Anthropic's source object.
    """

    holder: Any
    key: str | int
    path: str
    text: str
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


def is_inline(text: str) -> bool:
    """Whether the text of a medium is the medium itself."""
    return bool(text) and not is_remote(text)


def find(body: dict[str, Any]) -> list[Place]:
    """Every place at which something would be fetched.

    :raises InvalidRequest: the body has more parts than anybody needs.
    """
    return _walk(body, is_remote)


def find_inline(body: dict[str, Any]) -> list[Place]:
    """Every place that holds a medium itself.

    :raises InvalidRequest: the body has more parts than anybody needs.
    """
    return _walk(body, is_inline)


def _walk(body: dict[str, Any], is_wanted: Callable[[str], bool]) -> list[Place]:
    """Every medium whose text is wanted. Costs next to nothing for messages that are all words."""
    places: list[Place] = []
    left = MOST_VALUES
    below: list[tuple[Any, _Where, str]] = [(body, None, _BODY)]
    while below:
        value, where, inside = below.pop()
        left -= len(value)
        if left < 0:
            raise InvalidRequest(f"the body has more than {MOST_VALUES} parts; send less at a time")
        for key, item, form in _parts(value, inside):
            kind = type(item)
            if kind is dict or kind is list:
                below.append((item, (where, key), form))
            elif form in _FORMS and kind is str and is_wanted(item):
                places.append(Place(value, key, _path((where, key)), item, _FORMS[form]))
    return places


def _parts(value: Any, inside: str) -> list[_Part]:
    """What of an object or a list is looked at, each part with what it is."""
    if type(value) is list:
        if inside == _WORDS:
            return [(index, item, inside) for index, item in enumerate(value) if not _is_plain(item)]
        return [(index, item, inside) for index, item in enumerate(value)]
    if inside == _SOURCE:
        return [] if value.get("type") == "text" else [("data", value.get("data"), "base64")]
    if inside not in (_BODY, _WORDS):
        return [(key, value[key], _URLS[key]) for key in _URLS if key in value]
    names = _IN_BODY if inside == _BODY else _IN_BLOCK
    parts: list[_Part] = []
    for key, item in value.items():
        form = names.get(key)
        if form is None:  # a dialect may read names in any case
            form = names.get(key.lower(), _PLAIN)
        if form == _PLAIN:
            continue
        if form == _SOURCE:
            if type(item) is dict:
                # A document may have blocks of its own.
                parts += (key, item.get("url"), "source"), (key, item, _SOURCE), (key, item, _WORDS)
        elif type(item) is not str or form in _FORMS:
            parts.append((key, item, form))
    return parts


def _is_plain(item: Any) -> bool:
    """Whether a message, block or item is words alone, as nearly all are."""
    if type(item) is dict:
        return item.keys() <= _ORDINARY and type(item.get("content", "")) is str
    return type(item) is not list


def _path(where: _Where) -> str:
    keys: list[str | int] = []
    while where is not None:
        where, key = where
        keys.append(key)
    first, *rest = reversed(keys)
    return str(first) + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in rest)
