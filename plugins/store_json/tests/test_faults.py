"""A disk that fails, is full, or stops with the machine: the old state or the new one, never between."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from llamaman import Document, Put, StoreError, StoreReadOnly, VersionConflict
from llamaman_store_json import JsonStore
from llamaman_store_json.files import OsFiles
from llamaman_store_json.store import _Pending
from llamaman_store_json.table import Write

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class Crash(BaseException):
    """The machine stopped here: nothing after this call happens, not even clean-up."""


class FaultyFiles(OsFiles):
    """Counts calls that change something and raises ``error`` at call number ``at``; a Crash ever after."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.at: int | None = None
        self.error: BaseException | None = None
        self.broken_for_good = False
        self.write_at_most = 1 << 30
        self.fsynced: list[int] = []
        self.failed_fsync: list[int] = []

    def arm(self, at: int, error: BaseException, *, for_good: bool = False) -> None:
        self.calls.clear()
        self.at, self.error, self.broken_for_good = at, error, for_good

    def heal(self) -> None:
        self.at = self.error = None

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if self.at is None or self.error is None:
            return
        number = len(self.calls) - 1
        lasting = self.broken_for_good or isinstance(self.error, Crash)
        if number == self.at or (lasting and number > self.at):
            raise self.error

    def create(self, path: Path) -> int:
        self._step("create")
        return super().create(path)

    def write(self, descriptor: int, data: bytes) -> int:
        # Half a write happens before the fault, as on a disk that fills up.
        half = data[: len(data) // 2] if self.at == len(self.calls) else data
        written = super().write(descriptor, half[: self.write_at_most])
        self._step("write")
        return written

    def fsync(self, descriptor: int) -> None:
        try:
            self._step("fsync")
        except OSError:
            self.failed_fsync.append(descriptor)
            raise
        super().fsync(descriptor)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self._step("close")

    def link(self, source: Path, target: Path) -> None:
        self._step("link")
        super().link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def sync_directory(self, directory: Path) -> None:
        self._step("sync_directory")
        super().sync_directory(directory)


def values(documents: list[Document]) -> dict[str, Any]:
    """Documents as a plain mapping."""
    return {document.key: document.value for document in documents}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _calls_of_a_later_write(directory: Path) -> list[str]:
    directory.mkdir()
    files = FaultyFiles()
    store = JsonStore(directory, files)
    store.put("presets", "a", "old")
    files.calls.clear()
    store.put("presets", "a", "new")
    store.close()
    return list(files.calls)


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
def test_a_fault_at_every_file_call_is_a_507_or_a_durable_write_and_never_between(
    tmp_path: Path, for_good: bool
) -> None:
    calls = _calls_of_a_later_write(tmp_path / "count")
    refused = 0
    for at in range(len(calls)):
        directory = tmp_path / str(at)
        directory.mkdir()
        files = FaultyFiles()
        store = JsonStore(directory, files)
        store.put("presets", "a", "old")
        files.arm(at, NO_SPACE, for_good=for_good)
        try:
            store.put("presets", "a", "new")
            expected = "new"
        except StoreReadOnly:
            expected = "old"
            refused += 1
        assert values(store.list("presets")) == {"a": expected}, f"reader, fault at call {at} ({calls[at]})"
        files.heal()
        store.probe()
        store.put("presets", "b", "later")
        store.close()
        again = JsonStore(directory)
        assert values(again.list("presets")) == {"a": expected, "b": "later"}, f"call {at} ({calls[at]})"
        again.close()
    assert refused >= 5


def test_a_refused_write_is_not_on_the_disk_either(tmp_path: Path) -> None:
    calls = _calls_of_a_later_write(tmp_path / "count")
    for at, name in enumerate(calls):
        directory = tmp_path / str(at)
        directory.mkdir()
        files = FaultyFiles()
        store = JsonStore(directory, files)
        store.put("presets", "a", "old")
        files.arm(at, NO_SPACE)
        try:
            store.put("presets", "a", "new")
        except StoreReadOnly:
            again = JsonStore(directory)
            assert values(again.list("presets")) == {"a": "old"}, f"fault at call {at} ({name})"
            again.close()
        store.close()


def test_the_store_is_read_only_until_a_test_write_works(tmp_path: Path) -> None:
    files, clock = FaultyFiles(), Clock()
    store = JsonStore(tmp_path, files, clock)
    store.put("presets", "a", "old")
    files.arm(0, NO_SPACE, for_good=True)
    with pytest.raises(StoreReadOnly, match="nothing was changed") as refusal:
        store.put("presets", "a", "new")
    assert refusal.value.status == 507
    assert "No space left" in (refusal.value.detail or "")
    files.heal()
    with pytest.raises(StoreReadOnly):
        store.put("settings", "a", "too early: nothing has tried to write since")
    clock.now += 2
    store.put("presets", "a", "new")
    assert values(store.list("presets")) == {"a": "new"}
    store.close()


def test_the_probe_says_no_while_the_disk_is_full_and_ends_read_only_mode_when_it_is_not(
    tmp_path: Path,
) -> None:
    files, clock = FaultyFiles(), Clock()
    store = JsonStore(tmp_path, files, clock)
    files.arm(0, NO_SPACE, for_good=True)
    with pytest.raises(StoreReadOnly):
        store.probe()
    files.heal()
    store.probe()
    store.put("presets", "a", 1)
    store.close()


def test_a_failed_fsync_is_never_repeated_on_the_same_file(tmp_path: Path) -> None:
    class OneFsyncEach(FaultyFiles):
        def __init__(self) -> None:
            super().__init__()
            self.fsync_after_failure: list[int] = []

        def create(self, path: Path) -> int:
            descriptor = super().create(path)
            if descriptor in self.failed_fsync:
                self.failed_fsync.remove(descriptor)  # the number is used again for a new file
            return descriptor

        def fsync(self, descriptor: int) -> None:
            if descriptor in self.failed_fsync:
                self.fsync_after_failure.append(descriptor)
            super().fsync(descriptor)

    files, clock = OneFsyncEach(), Clock()
    store = JsonStore(tmp_path, files, clock)
    store.put("presets", "a", "old")
    first_fsync = _calls_of_a_later_write(tmp_path / "count").index("fsync")
    files.arm(first_fsync, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StoreReadOnly):
        store.put("presets", "a", "new")
    clock.now += 2
    store.put("presets", "a", "newer")
    assert files.fsync_after_failure == []
    assert files.calls.count("fsync") == 3, "the failed one, the test write, the new file"
    store.close()


def test_conflicts_with_a_write_that_did_not_happen_are_not_reported_as_conflicts(tmp_path: Path) -> None:
    """Two creators in one group: when the disk fails, neither exists and neither has lost."""
    files = FaultyFiles()
    store = JsonStore(tmp_path, files)
    store.put("presets", "x", 1)
    files.arm(0, NO_SPACE, for_good=True)
    errors = _outcomes_of_two_creators(store)
    assert [type(error) for error in errors] == [StoreReadOnly, StoreReadOnly]
    store.close()


def _outcomes_of_two_creators(store: JsonStore) -> list[BaseException]:
    group = [_Pending("users", (Write("admin", "1", 0),)), _Pending("users", (Write("admin", "2", 0),))]
    store._commit(group)
    return [error for pending in group if (error := pending.done.exception()) is not None]


def test_writes_that_come_together_share_one_fsync_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    files = FaultyFiles()
    store = JsonStore(tmp_path, files)
    store.put("users", "x", 1)
    files.calls.clear()
    group = [_Pending("users", (Write("admin", str(number), 0),)) for number in range(10)]
    group += [_Pending("users", (Write(f"u{number}", "1", None),)) for number in range(10)]
    store._commit(group)
    assert files.calls.count("fsync") == 1
    assert isinstance(group[1].done.exception(), VersionConflict)
    assert group[0].done.result()[0] > 0
    assert len(store.list("users")) == 12
    store.close()


def test_a_disk_that_writes_in_small_pieces_stores_everything(tmp_path: Path) -> None:
    files = FaultyFiles()
    files.write_at_most = 7
    store = JsonStore(tmp_path, files)
    store.put("presets", "a", "x" * 500)
    store.close()
    again = JsonStore(tmp_path)
    assert values(again.list("presets")) == {"a": "x" * 500}
    again.close()


def test_a_file_system_without_hard_links_keeps_the_previous_generation_too(tmp_path: Path) -> None:
    class NoLinks(OsFiles):
        def link(self, source: Path, target: Path) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

    store = JsonStore(tmp_path, NoLinks())
    store.put("presets", "a", "first")
    store.put("presets", "a", "second")
    store.close()
    assert b'"first"' in (tmp_path / "presets.json.prev").read_bytes()


def test_a_directory_that_cannot_be_written_at_first_start_says_so(tmp_path: Path) -> None:
    files = FaultyFiles()
    files.arm(0, OSError(errno.EROFS, "Read-only file system"), for_good=True)
    with pytest.raises(StoreReadOnly, match="Read-only file system"):
        JsonStore(tmp_path, files)


def test_a_value_that_breaks_the_writer_fails_that_write_and_is_not_waited_for_for_ever(
    tmp_path: Path,
) -> None:
    class Broken(OsFiles):
        broken = False

        def create(self, path: Path) -> int:
            if self.broken:
                raise MemoryError
            return super().create(path)

    files = Broken()
    store = JsonStore(tmp_path, files)
    files.broken = True
    with pytest.raises(StoreError, match="writer ended"):
        store.put("presets", "a", 1)
    store.close()


# --- the machine stops ---

OLD = {"a": "old", "b": "old"}
NEW = {"a": "new", "b": "new"}


def _write(store: JsonStore, collection: str, state: dict[str, str]) -> None:
    store.batch(collection, [Put(key, value) for key, value in state.items()])


def _calls_of_one_write(directory: Path, first: bool) -> list[str]:
    directory.mkdir()
    files = FaultyFiles()
    store = JsonStore(directory, files)
    if not first:
        _write(store, "presets", OLD)
    files.calls.clear()
    _write(store, "presets", NEW)
    store.close()
    return list(files.calls)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("first", [True, False], ids=["first-write", "later-write"])
def test_a_crash_at_every_file_call_leaves_the_old_or_the_new_state(tmp_path: Path, first: bool) -> None:
    calls = _calls_of_one_write(tmp_path / "count", first)
    assert {"create", "write", "fsync", "rename", "sync_directory"} <= set(calls)
    seen = set()
    for at in range(len(calls)):
        directory = tmp_path / str(at)
        directory.mkdir()
        files = FaultyFiles()
        store = JsonStore(directory, files)
        if not first:
            _write(store, "presets", OLD)
        files.arm(at, Crash())
        with pytest.raises(StoreError):
            _write(store, "presets", NEW)
        again = JsonStore(directory)
        state = values(again.list("presets"))
        assert state in ({} if first else OLD, NEW), f"a mix after a crash at call {at} ({calls[at]})"
        seen.add(str(state))
        _write(again, "presets", {"c": "later"})
        again.close()
        assert not [name for name in os.listdir(directory) if name.endswith(".tmp")]
    assert len(seen) == 2, "the crash points must fall on both sides of the rename"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crash_while_a_data_directory_is_made_never_needs_repair(tmp_path: Path) -> None:
    probe = FaultyFiles()
    (tmp_path / "count").mkdir()
    JsonStore(tmp_path / "count", probe).close()
    for at in range(len(probe.calls)):
        directory = tmp_path / str(at)
        directory.mkdir()
        files = FaultyFiles()
        files.arm(at, Crash())
        with pytest.raises(Crash):
            JsonStore(directory, files)
        store = JsonStore(directory)
        assert store.list("users") == []
        store.close()
