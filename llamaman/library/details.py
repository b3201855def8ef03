"""What a model's files promise of it, from headers alone. Pure; read by `scan.py` and `library.py`.

Which projector (mmproj) belongs to a model is told by names: all that llama.cpp needs is that they fit, and no key
says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamaman.library.fit import ENCODERS
from llamaman.library.gguf import Header
from llamaman.library.names import file_stem, without_quant
from llamaman.records import ModelDetails

#: The value of ``pooling_type`` that ranks documents.
_RANKS = 4
#: Its thoughts have tags of their own, which its template holds and nobody would look for.
_ALWAYS_THINKS = frozenset({"gpt-oss"})
_FILL_IN_KEYS = ("fim_pre_token_id", "prefix_token_id"), ("fim_suf_token_id", "suffix_token_id")
_PROJECTOR = re.compile(r"[-_. ]*mmproj[-_. ]*(?:model(?![a-z0-9]))?[-_. ]*", re.IGNORECASE)

Stamp = tuple[str, int, int]  #: a file's name, size and modification time in nanoseconds


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the details of a model are made from.

    :ivar parameters: elements of the tensors of all its files.
    :ivar files: what tells that one of them was changed.
    """

    header: Header
    parameters: int | None
    files: tuple[Stamp, ...]


def describe(
    name: str,
    evidence: Evidence,
    projector: Header | None = None,
    projector_file: Stamp | None = None,
    *,
    embeds: bool = False,
) -> ModelDetails:
    """The details of a model.

    :param name: its unique name.
    :param projector: of the projector that belongs to it.
    :param embeds: its preset runs it as an embedding model.
    """
    header = evidence.header
    can = capabilities(header, projector, embeds=embeds)
    told = (name, evidence.files, header.digest, projector_file, projector and projector.digest, sorted(can))
    return ModelDetails(
        architecture=header.architecture,
        name=header.name,
        parameters=evidence.parameters,
        embedding_length=header.embedding_length,
        capabilities=can,
        digest=hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).hexdigest(),
        template=header.template,
        metadata=header.metadata,
        projector=projector.metadata if projector else {},
    )


def capabilities(header: Header, projector: Header | None = None, *, embeds: bool = False) -> frozenset[str]:
    """What a model can do by its files; see :class:`ModelDetails`."""
    prefix = f"{header.architecture}."
    can = set()
    if projector is not None:
        can |= _senses(projector.metadata)
    if header.metadata.get(f"{prefix}vision.block_count"):
        can.add("vision")
    if header.metadata.get(f"{prefix}audio.block_count"):
        can.add("audio")
    if embeds or header.pooling_type is not None or header.architecture in ENCODERS:
        can.add("embedding")
        if header.pooling_type == _RANKS:
            can.add("rerank")
        return frozenset(can)
    can.add("completion")
    template = header.template or ""
    if "tools" in template or "tool_call" in template:
        can.add("tools")
    if _thinks(template) or header.architecture in _ALWAYS_THINKS:
        can.add("thinking")
    if header.fills_in or all(_has_token(header.metadata, keys) for keys in _FILL_IN_KEYS):
        can.add("insert")
    return frozenset(can)


def _senses(projector: Mapping[str, object]) -> set[str]:
    """What a projector takes. One that says nothing of it is from a time when all of them took pictures."""
    hears = projector.get("clip.has_audio_encoder") is True
    sees = projector.get("clip.has_vision_encoder")
    return ({"audio"} if hears else set()) | (
        {"vision"} if sees is True or (sees is None and not hears) else set()
    )


def _thinks(template: str) -> bool:
    """Whether a template knows thoughts: it writes their tags, or takes them out of earlier answers by itself."""
    if "</think>" not in template:
        return False
    splits = re.search(r"split\(\s*['\"]</think>", template) is not None
    return "<think>" in template or (splits and "reasoning_content" not in template)


def _has_token(metadata: Mapping[str, object], keys: Iterable[str]) -> bool:
    return any(type(metadata.get(f"tokenizer.ggml.{key}")) is int for key in keys)


def projector_for(model: Path, models: Iterable[Path], projectors: Iterable[Path]) -> Path | None:
    """The projector that belongs to a model, or None. All the files lie in one folder.

    One that bears a name is for the models whose names begin with it; of several the longest name counts. One
    without a name is for the folder's model, if all models in the folder are the same but for the quantisation.

    :param models: all models in the folder.
    """
    mine = _base(model)
    alone = {_base(other) for other in models} == {mine}
    fitting: list[tuple[int, str, Path]] = []
    for path in projectors:
        base = _of_projector(path)
        if (mine == base or mine.startswith(f"{base}-")) if base else alone:
            fitting.append((-len(base), path.name, path))
    return min(fitting)[2] if fitting else None


def _base(path: Path) -> str:
    """A file's name without what differs between the files of one model, in one spelling."""
    return re.sub(r"[-_. ]+", "-", without_quant(file_stem(path)).lower()).strip("-")


def _of_projector(path: Path) -> str:
    return re.sub(r"[-_. ]+", "-", _PROJECTOR.sub("-", without_quant(file_stem(path))).lower()).strip("-")
