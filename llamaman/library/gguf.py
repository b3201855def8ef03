"""Bounded reader of GGUF headers. Read by `scan.py` and whoever needs facts about a model file.

A model file is hostile input: everything it claims is checked against a limit before it is believed, nothing
is mapped into memory (a file that shrinks under a mapping kills the process), and whatever is wrong ends in a
:class:`BrokenHeader`, never in an exception. Layout and key names are those of the GGUF specification, versions
2 and 3, little-endian.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 1024
MAX_STRING_BYTES = 8 << 20
MAX_ELEMENTS = 4 << 20
MAX_HEADER_BYTES = 128 << 20
#: Processor seconds, so that a busy host does not make good files look broken.
MAX_CPU_SECONDS = 1.0

_KEPT_STRING_BYTES = 1024
_CHUNK = 256 << 10
_STRIDE = 4096

_SCALARS: dict[int, struct.Struct] = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")

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


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says; None where it says nothing (or says it per layer).

    :ivar type: ``model``, ``adapter``, ``mmproj``, ``imatrix`` ...
    :ivar nextn_layers: layers for multi-token prediction; 0 = none.
    :ivar pooling_type: 0 none, 1 mean, 2 cls, 3 last, 4 rank; None for models that generate text.
    :ivar shards: how many files the model is split into; 1 = not split.
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

    @property
    def quant(self) -> str | None:
        """The quantisation by file type, or None."""
        return None if self.file_type is None else FILE_TYPES.get(self.file_type & ~1024)


@dataclass(frozen=True, slots=True)
class BrokenHeader:
    """Why a file is no usable GGUF file, in words that hold nothing from the file."""

    reason: str


class _Broken(Exception):
    pass


def read_header(path: Path) -> Header | BrokenHeader:
    """Read the header of a file; never raises for what is in the file or happens to it."""
    try:
        # Not blocking, because opening a FIFO that somebody put there would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        return BrokenHeader(f"it cannot be opened: {getattr(error, 'strerror', None) or 'bad path'}")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return BrokenHeader("it is not a regular file")
        return _header(_Reader(descriptor), status.st_size)
    except _Broken as error:
        return BrokenHeader(str(error))
    except OSError as error:
        return BrokenHeader(f"it cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)


class _Reader:
    """A forward-only view of the start of a file, one chunk in memory at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._chunk = b""
        self._start = 0  # offset of the chunk in the file
        self._at = 0  # position within the chunk
        self._deadline = time.thread_time() + MAX_CPU_SECONDS

    @property
    def position(self) -> int:
        return self._start + self._at

    def check_time(self) -> None:
        if time.thread_time() > self._deadline:
            raise _Broken(f"reading its header takes more than {MAX_CPU_SECONDS:g} s")

    def _fill(self, size: int) -> None:
        """Make the next ``size`` bytes available in the chunk."""
        self._start += self._at
        self._at = 0
        if self._start + size > MAX_HEADER_BYTES:
            raise _Broken(f"its header is larger than {MAX_HEADER_BYTES >> 20} MiB")
        self.check_time()
        parts, wanted, have = [], max(size, _CHUNK), 0
        while have < size:
            part = os.pread(self._descriptor, wanted - have, self._start + have)
            if not part:
                raise _Broken("it ends within its header")
            parts.append(part)
            have += len(part)
        self._chunk = parts[0] if len(parts) == 1 else b"".join(parts)

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._chunk):
            self._fill(size)
        taken = self._chunk[self._at : self._at + size]
        self._at += size
        return taken

    def skip(self, size: int) -> None:
        self._at += size

    def unpack(self, form: struct.Struct) -> Any:
        values = form.unpack(self.take(form.size))
        return values[0] if len(values) == 1 else values

    def skip_strings(self, count: int) -> None:
        """Walk over the length prefixes of a string array: the hot loop, over a million turns for some models."""
        unpack = _U64.unpack_from
        while count:
            chunk, at, turns = self._chunk, self._at, min(count, _STRIDE)
            done = 0
            try:
                for done in range(turns):  # noqa: B007 - the count of whole turns is what the handler needs
                    at += unpack(chunk, at)[0] + 8
                done = turns
            except (struct.error, OverflowError):  # the next length lies beyond the chunk
                pass
            # A string that ends far beyond the chunk began within it, so it is about as long as the overhang.
            if at - len(chunk) > MAX_STRING_BYTES:
                raise _Broken(f"a string is longer than {MAX_STRING_BYTES} bytes")
            self._at = at
            count -= done
            if done < turns:
                self._fill(8)
            else:
                self.check_time()


