"""Presets: launch options kept per model file. Read by `library.py`.

A preset holds validated launch options and fields of its own: ``favorite``, ``note``, and ``aliases``, which are
further names for the model. All presets are in memory; changes are durable before they count.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llamaman.core import launch
from llamaman.core.config_values import has_controls
from llamaman.core.extra_args import ModelFile
from llamaman.core.model_names import key_of
from llamaman.core.store import KEY_LIMIT, Store
from llamaman.errors import Conflict, InvalidField
from llamaman.limits import ALIASES, NAME, NOTE_BYTES, PRESETS

COLLECTION = "presets"

Preset = Mapping[str, Any]

_log = logging.getLogger(__name__)


class Presets:
    """All presets of the store. Thread-safe.

    :param allow_unlisted: the setting ``launch.allow_unlisted_args``, asked at each change.
    :param model_file: resolves a path below MODELS_DIR to a scanned file.
    """

    def __init__(self, store: Store, *, allow_unlisted: Callable[[], bool], model_file: ModelFile) -> None:
        self._store = store
        self._allow_unlisted = allow_unlisted
        self._model_file = model_file
        self._lock = threading.Lock()
        self._revision = 0
        self._presets: dict[str, Preset] = {}
        self.refresh()

    def get(self, path: Path) -> dict[str, Any] | None:
        """A copy of one preset, or None."""
        found = self._presets.get(str(path))
        return None if found is None else dict(found)

    def all(self) -> dict[str, dict[str, Any]]:
        """Copies of all presets by model path."""
        return {path: dict(preset) for path, preset in sorted(self._presets.items())}

    def put(self, path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
        """Validate and store a whole preset, in place of an earlier one.

        :raises InvalidField: names the field.
        """
        key = str(path)
        if len(key) > KEY_LIMIT:
            raise InvalidField(
                "model_path", f"model_path is longer than {KEY_LIMIT} characters; no preset can be kept"
            )
        preset = self._checked(values)
        with self._lock:
            if key not in self._presets and len(self._presets) >= PRESETS:
                raise Conflict(f"there are {PRESETS} presets already; delete some first")
            self._store.put(COLLECTION, key, preset)
            self._keep(key, preset)
        return dict(preset)

    def delete(self, path: Path) -> bool:
        """Delete one preset; False if there was none."""
        with self._lock:
            self._store.delete(COLLECTION, str(path))
            return self._presets.pop(str(path), None) is not None

    def refresh(self) -> None:
        """Take in what other managers on the same store changed."""
        with self._lock:
            changes = self._store.watch(COLLECTION, self._revision)
            self._revision = changes.revision
            if changes.resync:
                self._presets.clear()
            for document in changes.changed:
                self._keep(document.key, document.value)
            for key in changes.deleted:
                self._presets.pop(key, None)

    def _keep(self, key: str, value: Any) -> None:
        """Show what a stored preset has that is usable; the rest stays in the store and is told."""
        usable: dict[str, Any] = {}
        for name, item in value.items() if isinstance(value, Mapping) else ():
            try:
                usable |= self._own(name, item) or launch.validate(
                    {name: item}, partial=True, allow_unlisted=True
                )
            except InvalidField as error:
                _log.warning("preset of %s: %s; this field is not used", key, error.message)
        if "aliases" in usable:  # copies of a preset share it
            usable["aliases"] = tuple(usable["aliases"])
        self._presets[key] = MappingProxyType(usable)

    def _checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for name, value in values.items():
            mine = self._own(name, value)
            own |= mine
            if not mine:
                options[name] = value
        checked = launch.validate(options, allow_unlisted=self._allow_unlisted(), model_file=self._model_file)
        return checked | own

    @staticmethod
    def _own(name: str, value: object) -> dict[str, Any]:
        """The fields that are no launch options; an empty dict for other names."""
        if name == "favorite":
            if not isinstance(value, bool):
                raise InvalidField("favorite", "favorite must be true or false")
            return {"favorite": value}
        if name == "note":
            if not isinstance(value, str):
                raise InvalidField("note", "note must be a string")
            if len(value.encode("utf-8", "replace")) > NOTE_BYTES or "\0" in value:
                raise InvalidField("note", f"note must be at most {NOTE_BYTES} bytes of text")
            return {"note": value}
        if name == "aliases":
            return {"aliases": _aliases(value)}
        return {}


def _aliases(value: object) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(alias, str) for alias in value):
        raise InvalidField("aliases", "aliases must be a list of names")
    if len(value) > ALIASES:
        raise InvalidField("aliases", f"aliases has more than {ALIASES} names")
    aliases = [alias.strip() for alias in value]
    for alias in aliases:
        if not key_of(alias) or len(alias) > NAME or has_controls(alias):
            raise InvalidField(
                "aliases", f"aliases must be names of 1 to {NAME} characters without control characters"
            )
    if len({key_of(alias) for alias in aliases}) < len(aliases):
        raise InvalidField("aliases", "aliases has a name twice; names are the same in any case")
    return aliases
