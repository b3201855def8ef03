"""The file format: JSON that a person can read and that proves it is whole.

The first line holds the SHA-256 of all that follows, so a truncated, zeroed, swapped or bit-flipped file is
recognised before a word of it is believed. One document per line keeps ``diff`` useful.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaman import ConfigError, StoreCorrupt, __version__
from llamaman_store_json.files import PREVIOUS
from llamaman_store_json.table import Entry, Table

FORMAT = 1

_FIRST_LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')

#: Their previous generation may bring back a revoked key, a removed user or an open door.
_ABOUT_ACCESS = frozenset({"users.json", "api_keys.json", "sessions.json", "settings.json"})


@dataclass(frozen=True, slots=True)
class Contents:
    """A decoded file: its collections by name."""

    tables: Mapping[str, Table]


def looks_like_ours(data: bytes) -> bool:
    """Whether a file in the data directory was written by :func:`encode`."""
    return _FIRST_LINE.match(data) is not None


def encode(name: str, tables: Mapping[str, Table]) -> bytes:
    """Return the bytes of the file ``name`` holding these collections."""
    parts = [
        f'"format": {FORMAT}, "writer": "llamaman {__version__}", "file": {json.dumps(name)},\n',
        '"collections": {',
    ]
    for number, (collection, table) in enumerate(sorted(tables.items())):
        lines = ",\n".join(
            f'{json.dumps(key)}: {{"version": {entry.version}, "value": {entry.text}}}'
            for key, entry in sorted(table.entries.items())
        )
        parts.append(
            f"{',' if number else ''}\n{json.dumps(collection)}: "
            f'{{"revision": {table.revision}, "documents": {{\n{lines}\n}}}}'
        )
    parts.append("\n}}\n")
    rest = "".join(parts).encode("ascii")
    return b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode("ascii") + rest


def decode(path: Path, data: bytes) -> Contents:
    """Read a file back.

    :raises StoreCorrupt: it is not byte for byte what :func:`encode` wrote under this name.
    :raises ConfigError: a newer LlamaMan wrote it.
    """
    if not data:
        raise corrupt(path, "it is empty")
    first = _FIRST_LINE.match(data)
    if first is None:
        raise _foreign(path, data)
    _refuse_newer(path, data)
    digest = hashlib.sha256(data[first.end() :]).hexdigest()
    if digest != first.group(1).decode("ascii"):
        raise corrupt(path, "its content does not match its checksum")
    try:
        document = json.loads(data)
        if document["file"] != path.name:
            raise corrupt(path, f"it is a copy of {document['file']!r} under another name")
        return Contents({name: _table(value) for name, value in document["collections"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(path, f"its structure is not ours ({type(error).__name__}: {error})") from error


def corrupt(path: Path, what: str) -> StoreCorrupt:
    """The error that stops the boot: what is wrong with which file, and the way back."""
    previous = path.with_name(path.name + PREVIOUS)
    warning = (
        " It may bring back a revoked key, a removed user or an older setting: check it first."
        if path.name in _ABOUT_ACCESS
        else ""
    )
    cure = (
        f"The generation before the last write is {previous}; to go back to it: "
        f"cp -p {previous} {path}.{warning} Otherwise restore {path.name} from a backup."
    )
    return StoreCorrupt(
        f"{path} cannot be trusted: {what}. Nothing was changed and nothing was started from empty. {cure}"
    )


def _foreign(path: Path, data: bytes) -> StoreCorrupt:
    try:
        json.loads(data)
    except ValueError:
        return corrupt(path, "it does not begin as our files do")
    return StoreCorrupt(
        f"{path} is JSON but was not written by this program. If it belongs to another manager, give "
        f"LlamaMan a DATA_DIR of its own; if it was edited by hand, restore it from "
        f"{path.name}{PREVIOUS} or a backup."
    )


def _refuse_newer(path: Path, data: bytes) -> None:
    """Look at the format before the checksum, whose rule a later format may change."""
    head = re.match(rb'.*\n"format": (\d{1,9}), "writer": "([^"\n]{0,80})"', data)
    if head is not None and int(head.group(1)) > FORMAT:
        raise ConfigError(
            f"{path} has format {int(head.group(1))}, written by {head.group(2).decode('utf-8', 'replace')}; "
            f"llamaman {__version__} reads formats up to {FORMAT}. Run that version or a newer one; "
            f"there is no way down."
        )


def _table(value: Mapping[str, Any]) -> Table:
    entries = {
        key: Entry(int(document["version"]), dump(document["value"]))
        for key, document in value["documents"].items()
    }
    return Table.loaded(int(value["revision"]), entries)


def dump(value: Any) -> str:
    """One document as ASCII JSON, so that any string that Python can hold comes back as it was.

    :raises ValueError: NaN, infinity, a cycle or too deep. :raises TypeError: not a JSON type.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(", ", ": "))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