def _header(reader: _Reader, file_size: int) -> Header:
    if reader.take(4) != b"GGUF":
        raise _Broken("it is not a GGUF file")
    version = reader.unpack(struct.Struct("<I"))
    if version in (0x02000000, 0x03000000):
        raise _Broken("it is a big-endian GGUF file")
    if version not in (2, 3):
        raise _Broken("its GGUF version is not supported")
    tensors, keys = reader.unpack(struct.Struct("<QQ"))
    if tensors > MAX_TENSORS:
        raise _Broken(f"it has more than {MAX_TENSORS} tensors")
    if keys > MAX_KEYS:
        raise _Broken(f"it has more than {MAX_KEYS} keys")
    facts: dict[str, Any] = {}
    for _ in range(keys):
        reader.check_time()
        size = reader.unpack(_U64)
        if size > MAX_KEY_BYTES:
            raise _Broken(f"a key is longer than {MAX_KEY_BYTES} bytes")
        key = reader.take(size).decode("utf-8", "replace")
        facts[key] = _value(reader, reader.unpack(struct.Struct("<I")))
    if reader.position > file_size:  # what was skipped was never there
        raise _Broken("it ends within its header")
    return _facts(facts, tensors)


def _value(reader: _Reader, kind: int) -> Any:
    """A scalar, a short string, or a list's length wrapped in a tuple; None for a long string."""
    if kind in _SCALARS:
        return reader.unpack(_SCALARS[kind])
    if kind == _STRING:
        size = reader.unpack(_U64)
        if size > MAX_STRING_BYTES:
            raise _Broken(f"a string is longer than {MAX_STRING_BYTES} bytes")
        if size <= _KEPT_STRING_BYTES:
            return reader.take(size).decode("utf-8", "replace")
        reader.skip(size)
        return None
    if kind != _ARRAY:
        raise _Broken("a key has an unknown type")
    element, count = reader.unpack(_ARRAY_HEAD)
    if count > MAX_ELEMENTS:
        raise _Broken(f"an array has more than {MAX_ELEMENTS} elements")
    if element in _SCALARS:
        reader.skip(_SCALARS[element].size * count)
    elif element == _STRING:
        reader.skip_strings(count)
    elif element == _ARRAY:
        raise _Broken("an array holds arrays")
    else:
        raise _Broken("an array has an unknown type")
    return (count,)


def _facts(facts: Mapping[str, Any], tensors: int) -> Header:
    architecture = _text(facts.get("general.architecture"))

    def number(key: str) -> int | None:
        value = facts.get(f"{architecture}.{key}")
        return (
            value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48 else None
        )

    tokens = facts.get("tokenizer.ggml.tokens")
    file_type, shards = facts.get("general.file_type"), facts.get("split.count")
    return Header(
        architecture=architecture,
        name=_text(facts.get("general.name")),
        size_label=_text(facts.get("general.size_label")),
        type=_text(facts.get("general.type")),
        file_type=file_type if isinstance(file_type, int) else None,
        context_length=number("context_length"),
        block_count=number("block_count"),
        embedding_length=number("embedding_length"),
        feed_forward_length=number("feed_forward_length"),
        head_count=number("attention.head_count"),
        head_count_kv=number("attention.head_count_kv"),
        vocab_size=tokens[0] if isinstance(tokens, tuple) else number("vocab_size"),
        nextn_layers=number("nextn_predict_layers") or 0,
        pooling_type=number("pooling_type"),
        has_chat_template="tokenizer.chat_template" in facts,
        shards=shards if isinstance(shards, int) and shards > 1 else 1,
        tensors=tensors,
    )


def _text(value: object) -> str | None:
    """Printable text of reasonable length; a header's strings end up on pages and in logs."""
    if not isinstance(value, str):
        return None
    return "".join(char for char in value[:256] if char.isprintable()).strip() or None
