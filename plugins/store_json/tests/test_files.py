"""The files: their names, modes and form, and what a start does with files that cannot be trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamaman import ConfigError, Document, InvalidRequest, StorageConfig, StoreCorrupt
from llamaman_store_json import JsonStore, storage
from llamaman_store_json.codec import encode
from llamaman_store_json.files import OsFiles
from llamaman_store_json.table import Entry, Table

COLLECTIONS = (
    "instances",
    "downloads",
    "presets",
    "users",
    "settings",
    "api_keys",
    "sessions",
    "notes.recent",
)
FILES = ("state.json", "presets.json", "users.json", "settings.json", "api_keys.json", "sessions.json")


def values(documents: list[Document]) -> dict[str, Any]:
    """Documents as a plain mapping."""
    return {document.key: document.value for document in documents}


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    store = JsonStore(tmp_path)
    for collection in COLLECTIONS:
        store.put(collection, "a", {"of": collection})
        store.put(collection, "a", {"of": collection, "again": True})
    store.close()
    return tmp_path


def test_the_hook_opens_the_store_in_the_data_directory(tmp_path: Path) -> None:
    store = storage(StorageConfig(tmp_path, "n1"))
    store.put("presets", "a", 1)
    store.close()
    assert (tmp_path / "presets.json").exists()


def test_collections_live_in_the_documented_files(filled: Path) -> None:
    assert {*FILES, "notes.recent.json", "store.json"} == {
        n for n in os.listdir(filled) if n.endswith(".json")
    }
    state = json.loads((filled / "state.json").read_bytes())
    assert set(state["collections"]) == {"instances", "downloads"}


def test_a_file_says_format_collection_revision_and_checksum(filled: Path) -> None:
    document = json.loads((filled / "presets.json").read_bytes())
    assert document["format"] == 1
    assert document["file"] == "presets.json"
    assert len(document["sha256"]) == 64
    assert document["collections"]["presets"]["revision"] == 2
    assert document["collections"]["presets"]["documents"]["a"]["version"] == 2


def test_files_are_private_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = JsonStore(tmp_path)
        store.put("presets", "a", 1)
        store.put("presets", "a", 2)
        store.close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)} == {0o600}


def test_the_previous_generation_is_kept_beside(filled: Path) -> None:
    previous = json.loads((filled / "presets.json.prev").read_bytes())
    assert previous["collections"]["presets"]["documents"]["a"]["value"] == {"of": "presets"}


def test_temporaries_of_an_interrupted_write_are_removed_at_open(filled: Path) -> None:
    (filled / "presets.json.tmp").write_bytes(b"half")
    (filled / "users.json.prev.tmp").write_bytes(b"half")
    JsonStore(filled).close()
    assert not [name for name in os.listdir(filled) if name.endswith(".tmp")]


def test_a_link_planted_in_place_of_the_temporary_is_not_followed(filled: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    store = JsonStore(filled)
    (filled / "presets.json.tmp").symlink_to(victim)
    store.put("presets", "a", 3)
    store.close()
    assert victim.read_text() == "precious"


def test_a_new_file_is_never_an_old_one_or_a_link(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("old", "link"):
        with pytest.raises(FileExistsError):
            OsFiles().create(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _flip_in_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] = ord("0") if data[20] != ord("0") else ord("1")
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    path.write_text('{"instances": [], "downloads": []}')


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("name", [*FILES, "notes.recent.json", "store.json"])
@pytest.mark.parametrize("damage", [_truncate, _zero, _empty, _flip, _flip_in_checksum, _foreign, _link])
def test_a_damaged_file_stops_the_start_and_is_left_alone(
    filled: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(filled / name)
    before = (filled / name).read_bytes()
    with pytest.raises(StoreCorrupt) as refusal:
        JsonStore(filled)
    assert refusal.value.exit_status == 78
    assert str(filled / name) in refusal.value.message
    assert ".prev" in refusal.value.message
    assert (filled / name).read_bytes() == before


@pytest.mark.parametrize("name", [*FILES, "notes.recent.json"])
def test_a_missing_file_stops_the_start(filled: Path, name: str) -> None:
    (filled / name).unlink()
    with pytest.raises(StoreCorrupt, match=r"it is missing") as refusal:
        JsonStore(filled)
    assert str(filled / name) in refusal.value.message
    assert not (filled / name).exists()


def test_missing_users_are_not_a_first_run_even_when_the_list_of_files_is_gone_too(filled: Path) -> None:
    (filled / "users.json").unlink()
    (filled / "store.json").unlink()
    with pytest.raises(StoreCorrupt, match=r"users\.json.*missing"):
        JsonStore(filled)


def test_a_lost_list_of_files_is_written_again(filled: Path) -> None:
    (filled / "store.json").unlink()
    JsonStore(filled).close()
    (filled / "notes.recent.json").unlink()
    with pytest.raises(StoreCorrupt):
        JsonStore(filled)


def test_users_exist_from_the_first_start_on(tmp_path: Path) -> None:
    JsonStore(tmp_path).close()
    assert (tmp_path / "users.json").exists()


def test_the_way_back_warns_where_the_previous_generation_may_open_a_door(filled: Path) -> None:
    for name, warns in (("api_keys.json", True), ("presets.json", False)):
        data = (filled / name).read_bytes()
        _truncate(filled / name)
        with pytest.raises(StoreCorrupt) as refusal:
            JsonStore(filled)
        assert ("revoked" in refusal.value.message) is warns
        (filled / name).write_bytes(data)


def test_the_named_way_back_works(filled: Path) -> None:
    _truncate(filled / "presets.json")
    (filled / "presets.json").write_bytes((filled / "presets.json.prev").read_bytes())
    store = JsonStore(filled)
    assert values(store.list("presets")) == {"a": {"of": "presets"}}
    store.close()


def test_one_file_in_the_place_of_another_is_recognised(filled: Path) -> None:
    (filled / "users.json").write_bytes((filled / "presets.json").read_bytes())
    with pytest.raises(StoreCorrupt, match=r"presets\.json"):
        JsonStore(filled)


def test_a_newer_format_is_refused_by_naming_the_version_that_wrote_it(filled: Path) -> None:
    path = filled / "presets.json"
    text = path.read_text().replace('"format": 1', '"format": 7').replace("llamaman 0.", "llamaman 9.")
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"format 7.*llamaman 9\.") as refusal:
        JsonStore(filled)
    assert refusal.value.exit_status == 78


def test_other_json_files_in_the_directory_are_none_of_our_business(filled: Path) -> None:
    (filled / "install.json").write_text('{"node": "n1"}')
    JsonStore(filled).close()
    assert (filled / "install.json").read_text() == '{"node": "n1"}'


@pytest.mark.parametrize("name", ["", "Users", "a/b", "../x", "state", "store", "install", "a" * 65])
def test_a_collection_that_cannot_be_a_file_is_refused(filled: Path, name: str) -> None:
    store = JsonStore(filled)
    with pytest.raises(InvalidRequest):
        store.put(name, "a", 1)
    with pytest.raises(InvalidRequest):
        store.list(name)
    store.close()


def test_documents_are_one_per_line() -> None:
    table = Table(2, {"a": Entry(1, "1"), "b": Entry(2, '"x"')})
    assert b'"a": {"version": 1, "value": 1},\n' in encode("presets.json", {"presets": table})
