"""Models on disk, as dialects and routes see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What a model's files say of it. They are hostile input: texts are what they claim, whatever they hold.

    :ivar parameters: elements of all tensors of all shards.
    :ivar capabilities: of completion, embedding, rerank, vision, audio, tools, thinking, insert; what the files
        promise, before an engine has seen them.
    :ivar digest: 64 hexadecimal digits that differ between models, stay over restarts and change with the files.
    :ivar template: the chat template (Jinja).
    :ivar metadata: the header's keys and values; arrays are None.
    :ivar projector: the same of the projector (mmproj) that belongs to it.
    """

    architecture: str | None = None
    name: str | None = None
    parameters: int | None = None
    embedding_length: int | None = None
    capabilities: frozenset[str] = frozenset()
    digest: str = ""
    template: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    projector: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model on disk as dialects and routes see it.

    :ivar name: unique public name: the lower-cased file stem without shard suffix.
    :ivar path: the file given to the engine (first shard of a set).
    :ivar size: bytes of all its files.
    :ivar aliases: further names, from its preset.
    """

    name: str
    path: Path
    size: int
    quant: str | None
    modified: float
    kind: Literal["gguf", "hf"] = "gguf"
    runnable: bool = True
    embedding: bool = False
    context_length: int | None = None
    files: tuple[Path, ...] = ()
    details: ModelDetails | None = None
    aliases: tuple[str, ...] = ()
