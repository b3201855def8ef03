"""The contract between the kernel and a storage driver: named collections of JSON documents.

Storage plugins implement :class:`Store` and inherit ``llamaman.testing.store_contract.StoreContract``;
kernel services and plugins are written against it and never against a driver. What a driver guarantees:

* A write that returned is durable: it survives ``kill -9`` and a power cut.
* A write that raised :class:`~llamaman.errors.StoreReadOnly` did not happen.
* Readers see durable documents only, and what they get is theirs: changing it changes nothing stored.
* A version is never given to two states of one key, not even across delete and re-creation.

Every method may block, so none of them is ever called on the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

#: A key of a document has 1 to this many characters, none of them NUL.
KEY_LIMIT = 1024

#: ``expected`` of a document that must not exist yet.
ABSENT = 0


@dataclass(frozen=True, slots=True)
class Document:
    """One stored document.

    :ivar version: positive, grows with every write of the key; given back as ``expected``.
    :ivar value: anything that JSON can say.
    """

    key: str
    version: int
    value: Any


@dataclass(frozen=True, slots=True)
class Put:
    """Write one document.

    :ivar expected: the version it must have now, 0 if it must not exist, None to write in any case.
    """

    key: str
    value: Any
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one document; ``expected`` as in :class:`Put`. Deleting what is not there is no error."""

    key: str
    expected: int | None = None


Operation: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened in a collection after a revision.

    :ivar revision: give it to the next ``watch``.
    :ivar changed: documents written since, in the order of their last write.
    :ivar deleted: keys deleted since.
    :ivar resync: ``changed`` is the whole collection: forget everything known before. Happens for
        revision 0 and when the driver no longer remembers what was deleted since.
    """

    revision: int
    changed: tuple[Document, ...]
    deleted: tuple[str, ...]
    resync: bool


#: Named here because ``list`` is a method of :class:`Store`.
Documents: TypeAlias = list[Document]
Versions: TypeAlias = list[int]


@runtime_checkable
class Store(Protocol):
    """Named collections of documents. Thread-safe; a collection exists as soon as it is named.

    Deliberately without ``__len__``: an empty store must not be falsy.
    """

    def get(self, collection: str, key: str) -> Document | None:
        """Return one document, or None."""

    def list(self, collection: str) -> Documents:
        """Return every document, sorted by key."""

    def put(self, collection: str, key: str, value: Any, *, expected: int | None = None) -> int:
        """Write one document and return its new version.

        :raises VersionConflict: it does not have the expected version.
        :raises StoreReadOnly: nothing was written.
        """

    def delete(self, collection: str, key: str, *, expected: int | None = None) -> bool:
        """Delete one document; False if it was not there.

        :raises VersionConflict: it does not have the expected version.
        """

    def batch(self, collection: str, operations: Sequence[Operation]) -> Versions:
        """Carry out all operations or none, and return one positive version each.

        A delete that found nothing returns 0.

        :raises VersionConflict: one of them did not find what it expected; none was carried out.
        :raises InvalidRequest: one key is named twice.
        """

    def watch(self, collection: str, since: int) -> Changes:
        """Return at once what changed after revision ``since``; 0 asks for everything."""

    def probe(self) -> None:
        """Prove with a real write that the store can write now; ends read-only mode if it can.

        :raises StoreReadOnly: it cannot.
        """

    def close(self) -> None:
        """Finish what was accepted, then refuse everything. Closing twice is no error."""


class RequestLog(Protocol):
    """Where recorders keep finished requests: its own failure domain, apart from the documents."""

    def append(self, record: Any) -> None:
        """Add one record. Never blocks on a full disk: a record may be dropped and is counted then."""

    def close(self) -> None:
        """Write out what was accepted."""
