"""A store for tests of the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamaman.core.store import Changes, Delete, Document, Put


class MemoryStore:
    """The Store contract in a dictionary, as far as presets use it."""

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}

    def get(self, collection: str, key: str) -> Document | None:
        return self.documents.get(key)

    def list(self, collection: str) -> Any:
        return list(self.documents.values())

    def put(self, collection: str, key: str, value: Any, *, expected: int | None = None) -> int:
        self.documents[key] = Document(key, len(self.documents) + 1, value)
        return len(self.documents)

    def delete(self, collection: str, key: str, *, expected: int | None = None) -> bool:
        return self.documents.pop(key, None) is not None

    def batch(self, collection: str, operations: Sequence[Put | Delete]) -> Any:
        raise NotImplementedError

    def watch(self, collection: str, since: int) -> Changes:
        return Changes(1, tuple(self.documents.values()), (), resync=since == 0)

    def probe(self) -> None: ...

    def close(self) -> None: ...
