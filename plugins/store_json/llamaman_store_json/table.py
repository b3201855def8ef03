"""One collection in memory: immutable generations, and drafts of the next one. Pure, no I/O.

Readers hold a :class:`Table`, which never changes; the writer prepares a :class:`Draft` and publishes its
result only when it is on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamaman import Changes, Delete, Document, InvalidRequest, VersionConflict

#: How many deletions a collection remembers; a watcher that is further behind gets everything again.
TOMBSTONES = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored document as its JSON text, so that readers never share an object."""

    version: int
    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """One durable generation of a collection.

    :ivar floor: the newest revision whose later deletions are not all remembered.
    """

    revision: int = 0
    entries: Mapping[str, Entry] = field(default_factory=dict)
    tombstones: Mapping[str, int] = field(default_factory=dict)
    floor: int = 0

    @classmethod
    def loaded(cls, revision: int, entries: Mapping[str, Entry]) -> Table:
        """A table read from a file, which does not keep tombstones."""
        return cls(revision, entries, {}, revision)

    def document(self, key: str) -> Document | None:
        entry = self.entries.get(key)
        return None if entry is None else Document(key, entry.version, json.loads(entry.text))

    def documents(self) -> list[Document]:
        return [
            Document(key, entry.version, json.loads(entry.text))
            for key, entry in sorted(self.entries.items())
        ]

    def since(self, revision: int) -> Changes:
        """Answer ``Store.watch``."""
        resync = revision <= 0 or revision < self.floor or revision > self.revision
        known = 0 if resync else revision
        newer = sorted(
            ((key, entry) for key, entry in self.entries.items() if entry.version > known),
            key=lambda item: (item[1].version, item[0]),
        )
        changed = tuple(Document(key, entry.version, json.loads(entry.text)) for key, entry in newer)
        deleted = () if resync else tuple(key for key, at in self.tombstones.items() if at > known)
        return Changes(self.revision, changed, deleted, resync)


@dataclass(frozen=True, slots=True)
class Write:
    """A :class:`~llamaman.Put` whose value is already JSON text."""

    key: str
    text: str
    expected: int | None


class Draft:
    """The next generation of a table while a group of writes is applied to it."""

    def __init__(self, name: str, table: Table) -> None:
        self._name = name
        self._revision = table.revision
        self._entries = dict(table.entries)
        self._tombstones = dict(table.tombstones)
        self._floor = table.floor
        self.changed = False

    def apply(self, operations: Sequence[Write | Delete]) -> list[int]:
        """Apply all operations or none; see ``Store.batch`` for results and errors."""
        self._check(operations)
        revision = self._revision + 1
        versions = []
        effective = False
        for operation in operations:
            if isinstance(operation, Write):
                self._entries[operation.key] = Entry(revision, operation.text)
                self._tombstones.pop(operation.key, None)
                versions.append(revision)
                effective = True
            else:
                gone = self._entries.pop(operation.key, None) is not None
                if gone:
                    self._tombstones[operation.key] = revision
                    effective = True
                versions.append(revision if gone else 0)
        if effective:
            self._revision = revision
            self.changed = True
        return versions

    def result(self) -> Table:
        """The new generation; the draft must not be used afterwards."""
        while len(self._tombstones) > TOMBSTONES:
            oldest = next(iter(self._tombstones))
            self._floor = max(self._floor, self._tombstones.pop(oldest))
        return Table(self._revision, self._entries, self._tombstones, self._floor)

    def _check(self, operations: Sequence[Write | Delete]) -> None:
        if len({operation.key for operation in operations}) != len(operations):
            raise InvalidRequest(f"a batch on collection {self._name!r} names one key twice")
        for operation in operations:
            entry = self._entries.get(operation.key)
            found = entry.version if entry is not None else 0
            if operation.expected is not None and operation.expected != found:
                what = f"is at version {found}" if found else "does not exist"
                wanted = f"version {operation.expected}" if operation.expected else "that it does not exist"
                raise VersionConflict(
                    f"{self._name} {operation.key!r} {what}, the write expected {wanted}: "
                    "read it again and repeat the change"
                )
