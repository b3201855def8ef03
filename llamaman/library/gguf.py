"""What a GGUF header says, as records. Read by `scan.py`, `fit.py` and whoever needs facts about a model file.

The facts come from another process (see `header_reader.py`) which hostile files may have got the better of, so
:func:`header_of` believes nothing: what is not of the expected shape is no header.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from llamaman.library.gguf_worker import (
    GENERAL,
    MAX_HEADER_BYTES,
    MAX_KEYS,
    MAX_LAYERS,
    MAX_METADATA_BYTES,
    MAX_PARAMETERS,
    MAX_TEMPLATE_BYTES,
    MAX_TENSORS,
    NUMBERS,
)

#: general.file_type -> quantisation; the bit 1024 only says that the value was guessed.
FILE_TYPES: Mapping[int, str] = {
    int(number): name
    for number, name in re.findall(
        r"(\d+)=(\S+)",
        "0=F32 1=F16 2=Q4_0 3=Q4_1 7=Q8_0 8=Q5_0 9=Q5_1 10=Q2_K 11=Q3_K_S 12=Q3_K_M 13=Q3_K_L 14=Q4_K_S 15=Q4_K_M "
        "16=Q5_K_S 17=Q5_K_M 18=Q6_K 19=IQ2_XXS 20=IQ2_XS 21=Q2_K_S 22=IQ3_XS 23=IQ3_XXS 24=IQ1_S 25=IQ4_NL "
        "26=IQ3_S 27=IQ3_M 28=IQ2_S 29=IQ2_M 30=IQ4_XS 31=IQ1_M 32=BF16 36=TQ1_0 37=TQ2_0 38=MXFP4_MOE 39=NVFP4 "
        "40=Q1_0 41=Q2_0",
    )
}

_MOST = 1 << 48
_REASON_CHARS = 200

_LEAST_INTEGER, _MOST_INTEGER = -(1 << 63), (1 << 64) - 1

Number = int | tuple[int, ...]
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says; None where it says nothing (or says it per layer).

    :ivar type: ``model``, ``adapter``, ``mmproj``, ``imatrix`` ...
    :ivar nextn_layers: layers for multi-token prediction; 0 = none.
    :ivar pooling_type: 0 none, 1 mean, 2 cls, 3 last, 4 rank; None for models that generate text.
    :ivar shards: how many files the model is split into; 1 = not split.
    :ivar numbers: what the header says of the architecture, by key without its prefix; a tuple has one number
        per layer.
    :ivar header_bytes: where the keys end in the file.
    :ivar nextn_bytes: of this file's tensors that only multi-token prediction uses.
    :ivar parameters: elements of this file's tensors, None where it claims more than anybody could have.
    :ivar metadata: the file's keys and values, but for the template, as far as they fit; lists are None. Texts are
        what the file claims, whatever they hold, but can be encoded.
    :ivar template: the chat template, None where there is none or it is too long.
    :ivar fills_in: whether the vocabulary has a token that begins a text to be filled in.
    :ivar digest: hexadecimal digits that stand for all the above.
    :ivar text_size: bytes of the metadata's texts and the template.
    :ivar cut: whether metadata and template were taken away.
    """

    architecture: str | None
    name: str | None
    size_label: str | None
    type: str | None
    file_type: int | None
    context_length: int | None
    block_count: int | None
    embedding_length: int | None
    feed_forward_length: int | None
    head_count: int | None
    head_count_kv: int | None
    vocab_size: int | None
    nextn_layers: int
    pooling_type: int | None
    has_chat_template: bool
    shards: int
    tensors: int
    header_bytes: int = 0
    nextn_bytes: int = 0
    numbers: Mapping[str, Number] = field(default_factory=lambda: MappingProxyType({}))
    parameters: int | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    template: str | None = None
    fills_in: bool = False
    digest: str = ""
    text_size: int = 0
    cut: bool = False

    def without_texts(self) -> Header:
        """The same without metadata and template."""
        return replace(self, metadata=MappingProxyType({}), template=None, text_size=0, cut=True)

    @property
    def quant(self) -> str | None:
        """The quantisation by file type, or None."""
        return None if self.file_type is None else FILE_TYPES.get(self.file_type & ~1024)


@dataclass(frozen=True, slots=True)
class BrokenHeader:
    """Why a file is no usable GGUF file, in words that hold nothing from the file.

    :ivar passing: it may be another time, so the file deserves to be read again.
    """

    reason: str
    passing: bool = False


class NotAHeader(ValueError):
    """An answer that the reader would never give."""


