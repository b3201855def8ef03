"""Requests of the Ollama API, read and checked. Pure.

Each of these is made once, in ``open``, and travels with the intent, so that nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llamaman import Intent, InvalidField, InvalidRequest
from llamaman_api_ollama import durations, media, messages, options
from llamaman_api_ollama.fields import Fields
from llamaman_api_ollama.messages import Message
from llamaman_api_ollama.options import Options

Think = bool | str | None
Kind = Literal["chat", "generate", "embed", "embeddings"]

LEVELS = ("high", "medium", "low", "max")
_MOST_LOGPROBS = 20
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Common:
    """What generate and chat share.

    :ivar format: None, or the JSON schema that an answer must fit; empty for "any JSON object".
    """

    stream: bool
    options: Options
    keep_alive: float | None
    think: Think
    format: Mapping[str, Any] | None
    logprobs: bool
    top_logprobs: int
    truncate: bool
    debug: bool


@dataclass(frozen=True, slots=True)
class Chat:
    """``POST /api/chat``."""

    common: Common
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    kind: Literal["chat"] = "chat"


@dataclass(frozen=True, slots=True)
class Generate:
    """``POST /api/generate``.

    :ivar context: tokens of what went before.
    """

    common: Common
    prompt: str
    suffix: str
    system: str
    template: str
    context: tuple[int, ...]
    raw: bool
    images: tuple[str, ...]
    kind: Literal["generate"] = "generate"


@dataclass(frozen=True, slots=True)
class Embed:
    """``POST /api/embed`` and its predecessor, ``/api/embeddings``.

    :ivar size: numbers that a vector shall have at most, None for all.
    """

    kind: Literal["embed", "embeddings"]
    texts: tuple[str, ...]
    truncate: bool
    size: int | None
    options: Options
    keep_alive: float | None


@dataclass(frozen=True, slots=True)
class Asking(Intent):
    """An intent with what was asked for.

    :ivar name: the model's name as the client wrote it, "" where it did not; answers repeat it.
    """

    asked: Chat | Generate | Embed | None = None
    name: str = ""


def name_of(fields: Fields) -> str:
    """The model's name: ``model``, or ``name``, as it was called before."""
    return (fields.text("model").strip() and fields.text("model")) or fields.text("name")


def chat(fields: Fields) -> Chat:
    """:raises InvalidRequest: the first thing that is wrong with it."""
    tools = fields.array("tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise fields.wrong("tools", "a list of objects")
    return Chat(_common(fields), messages.read(fields.array("messages")), tuple(tools))


def generate(fields: Fields) -> Generate:
    """:raises InvalidRequest: the first thing that is wrong with it."""
    images = tuple(fields.texts("images"))
    media.check(images)
    context = fields.array("context")
    if not all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31 for token in context
    ):
        raise fields.wrong("context", "a list of tokens")
    asked = Generate(
        common=_common(fields),
        prompt=fields.text("prompt"),
        suffix=fields.text("suffix"),
        system=fields.text("system"),
        template=fields.text("template"),
        context=tuple(context),
        raw=fields.flag("raw", False),
        images=images,
    )
    if asked.raw and (asked.template or asked.system or asked.context):
        raise InvalidRequest("raw mode does not support template, system, or context")
    return asked


def embed(fields: Fields) -> Embed:
    """:raises InvalidRequest: the first thing that is wrong with it."""
    given = fields.get("input")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(given, str | list | None) or not all(isinstance(text, str) for text in texts):
        raise InvalidField("input", "invalid input type")
    size = fields.whole("dimensions")
    return Embed(
        kind="embed",
        texts=tuple(texts),
        truncate=fields.flag("truncate", True),
        size=size if size and size > 0 else None,
        options=options.read(fields.object("options")),
        keep_alive=durations.keep_alive(fields.get("keep_alive")),
    )


def embeddings(fields: Fields) -> Embed:
    """:raises InvalidRequest: the first thing that is wrong with it."""
    prompt = fields.text("prompt")
    return Embed(
        kind="embeddings",
        texts=(prompt,) if prompt else (),
        truncate=True,
        size=None,
        options=options.read(fields.object("options")),
        keep_alive=durations.keep_alive(fields.get("keep_alive")),
    )


def _common(fields: Fields) -> Common:
    top = fields.whole("top_logprobs") or 0
    if not 0 <= top <= _MOST_LOGPROBS:
        raise InvalidField("top_logprobs", "top_logprobs must be between 0 and 20")
    return Common(
        stream=fields.flag("stream", True),
        options=options.read(fields.object("options")),
        keep_alive=durations.keep_alive(fields.get("keep_alive")),
        think=_think(fields.get("think")),
        format=_format(fields.get("format")),
        logprobs=fields.flag("logprobs", False),
        top_logprobs=top,
        truncate=fields.flag("truncate", True),
        debug=fields.flag("_debug_render_only", False),
    )


def _think(value: Any) -> Think:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in LEVELS:
        return value
    shown = f'"{value[:_SHOWN]}"' if isinstance(value, str) else str(value)[:_SHOWN]
    raise InvalidField(
        "think", f'invalid think value: {shown} (must be "high", "medium", "low", "max", true, or false)'
    )


def _format(value: Any) -> Mapping[str, Any] | None:
    if value is None or value == "":
        return None
    if value == "json":
        return {}
    if isinstance(value, dict):
        return value
    shown = f'"{value[:_SHOWN]}"' if isinstance(value, str) else str(value)[:_SHOWN]
    raise InvalidField("format", f'invalid format: {shown}; expected "json" or a valid JSON Schema object')
