"""Content blocks of a request as parts of an OpenAI message: texts, images and documents. Pure.

Read by :mod:`llamaman_api_anthropic.messages`. Blocks of kinds that are unknown here say nothing to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamaman_api_anthropic.fields import array, invalid, join, obj, required, text

Part = dict[str, Any]

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def blocks_of(content: Any, place: str) -> list[tuple[dict[str, Any], str]]:
    """A content's blocks, each with its place; a string is one text block.

    :raises InvalidField: it is neither a string nor an array of objects with a type.
    """
    if isinstance(content, str):
        return [({"type": "text", "text": content}, place)] if content else []
    if not isinstance(content, list):
        raise invalid(place, "Input should be a valid string or array of content blocks")
    found = []
    for number, block in enumerate(content):
        here = join(place, number)
        text(required(obj(block, here), "type", here), join(here, "type"))
        found.append((block, here))
    return found


def parts_of(block: dict[str, Any], place: str) -> list[Part]:
    """What a user's block says: text and image parts.

    :raises InvalidField: it is malformed, or of a kind that no model here can be shown.
    """
    match block["type"]:
        case "text":
            said = text(required(block, "text", place), join(place, "text"))
            return [text_part(said)] if said else []
        case "image":
            return [
                _image(obj(required(block, "source", place), join(place, "source")), join(place, "source"))
            ]
        case "document":
            return _document(block, place)
        case "search_result":
            return _titled(block, _inner(block.get("content"), join(place, "content")))
    return []


def text_part(said: str) -> Part:
    """A part of text."""
    return {"type": "text", "text": said}


def joined(parts: Sequence[Part], separator: str = "\n") -> str:
    """The texts of parts."""
    return separator.join(part["text"] for part in parts if part["type"] == "text")


def _image(source: dict[str, Any], place: str) -> Part:
    kind = required(source, "type", place)
    if kind == "url" and str(source.get("url")).startswith("data:"):
        return {"type": "image_url", "image_url": {"url": source["url"]}}
    if kind != "base64":
        raise invalid(place, "images must be sent as base64 data; URLs and file ids are not fetched")
    media = required(source, "media_type", place)
    if media not in _IMAGES:
        raise invalid(join(place, "media_type"), f"Input should be one of {', '.join(_IMAGES)}")
    data = text(required(source, "data", place), join(place, "data"))
    if not data:
        raise invalid(join(place, "data"), "image cannot be empty")
    return {"type": "image_url", "image_url": {"url": f"data:{media};base64,{data}"}}


def _document(block: dict[str, Any], place: str) -> list[Part]:
    here = join(place, "source")
    source = obj(required(block, "source", place), here)
    kind = required(source, "type", here)
    if kind == "text":
        said = text(required(source, "data", here), join(here, "data"))
        return _titled(block, [text_part(said)] if said else [])
    if kind == "content":
        return _titled(block, _inner(source.get("content"), join(here, "content")))
    raise invalid(here, "only documents of plain text can be read; send the document's text or images of it")


def _inner(content: Any, place: str) -> list[Part]:
    if content is None:
        return []
    if not isinstance(content, str):
        array(content, place)
    return [part for block, here in blocks_of(content, place) for part in parts_of_leaf(block, here)]


def parts_of_leaf(block: dict[str, Any], place: str) -> list[Part]:
    """As :func:`parts_of`, for blocks inside blocks, which are texts and images alone."""
    return parts_of(block, place) if block["type"] in ("text", "image") else []


def _titled(block: dict[str, Any], parts: list[Part]) -> list[Part]:
    title = block.get("title")
    return [text_part(title), *parts] if isinstance(title, str) and title and parts else parts