def header_of(answer: object, digest: str = "") -> Header | BrokenHeader:
    """The record of what :func:`llamaman.library.gguf_worker.read_facts` says of a file.

    :param answer: decoded JSON.
    :param digest: of its text.
    :raises NotAHeader: it is something else.
    """
    facts = _mapping(answer)
    broken = facts.get("broken")
    if isinstance(broken, str):
        return BrokenHeader(printable(broken)[:_REASON_CHARS])
    general, numbers = _mapping(facts.get("general")), _numbers(_mapping(facts.get("numbers")))
    if not general.keys() <= set(GENERAL):
        raise NotAHeader
    tokens, parameters = facts.get("tokens"), facts.get("parameters")
    template = _template(facts.get("template"))
    metadata, text_size = _metadata(_mapping(facts.get("metadata")))

    def number(key: str) -> int | None:
        value = numbers.get(key)
        return value if isinstance(value, int) else None

    file_type, shards = general.get("general.file_type"), general.get("split.count")
    return Header(
        architecture=_text(general.get("general.architecture")),
        name=_text(general.get("general.name")),
        size_label=_text(general.get("general.size_label")),
        type=_text(general.get("general.type")),
        file_type=file_type if isinstance(file_type, int) and 0 <= file_type < _MOST else None,
        context_length=number("context_length"),
        block_count=number("block_count"),
        embedding_length=number("embedding_length"),
        feed_forward_length=number("feed_forward_length"),
        head_count=number("attention.head_count"),
        head_count_kv=number("attention.head_count_kv"),
        vocab_size=number("vocab_size") if tokens is None else _count(tokens),
        nextn_layers=number("nextn_predict_layers") or 0,
        pooling_type=number("pooling_type"),
        has_chat_template=facts.get("template") is True or template is not None,
        shards=shards if isinstance(shards, int) and 1 < shards < _MOST else 1,
        tensors=_count(facts.get("tensors"), MAX_TENSORS),
        header_bytes=_count(facts.get("header_bytes"), MAX_HEADER_BYTES),
        nextn_bytes=_count(facts.get("nextn_bytes")),
        numbers=MappingProxyType(numbers),
        parameters=None if parameters is None else _count(parameters, MAX_PARAMETERS),
        metadata=MappingProxyType(metadata),
        template=template,
        fills_in=facts.get("fills_in") is True,
        digest=digest,
        text_size=text_size + (_bytes(template) if template else 0),
    )


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise NotAHeader
    return value


def _count(value: object, most: int = _MOST) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise NotAHeader
    return value


def _numbers(given: Mapping[str, object]) -> dict[str, Number]:
    """Those that are within reason: a file may well claim a negative width, and then it claims nothing."""
    if not given.keys() <= set(NUMBERS):
        raise NotAHeader
    kept: dict[str, Number] = {}
    for key, value in given.items():
        if isinstance(value, list):
            if len(value) > MAX_LAYERS:
                raise NotAHeader
            if all(isinstance(item, int) and 0 <= item < _MOST for item in value):
                kept[key] = tuple(int(item) for item in value)
        elif type(value) is int and 0 <= value < _MOST:
            kept[key] = value
    return kept


def _metadata(given: Mapping[str, object]) -> tuple[dict[str, Scalar], int]:
    """Scalars within their bounds, and the bytes of their texts; anything else never came from the reader."""
    if len(given) > MAX_KEYS:
        raise NotAHeader
    left = MAX_METADATA_BYTES
    kept: dict[str, Scalar] = {}
    for key, value in given.items():
        left -= _bytes(key)
        if isinstance(value, str):
            left -= _bytes(value)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise NotAHeader
        elif isinstance(value, int):
            if not _LEAST_INTEGER <= value <= _MOST_INTEGER:
                raise NotAHeader
        elif value is not None:
            raise NotAHeader
        if left < 0:
            raise NotAHeader
        kept[_shared(key)] = _shared(value) if isinstance(value, str) else value
    return kept, MAX_METADATA_BYTES - left


def _template(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    if _bytes(value) > MAX_TEMPLATE_BYTES:
        raise NotAHeader
    return _shared(value)


def _bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # half a character: the reader decodes, so it has none
        raise NotAHeader from None


def _shared(text: str) -> str:
    """The same text once, since models of a family have keys, values and templates in common."""
    return sys.intern(text)


def _text(value: object) -> str | None:
    """Printable text of reasonable length; a header's strings end up on pages and in logs."""
    if not isinstance(value, str):
        return None
    return printable(value[:256]) or None


def printable(text: str) -> str:
    """Without control characters and the like, and without space around it."""
    return "".join(char for char in text if char.isprintable()).strip()
