"""Run-time settings: declared once, then sealed. Read by everything that may change while LlamaMan runs.

``default < environment < stored``. :meth:`Settings.get` never leaves memory, so any thread and the event loop
may call it; :meth:`Settings.seal`, :meth:`Settings.update`, :meth:`Settings.record` and :meth:`Settings.refresh`
use the store and may block.

A shared setting is one document ``shared/<name>``, a node's own one ``node/<node>/<name>``; a node setting
that this node never changed takes the shared value if there is one. Stored values that cannot be used (their
plugin is not installed, or their type is wrong) are left in the store and listed in :attr:`Settings.set_aside`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Protocol

from llamaman.core.setting import MASK, Setting, read, read_text
from llamaman.core.store import Put, Store
from llamaman.errors import ConfigError, InvalidField, InvalidRequest

__all__ = ["COLLECTION", "OBSOLETE", "Setting", "Settings"]

COLLECTION = "settings"

#: Names that are gone -> what to do instead.
OBSOLETE: dict[str, str] = {
    "docker_images": "images are managed under /api/images",
    "huggingface_tokens": "tokens are managed under /api/settings/huggingface-tokens",
    "model_sources": "sources are recorded with each download",
    "cleanup.orphan_containers_enabled": "containers without a record are always reported, never removed",
}

Changed = Mapping[str, Any]
Callback = Callable[[Changed], None]

_log = logging.getLogger(__name__)


class Publisher(Protocol):
    """The part of the event bus that is used here."""

    def publish(
        self, topic: str, kind: str, data: Mapping[str, Any], *, actor: str, reason: str
    ) -> object: ...


class Settings:
    """All settings of one manager. Thread-safe.

    :param node: this node's name, for settings of scope ``node``.
    :param environ: where a setting's ``env`` is looked up.
    """

    def __init__(
        self, node: str, *, events: Publisher | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._node = node
        self._events = events
        self._environ = environ or {}
        self._declared: dict[str, tuple[Setting, str]] = {}
        self._base: dict[str, Any] = {}
        self._stored: dict[str, Any] = {}
        self._values: Mapping[str, Any] = {}
        self._store: Store | None = None
        self._revision = 0
        self._callbacks: list[Callback] = []
        self._lock = threading.Lock()
        #: stored key -> why it is not used
        self.set_aside: dict[str, str] = {}

    # --- declaring -----------------------------------------------------------------------------------

    def declare(self, settings: Sequence[Setting], owner: str) -> None:
        """Add settings under the name of their owner.

        :raises ConfigError: a name is taken (both owners are named), declared too late, or its default or
            environment value is not allowed.
        """
        for setting in settings:
            if self._store is not None:
                raise ConfigError(
                    f"{owner} declares setting '{setting.name}' after the settings were sealed; declare it in the "
                    "settings hook, which runs before the start"
                )
            for name, (_, other) in self._declared.items():
                if (
                    name == setting.name
                    or f"{name}.".startswith(f"{setting.name}.")
                    or _below(setting.name, name)
                ):
                    raise ConfigError(
                        f"setting '{setting.name}' of {owner} collides with '{name}' of {other}"
                    )
            try:
                value = read(setting, setting.default)
                given = self._environ.get(setting.env, "").strip() if setting.env else ""
                if given:
                    value = read_text(setting, given)
            except InvalidField as error:
                raise ConfigError(f"{setting.env or owner}: {error.message}") from error
            self._declared[setting.name] = (setting, owner)
            self._base[setting.name] = value

    def variables(self) -> frozenset[str]:
        """The environment variables of all declared settings."""
        return frozenset(setting.env for setting, _ in self._declared.values() if setting.env)

    def seal(self, store: Store) -> None:
        """End declaring and load what is stored."""
        if self._store is not None:
            raise ConfigError("settings are sealed already; seal() is called once, when the kernel boots")
        self._store = store
        self.refresh()

    # --- reading -------------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        """The value now. Lists are tuples.

        :raises KeyError: nobody declared it; this is a mistake in code, not of a user.
        """
        try:
            return (self._values if self._store is not None else self._base)[name]
        except KeyError:
            raise KeyError(f"setting '{name}' is not declared; declare it before it is read") from None

    def all(self) -> dict[str, Any]:
        """Every setting as a nested object, secrets masked: the body of ``GET /api/settings``."""
        result: dict[str, Any] = {}
        for name, (setting, _) in self._declared.items():
            place = result
            *parents, last = name.split(".")
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = _shown(setting, self.get(name))
        return result

    def describe(self) -> list[dict[str, Any]]:
        """One row per setting, for forms and the command line: the declaration, owner, value and its source."""
        rows = []
        for name, (setting, owner) in self._declared.items():
            row = asdict(setting)
            row["default"] = _shown(setting, setting.default)
            source = "stored" if self._stored_key(name) else "default"
            if source == "default" and setting.env and self._environ.get(setting.env, "").strip():
                source = "environment"
            rows.append({**row, "owner": owner, "value": _shown(setting, self.get(name)), "source": source})
        return rows

    # --- changing ------------------------------------------------------------------------------------

    def update(self, patch: Mapping[str, Any], actor: str) -> dict[str, Any]:
        """Merge a nested object (dotted names are taken too) and return :meth:`all`.

        All or nothing, durable when it returns. Read-only settings and masked secrets in it are ignored, so
        that a body that was read can be sent back.

        :raises InvalidField: names the setting by its dotted name.
        """
        wanted = {}
        for name, value in _flatten(patch, self._declared):
            setting = self._find(name)
            if setting.editable and not (setting.secret and value == MASK):
                wanted[name] = read(setting, value)
        self._write(wanted, actor=actor, reason="settings were changed")
        return self.all()

    def record(self, name: str, value: Any) -> None:
        """Set a read-only setting (such as when a clean-up ran last); no event tells of it."""
        self._write({name: read(self._find(name), value)}, actor="", reason="")

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call back with changed names and values after each change, in the changing thread."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def refresh(self) -> None:
        """Take in what other nodes of a cluster have stored. Cheap when nothing changed."""
        store = self._sealed()
        with self._lock:
            before = self._values
            changes = store.watch(COLLECTION, self._revision)
            self._revision = changes.revision
            if changes.resync:
                self._stored.clear()
            for document in changes.changed:
                self._stored[document.key] = document.value
            for key in changes.deleted:
                self._stored.pop(key, None)
            if before and not changes.changed and not changes.deleted:
                return
            self._recompute()
            changed = _difference(before, self._values)
        if before and changed:
            self._tell(changed)

    # --- inside --------------------------------------------------------------------------------------

    def _sealed(self) -> Store:
        if self._store is None:
            raise ConfigError("settings are not sealed yet; the kernel calls seal() once the store is open")
        return self._store

    def _find(self, name: str) -> Setting:
        found = self._declared.get(name)
        if found is None:
            hint = f"; {OBSOLETE[name]}" if name in OBSOLETE else ""
            raise InvalidField(name[:100], f"{name[:100]} is not a setting{hint}")
        return found[0]

    def _write(self, wanted: Mapping[str, Any], *, actor: str, reason: str) -> None:
        store = self._sealed()
        with self._lock:
            before = self._values
            changed = {name: value for name, value in wanted.items() if before[name] != value}
            if not changed:
                return
            stored = {self._own_key(name): _plain(value) for name, value in changed.items()}
            store.batch(COLLECTION, [Put(key, value) for key, value in stored.items()])
            self._stored.update(stored)
            self._recompute()
        if actor and self._events is not None:
            told = {
                name: {"old": _shown(self._find(name), before[name]), "new": _shown(self._find(name), value)}
                for name, value in changed.items()
            }
            self._events.publish("settings", "changed", {"settings": told}, actor=actor, reason=reason)
        self._tell(changed)

    def _own_key(self, name: str) -> str:
        setting = self._declared[name][0]
        return f"node/{self._node}/{name}" if setting.scope == "node" else f"shared/{name}"

    def _stored_key(self, name: str) -> str | None:
        """Under which key this setting is stored for this node, or None."""
        for key in (self._own_key(name), f"shared/{name}"):
            if key in self._stored and key not in self.set_aside:
                return key
        return None

    def _recompute(self) -> None:
        """Build the snapshot that readers see. Called with the lock held."""
        self.set_aside = {}
        for key, value in self._stored.items():
            scope, _, name = key.partition("/")
            if scope == "node":
                node, _, name = name.rpartition("/")
                if node != self._node:
                    continue
            if name not in self._declared:
                self._set_aside(key, "no installed part of LlamaMan declares it")
                continue
            try:
                read(self._declared[name][0], value)
            except InvalidField as error:
                self._set_aside(key, error.message)
        values = {}
        for name, base in self._base.items():
            found = self._stored_key(name)
            values[name] = base if found is None else read(self._declared[name][0], self._stored[found])
        self._values = MappingProxyType(values)

    def _set_aside(self, key: str, reason: str) -> None:
        self.set_aside[key] = reason
        _log.warning("stored setting %s is not used: %s", key, reason)

    def _tell(self, changed: Changed) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(changed)
            except Exception:  # noqa: BLE001 - the change is durable; the other listeners must hear of it
                _log.exception("a listener failed on the change of %s", ", ".join(changed))


def _below(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(setting: Setting, value: Any) -> Any:
    if setting.secret:
        return MASK if value else ""
    return _plain(value)


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in after.items() if before.get(name) != value}


def _flatten(
    patch: Mapping[str, Any], declared: Mapping[str, object], prefix: str = ""
) -> list[tuple[str, Any]]:
    """(dotted name, value) pairs; an object is descended into only where settings lie below it."""
    if not isinstance(patch, Mapping):
        raise InvalidRequest("settings must be a JSON object")
    pairs: list[tuple[str, Any]] = []
    for key, value in patch.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and any(_below(known, name) for known in declared):
            pairs += _flatten(value, declared, f"{name}.")
        else:
            pairs.append((name, value))
    return pairs
