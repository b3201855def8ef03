"""Model names: how files get theirs, and how a name that a client wrote finds a model. Pure.

A name is the lower-cased file stem without shard suffix, unique in the library.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from llamaman.core.config_values import has_controls
from llamaman.errors import ModelNotFound
from llamaman.limits import NAME

_CANDIDATES = 10

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


def find_name(given: str, names: Collection[str], prefixes: Collection[str]) -> str:
    """The name that a client means: exact, then unique prefix; in any case, with or without ``:latest``.

    :param names: every name, for exact matches.
    :param prefixes: the names that a prefix may stand for.
    :raises ModelNotFound: with the candidates when several names start like this.
    """
    if len(given) > NAME + len(":latest") or has_controls(given):
        raise ModelNotFound("".join(char for char in given[:NAME] if char.isprintable()))
    wanted = given.strip().lower()
    for form in dict.fromkeys((wanted, wanted.removesuffix(":latest"))):
        if form in names:
            return form
        if form.removesuffix(".gguf") in names:
            return form.removesuffix(".gguf")
    wanted = wanted.removesuffix(":latest")
    candidates = sorted(name for name in prefixes if name.startswith(wanted)) if wanted else []
    if len(candidates) == 1:
        return candidates[0]
    raise ModelNotFound(given, candidates[:_CANDIDATES])
