"""What every storage driver must do. Inherit :class:`StoreContract` and provide ``open_store``.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path):
            return lambda: MyStore(tmp_path)

``open_store`` opens the same data every time it is called. A driver that may be opened several times at once
(a database) also overrides ``second_handle``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llamaman.core.store import Delete, Put, Store
from llamaman.errors import InvalidRequest, StoreError, VersionConflict

OpenStore = Callable[[], Store]

WRITERS = 8
ROUNDS = 25


class StoreContract:
    """The contract suite; every test gets an empty store."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        raise NotImplementedError("provide a fixture open_store that opens the same data at every call")

    @pytest.fixture
    def store(self, open_store: OpenStore) -> Iterator[Store]:
        store = open_store()
        yield store
        store.close()

    @pytest.fixture
    def second_handle(self, store: Store) -> Store:
        """Another way to the same data; a driver for one process gives the same object."""
        return store

    # --- documents ------------------------------------------------------------------------------------

    def test_what_was_put_is_read_back(self, store: Store) -> None:
        value = {
            "text": "ä \U0001f999 \ud800 \x00 \u2028",
            "n": [1, 2.5, None, True],
            "deep": {"a": {"b": []}},
        }
        version = store.put("presets", "/models/ä b.gguf", value)
        document = store.get("presets", "/models/ä b.gguf")
        assert document is not None
        assert (document.key, document.version, document.value) == ("/models/ä b.gguf", version, value)

    def test_an_empty_store_is_a_store(self, store: Store) -> None:
        assert bool(store)
        assert isinstance(store, Store)
        assert store.get("presets", "missing") is None
        assert store.list("presets") == []

    def test_collections_do_not_share_keys(self, store: Store) -> None:
        store.put("presets", "a", 1)
        store.put("settings", "a", 2)
        assert [document.value for document in store.list("presets")] == [1]
        assert [document.value for document in store.list("settings")] == [2]

    def test_collections_that_are_kept_together_do_not_share_keys(self, store: Store) -> None:
        store.put("instances", "a", 1)
        store.put("downloads", "a", 2)
        assert store.delete("instances", "a")
        assert [document.value for document in store.list("downloads")] == [2]

    def test_keys_differing_in_case_or_trailing_space_are_different_keys(self, store: Store) -> None:
        for key in ("Admin", "admin", "admin ", "ADMIN"):
            store.put("users", key, key, expected=0)
        assert [document.key for document in store.list("users")] == sorted(
            ["Admin", "admin", "admin ", "ADMIN"]
        )

    def test_the_list_is_sorted_by_key(self, store: Store) -> None:
        for key in ("b", "c", "a"):
            store.put("presets", key, key)
        assert [document.key for document in store.list("presets")] == ["a", "b", "c"]

    def test_what_a_reader_does_to_a_value_changes_nothing_stored(self, store: Store) -> None:
        given: dict[str, Any] = {"list": [1]}
        store.put("presets", "a", given)
        given["list"].append(2)
        first = store.get("presets", "a")
        assert first is not None
        first.value["list"].append(3)
        again = store.get("presets", "a")
        assert again is not None
        assert again.value == {"list": [1]}

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes", {"a": {1, 2}}])
    def test_what_json_cannot_say_is_refused_and_nothing_is_written(
        self, store: Store, value: object
    ) -> None:
        store.put("presets", "a", "before")
        with pytest.raises(InvalidRequest):
            store.batch("presets", [Put("a", "after"), Put("b", value)])
        assert [document.value for document in store.list("presets")] == ["before"]

    @pytest.mark.parametrize("key", ["", "x" * 1025, "a\0b"])
    def test_an_impossible_key_is_refused(self, store: Store, key: str) -> None:
        with pytest.raises(InvalidRequest):
            store.put("presets", key, 1)

    def test_long_keys_are_told_apart_by_their_last_character(self, store: Store) -> None:
        store.put("presets", "x" * 1023 + "a", "a")
        store.put("presets", "x" * 1023 + "b", "b")
        document = store.get("presets", "x" * 1023 + "a")
        assert document is not None
        assert document.value == "a"

    # --- versions -------------------------------------------------------------------------------------

    def test_versions_grow(self, store: Store) -> None:
        first = store.put("presets", "a", 1)
        second = store.put("presets", "a", 2, expected=first)
        assert 0 < first < second

    def test_a_write_that_expected_another_version_changes_nothing(self, store: Store) -> None:
        first = store.put("presets", "a", 1)
        store.put("presets", "a", 2)
        with pytest.raises(VersionConflict):
            store.put("presets", "a", 3, expected=first)
        with pytest.raises(VersionConflict):
            store.delete("presets", "a", expected=first)
        document = store.get("presets", "a")
        assert document is not None
        assert document.value == 2

    def test_expecting_nothing_creates_once(self, store: Store) -> None:
        store.put("users", "admin", 1, expected=0)
        with pytest.raises(VersionConflict):
            store.put("users", "admin", 2, expected=0)

    def test_expecting_something_that_is_gone_is_a_conflict(self, store: Store) -> None:
        version = store.put("users", "admin", 1)
        store.delete("users", "admin")
        with pytest.raises(VersionConflict):
            store.put("users", "admin", 2, expected=version)

    def test_a_recreated_document_never_has_an_old_version(self, store: Store) -> None:
        first = store.put("presets", "a", 1)
        store.delete("presets", "a")
        assert store.put("presets", "a", 2) > first

    def test_delete_says_whether_there_was_something(self, store: Store) -> None:
        store.put("presets", "a", 1)
        assert store.delete("presets", "a") is True
        assert store.delete("presets", "a") is False
        assert store.get("presets", "a") is None

    # --- batches --------------------------------------------------------------------------------------

    def test_a_batch_happens_whole(self, store: Store) -> None:
        version = store.put("presets", "old", 1)
        versions = store.batch("presets", [Put("new", 2, 0), Delete("old", version), Delete("missing")])
        assert [document.key for document in store.list("presets")] == ["new"]
        assert versions[0] > version
        assert versions[1] > 0
        assert versions[2] == 0

    def test_a_batch_with_one_conflict_does_nothing(self, store: Store) -> None:
        store.put("presets", "a", 1)
        with pytest.raises(VersionConflict):
            store.batch("presets", [Put("b", 2), Delete("a"), Put("c", 3, expected=7)])
        assert [(document.key, document.value) for document in store.list("presets")] == [("a", 1)]

    def test_a_batch_naming_a_key_twice_is_refused(self, store: Store) -> None:
        with pytest.raises(InvalidRequest):
            store.batch("presets", [Put("a", 1), Delete("a")])
        assert store.list("presets") == []

    def test_an_empty_batch_is_nothing(self, store: Store) -> None:
        assert list(store.batch("presets", [])) == []

    # --- interleaved writers --------------------------------------------------------------------------

    def test_writers_that_compare_and_set_lose_no_update(self, store: Store, second_handle: Store) -> None:
        store.put("settings", "counter", 0)

        def add(handle: Store) -> None:
            done = 0
            while done < ROUNDS:
                document = handle.get("settings", "counter")
                assert document is not None
                try:
                    handle.put("settings", "counter", document.value + 1, expected=document.version)
                except VersionConflict:
                    continue
                done += 1

        _together([lambda: add(store)] * (WRITERS // 2) + [lambda: add(second_handle)] * (WRITERS // 2))
        document = store.get("settings", "counter")
        assert document is not None
        assert document.value == WRITERS * ROUNDS

    def test_of_many_creators_exactly_one_wins(self, store: Store, second_handle: Store) -> None:
        won: list[int] = []

        def create(handle: Store, number: int) -> None:
            try:
                handle.put("users", "admin", number, expected=0)
            except VersionConflict:
                return
            won.append(number)

        handles = [store, second_handle] * (WRITERS // 2)
        _together([lambda h=handle, n=number: create(h, n) for number, handle in enumerate(handles)])  # type: ignore[misc] # mypy cannot infer a lambda's defaults
        document = store.get("users", "admin")
        assert document is not None
        assert won == [document.value]

    def test_interleaved_batches_are_seen_whole(self, store: Store, second_handle: Store) -> None:
        stop = threading.Event()
        torn: list[object] = []

        def write(handle: Store, name: str) -> None:
            for number in range(ROUNDS):
                handle.batch("presets", [Put("left", [name, number]), Put("right", [name, number])])

        def read() -> None:
            while not stop.is_set():
                values = [document.value for document in second_handle.list("presets")]
                if len(values) == 1 or (values and values[0] != values[1]):
                    torn.append(values)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            _together([lambda: write(store, "one"), lambda: write(second_handle, "two")])
        finally:
            stop.set()
            reader.join()
        assert torn == []

    def test_writers_to_different_collections_do_not_disturb_one_another(self, store: Store) -> None:
        names = ["instances", "downloads", "presets", "settings"]

        def write(name: str) -> None:
            for number in range(ROUNDS):
                store.put(name, str(number), number)

        _together([lambda n=name: write(n) for name in names])  # type: ignore[misc] # mypy cannot infer a lambda's defaults
        assert {name: len(store.list(name)) for name in names} == dict.fromkeys(names, ROUNDS)

    # --- watching -------------------------------------------------------------------------------------

    def test_watching_from_nothing_gives_everything(self, store: Store) -> None:
        store.put("presets", "a", 1)
        changes = store.watch("presets", 0)
        assert changes.resync
        assert [document.key for document in changes.changed] == ["a"]

    def test_watching_gives_what_changed_and_what_went(self, store: Store, second_handle: Store) -> None:
        for key in ("a", "b", "c"):
            store.put("presets", key, 1)
        seen = store.watch("presets", 0).revision
        second_handle.put("presets", "b", 2)
        second_handle.delete("presets", "a")
        second_handle.put("presets", "d", 1)
        changes = store.watch("presets", seen)
        assert not changes.resync
        assert [(document.key, document.value) for document in changes.changed] == [("b", 2), ("d", 1)]
        assert changes.deleted == ("a",)
        after = store.watch("presets", changes.revision)
        assert (after.changed, after.deleted, after.resync) == ((), (), False)

    def test_a_key_that_came_back_is_changed_and_not_deleted(self, store: Store) -> None:
        store.put("presets", "a", 1)
        seen = store.watch("presets", 0).revision
        store.delete("presets", "a")
        store.put("presets", "a", 2)
        changes = store.watch("presets", seen)
        assert [document.value for document in changes.changed] == [2]
        assert changes.deleted == ()

    def test_a_watcher_from_the_future_gets_everything_again(self, store: Store) -> None:
        store.put("presets", "a", 1)
        assert store.watch("presets", store.watch("presets", 0).revision + 1000).resync

    def test_a_watcher_too_far_behind_gets_everything_again(self, store: Store) -> None:
        store.batch("presets", [Put(str(number), number) for number in range(3000)])
        seen = store.watch("presets", 0).revision
        for start in range(0, 2900, 100):
            store.batch("presets", [Delete(str(number)) for number in range(start, start + 100)])
        changes = store.watch("presets", seen)
        known = set(map(str, range(3000)))
        if changes.resync:
            known.clear()
        known = (known - set(changes.deleted)) | {document.key for document in changes.changed}
        assert known == set(map(str, range(2900, 3000)))

    # --- opening again --------------------------------------------------------------------------------

    def test_everything_is_there_after_opening_again(self, open_store: OpenStore) -> None:
        store = open_store()
        store.batch("instances", [Put("a", {"n": 1}), Put("b", {"n": 2})])
        store.put("api_keys", "k", {"hash": "x"})
        store.delete("instances", "a")
        before = [store.list("instances"), store.list("api_keys")]
        store.close()
        again = open_store()
        try:
            assert [again.list("instances"), again.list("api_keys")] == before
        finally:
            again.close()

    def test_versions_and_watchers_survive_opening_again(self, open_store: OpenStore) -> None:
        store = open_store()
        store.put("presets", "a", 1)
        version = store.put("presets", "b", 1)
        store.delete("presets", "b")
        seen = store.watch("presets", 0).revision
        store.close()
        again = open_store()
        try:
            assert again.put("presets", "b", 2) > version
            changes = again.watch("presets", seen)
            assert "b" in [document.key for document in changes.changed]
        finally:
            again.close()

    def test_a_working_store_answers_the_probe(self, store: Store) -> None:
        store.probe()
        assert store.list("presets") == []

    def test_a_closed_store_refuses_and_closes_again_in_peace(self, open_store: OpenStore) -> None:
        store = open_store()
        store.close()
        store.close()
        with pytest.raises(StoreError):
            store.put("presets", "a", 1)
        with pytest.raises(StoreError):
            store.get("presets", "a")


def _together(actions: list[Callable[[], None]]) -> None:
    """Run all at once in threads and raise what the first failing one raised."""
    errors: list[BaseException] = []
    gate = threading.Barrier(len(actions))

    def run(action: Callable[[], None]) -> None:
        gate.wait()
        try:
            action()
        except BaseException as error:  # noqa: BLE001 # carried to the test's own thread below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
