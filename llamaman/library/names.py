"""Model names: how files get theirs. Pure. How a name finds its model is `llamaman/core/model_names.py`.

A name is the lower-cased file stem without shard suffix, unique in the library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llamaman.limits import NAME

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-_. ])(?P<quant>BF16|FP?16|FP?32|IQ[1-9]_[A-Z]{1,3}|Q[1-9]_K(?:_(?:XXS|XS|S|M|L|XL))?|Q[1-9]_[0-9]|"
    r"TQ[1-9]_[0-9]|MXFP4(?:_MOE)?|NVFP4|Q[1-9])(?=$|[-_. ])",
    re.IGNORECASE,
)


def split_shard(file_stem: str) -> tuple[str, int, int] | None:
    """``x-00002-of-00003`` -> ("x", 2, 3); None for a stem without shard suffix."""
    match = _SHARD.fullmatch(file_stem)
    return (match["stem"], int(match["number"]), int(match["count"])) if match else None


def quant_of(file_stem: str) -> str | None:
    """The quantisation that a file name tells, upper-cased; the last one if there are several."""
    found = [match["quant"].upper() for match in _QUANT.finditer(file_stem)]
    if not found:
        return None
    return {"FP16": "F16", "FP32": "F32"}.get(found[-1], found[-1])


def without_quant(stem: str) -> str:
    """A file stem without the quantisations that it tells."""
    return _QUANT.sub("", stem)


def file_stem(path: Path) -> str:
    """A file's stem without shard suffix."""
    shard = split_shard(path.stem)
    return shard[0] if shard else path.stem


def unique_names(stems: Sequence[tuple[str, Path]]) -> list[str]:
    """One name per (stem, folder), in the given order: the first keeps its stem, later ones get their folder.

    Folders further up, then numbers, are added as long as a name is still taken.
    """
    taken: set[str] = set()
    names = []
    for stem, folder in stems:
        name = stem.lower()[:NAME]
        for parent in (folder, *folder.parents):
            if name not in taken or not parent.name:
                break
            name = f"{parent.name.lower()}-{name}"[:NAME]
        number = 2
        base = name
        while name in taken:
            name = f"{base[: NAME - 6]}-{number}"
            number += 1
        taken.add(name)
        names.append(name)
    return names
