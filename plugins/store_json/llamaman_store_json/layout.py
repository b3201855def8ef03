"""Which collection lives in which file, and how a data directory is read at open.

A file that once existed and is gone is as wrong as a broken one: ``store.json`` lists what must be there,
and ``users.json`` is written before any other, so that a missing one never looks like a first run.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from llamaman import InvalidRequest, StoreError
from llamaman_store_json import codec
from llamaman_store_json.files import TEMPORARY, Files
from llamaman_store_json.table import Table

log = logging.getLogger("llamaman.store")

MANIFEST = "store.json"
USERS = "users.json"
SUFFIX = ".json"

#: Collections that share a file; every other one has ``<collection>.json`` to itself.
SHARED_FILES = {"instances": "state.json", "downloads": "state.json"}

#: Names under DATA_DIR that are taken, so no collection may be called so.
_RESERVED = frozenset({"state", "store", "install"})

_COLLECTION = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


def file_of(collection: str) -> str:
    """Return the file name of a collection.

    :raises InvalidRequest: a name that cannot be a file of ours.
    """
    if not _COLLECTION.fullmatch(collection) or collection in _RESERVED:
        raise InvalidRequest(
            f"a collection cannot be called {collection!r}: use a lower-case letter followed by up to 63 "
            f"letters, digits, '_', '.' or '-', and none of {', '.join(sorted(_RESERVED))}"
        )
    return SHARED_FILES.get(collection, collection + SUFFIX)


@dataclass(slots=True)
class Loaded:
    """What a directory holds: the tables of every file, and the files the manifest must list."""

    files: dict[str, dict[str, Table]] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()


def load(files: Files, directory: Path) -> Loaded:
    """Read and check every file; remove temporaries that a crash left behind.

    :raises StoreCorrupt: a file is missing or cannot be trusted. :raises ConfigError: a newer format.
    """
    try:
        names = files.names(directory)
    except OSError as error:
        raise StoreError(f"cannot list {directory}: {error.strerror}; check that it exists") from error
    _remove_temporaries(files, directory, names)
    present = {name for name in names if name.endswith(SUFFIX)}
    listed = (
        frozenset(_read(files, directory / MANIFEST)["files"].entries) if MANIFEST in present else frozenset()
    )
    known = listed | {USERS} | set(SHARED_FILES.values())
    loaded = Loaded(listed=listed)
    for name in sorted((present | known) - {MANIFEST}):
        if name in present:
            if name in known or _is_ours(files, directory / name):
                loaded.files[name] = dict(_read(files, directory / name))
        elif name in listed:
            raise codec.corrupt(directory / name, "it is missing")
    if loaded.files and USERS not in loaded.files:
        raise codec.corrupt(directory / USERS, f"it is missing although {', '.join(loaded.files)} exists")
    if loaded.files and not listed:
        log.warning("%s is missing and is written again from the files present", directory / MANIFEST)
    return loaded


def _read(files: Files, path: Path) -> dict[str, Table]:
    try:
        data = files.read(path)
    except OSError as error:
        raise codec.corrupt(path, f"it cannot be read ({error.strerror})") from error
    tables = dict(codec.decode(path, data).tables)
    if path.name == MANIFEST and "files" not in tables:
        raise codec.corrupt(path, "it lists no files")
    return tables


def _is_ours(files: Files, path: Path) -> bool:
    """A plugin's collection written just before a crash is ours although no manifest lists it yet."""
    with contextlib.suppress(OSError):
        return codec.looks_like_ours(files.read(path))
    return False


def _remove_temporaries(files: Files, directory: Path, names: list[str]) -> None:
    for name in names:
        if name.endswith(TEMPORARY):
            log.info("removing %s, left behind by an interrupted write", directory / name)
            with contextlib.suppress(OSError):
                files.unlink(directory / name)
