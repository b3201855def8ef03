"""The store itself: readers see durable generations, one thread writes, a group of writes shares an fsync."""

from __future__ import annotations

import builtins
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaman import (
    KEY_LIMIT,
    Changes,
    Delete,
    Document,
    InvalidField,
    InvalidRequest,
    LlamaManError,
    Operation,
    Put,
    StoreError,
    StoreReadOnly,
)
from llamaman_store_json import codec, layout
from llamaman_store_json.files import Files, OsFiles, replace
from llamaman_store_json.table import Draft, Table, Write

log = logging.getLogger("llamaman.store")

#: A store that went read-only tries again by itself when a write comes, but no more often than this.
PROBE_EVERY_S = 1.0


@dataclass(slots=True)
class _Pending:
    """A write on its way to the disk. ``collection`` None is a probe."""

    collection: str | None
    operations: tuple[Write | Delete, ...] = ()
    done: Future[builtins.list[int]] = field(default_factory=Future)


class JsonStore:
    """See :class:`llamaman.Store`. The directory must belong to this process alone (the kernel locks it)."""

    def __init__(
        self, directory: Path, files: Files | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._files = files or OsFiles()
        self._clock = clock
        loaded = layout.load(self._files, directory)
        # Owned by the writer thread from here on; readers take whole tables out of _tables.
        self._present = set(loaded.files)
        self._listed = set(loaded.listed)
        self._read_only: str | None = None
        self._probed_at = 0.0
        self._tables: dict[str, Table] = {
            name: table for tables in loaded.files.values() for name, table in tables.items()
        }
        self._create_first_files()
        self._wake = threading.Condition()
        self._queue: list[_Pending] = []
        self._closing = False
        self._writer = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._writer.start()

    # --- reading --------------------------------------------------------------------------------------

    def get(self, collection: str, key: str) -> Document | None:
        return self._table(collection).document(key)

    def list(self, collection: str) -> builtins.list[Document]:
        return self._table(collection).documents()

    def watch(self, collection: str, since: int) -> Changes:
        return self._table(collection).since(since)

    def _table(self, collection: str) -> Table:
        if self._closing:
            raise StoreError("the store is closed: LlamaMan is stopping")
        table = self._tables.get(collection)
        if table is None:
            layout.file_of(collection)
            return Table()
        return table

    # --- writing --------------------------------------------------------------------------------------

    def put(self, collection: str, key: str, value: Any, *, expected: int | None = None) -> int:
        return self.batch(collection, [Put(key, value, expected)])[0]

    def delete(self, collection: str, key: str, *, expected: int | None = None) -> bool:
        return self.batch(collection, [Delete(key, expected)])[0] > 0

    def batch(self, collection: str, operations: Sequence[Operation]) -> builtins.list[int]:
        layout.file_of(collection)
        prepared = tuple(_prepare(collection, operation) for operation in operations)
        return self._submit(_Pending(collection, prepared)) if prepared else []

    def probe(self) -> None:
        self._submit(_Pending(None))

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._writer.join()

    def _submit(self, pending: _Pending) -> builtins.list[int]:
        with self._wake:
            if self._closing:
                raise StoreError("the store is closed: LlamaMan is stopping")
            self._queue.append(pending)
            self._wake.notify()
        return pending.done.result()

    # --- the writer thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        group: builtins.list[_Pending] = []
        try:
            while True:
                with self._wake:
                    while not self._queue and not self._closing:
                        self._wake.wait()
                    group, self._queue = self._queue, []
                if not group:
                    return
                self._commit(group)
        except Exception:
            log.exception("the store's writer failed; nothing can be stored until LlamaMan is restarted")
        finally:
            # Reached with something left only if the code above is wrong: nobody may wait for ever.
            with self._wake:
                self._closing = True
                left = [pending for pending in (*group, *self._queue) if not pending.done.done()]
            for pending in left:
                pending.done.set_exception(
                    StoreError("the store's writer ended; see the log, restart LlamaMan")
                )

    def _commit(self, group: Iterable[_Pending]) -> None:
        by_file: dict[str, builtins.list[_Pending]] = {}
        for pending in group:
            if pending.collection is None:
                self._answer_probe(pending)
            else:
                by_file.setdefault(layout.file_of(pending.collection), []).append(pending)
        for name, writes in by_file.items():
            self._commit_file(name, writes)

    def _commit_file(self, name: str, writes: Sequence[_Pending]) -> None:
        """Apply every write of one file, put the file on the disk, and only then publish and answer."""
        if self._read_only is not None and not self._recovered():
            self._refuse(writes)
            return
        drafts: dict[str, Draft] = {}
        outcomes: builtins.list[builtins.list[int] | LlamaManError] = []
        for pending in writes:
            assert pending.collection is not None
            draft = drafts.get(pending.collection)
            if draft is None:
                table = self._tables.get(pending.collection, Table())
                draft = drafts[pending.collection] = Draft(pending.collection, table)
            try:
                outcomes.append(draft.apply(pending.operations))
            except LlamaManError as error:
                outcomes.append(error)
        changed = {collection: draft.result() for collection, draft in drafts.items() if draft.changed}
        if changed:
            try:
                self._write_file(name, changed)
            except OSError as error:
                self._fail(self._directory / name, error)
                # A conflict with a write of the same group that now did not happen would be untrue.
                self._refuse(writes)
                return
            self._tables = {**self._tables, **changed}
        for pending, outcome in zip(writes, outcomes, strict=True):
            if isinstance(outcome, LlamaManError):
                pending.done.set_exception(outcome)
            else:
                pending.done.set_result(outcome)

    def _write_file(self, name: str, changed: dict[str, Table]) -> None:
        tables = {
            collection: table
            for collection, table in self._tables.items()
            if layout.file_of(collection) == name
        }
        data = codec.encode(name, {**tables, **changed})
        replace(self._files, self._directory / name, data, keep=name in self._present)
        self._present.add(name)
        if name not in self._listed:
            try:
                self._list_file(name)
            except OSError as error:
                # The write itself is durable and its file is found by its head; the next write tries again.
                log.warning("could not list %s in %s: %s", name, layout.MANIFEST, error.strerror)

    def _list_file(self, name: str) -> None:
        """Remember that ``name`` must exist from now on. A crash before this line finds it by its head."""
        listed = self._listed | {name}
        draft = Draft("files", Table())
        draft.apply([Write(file, "{}", None) for file in sorted(listed)])
        data = codec.encode(layout.MANIFEST, {"files": draft.result()})
        replace(self._files, self._directory / layout.MANIFEST, data, keep=bool(self._listed))
        self._listed = listed

    def _create_first_files(self) -> None:
        missing = sorted(self._present - self._listed)
        try:
            if layout.USERS not in self._present:
                self._write_file(layout.USERS, {"users": Table()})
            for name in missing:
                self._list_file(name)
        except OSError as error:
            raise StoreReadOnly(
                f"cannot write to {self._directory}: {error.strerror}; free space or mount it writable"
            ) from error

    # --- read-only mode -------------------------------------------------------------------------------

    def _fail(self, path: Path, error: OSError) -> None:
        self._read_only = f"{path}: {error.strerror or error}"
        self._probed_at = self._clock()
        log.error("write failed, the store is read-only until one works again: %s", self._read_only)

    def _refuse(self, writes: Iterable[_Pending]) -> None:
        for pending in writes:
            pending.done.set_exception(
                StoreReadOnly(
                    "nothing was changed: the data directory cannot be written; free disk space or repair "
                    "it, writing is tried again by itself",
                    detail=self._read_only,
                    retry_after=5,
                )
            )

    def _recovered(self) -> bool:
        return self._clock() - self._probed_at >= PROBE_EVERY_S and self._try_write()

    def _answer_probe(self, pending: _Pending) -> None:
        if self._try_write():
            pending.done.set_result([])
        else:
            self._refuse([pending])

    def _try_write(self) -> bool:
        path = self._directory / ".probe"
        self._probed_at = self._clock()
        try:
            replace(self._files, path, b"LlamaMan tests here whether it can write.\n", keep=False)
        except OSError as error:
            if self._read_only is None:
                self._fail(path, error)
            return False
        with contextlib.suppress(OSError):
            self._files.unlink(path)
        if self._read_only is not None:
            log.warning(
                "a test write worked: the store takes writes again (it was read-only: %s)", self._read_only
            )
            self._read_only = None
        return True


def _prepare(collection: str, operation: Operation) -> Write | Delete:
    """Check a write and turn its value into text in the caller's thread, so that the writer only writes."""
    key = operation.key
    if not isinstance(key, str) or not 0 < len(key) <= KEY_LIMIT or "\0" in key:
        raise InvalidField(
            "key", f"a key in {collection!r} must have 1 to {KEY_LIMIT} characters, none of them NUL"
        )
    if isinstance(operation, Delete):
        return operation
    try:
        return Write(key, codec.dump(operation.value), operation.expected)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"the value for {key!r} in {collection!r} cannot be stored as JSON: {error}"
        ) from error
