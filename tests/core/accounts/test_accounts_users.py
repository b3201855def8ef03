"""Users: who they are, how they are stored, and that they are never made anew over existing state."""

from __future__ import annotations

import threading

import pytest

from llamaman.access import Role
from llamaman.core.accounts.user_record import checked_user_name, from_document, to_document, user_id
from llamaman.core.accounts.user_rules import new_user, refuse_no_admin, renewed
from llamaman.core.accounts.users import COLLECTION, MARKER, Change, StoredUsers, Users
from llamaman.errors import Conflict, InvalidField, NotFound, StoreCorrupt, StoreReadOnly
from llamaman.limits import USER_NAME

from .people import GOOD_HASH, FillingStore, House, add_user

OTHER_STATE = ["instances", "downloads", "presets", "settings", "api_keys", "sessions"]

# --- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ann", "Ann O'Neil", "änne@example.org", "李雷", "x" * USER_NAME, "a.b", "..."]
)
def test_names_of_people_are_taken_as_they_are(name: str) -> None:
    assert checked_user_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        " ann",
        "ann ",
        "\u3000ann",
        "x" * (USER_NAME + 1),
        "\ufdfa" * 100,
        "a/b",
        "a\\b",
        "\uff0fetc",
        ".",
        "..",
        "a\x00b",
        "a\nb",
        "a\x1b[31m",
        "a\u202eb",
        "a\u2066b",
        "a\u200bb",
        "a\u200db",
        "\ufeffann",
        "ann\u3164",
        "ann\ufe0f",
        "\ud800",
        "a\u2028b",
        "a\ue000",
        None,
        7,
        ["ann"],
    ],
)
def test_names_that_deceive_or_break_a_url_are_refused(name: object) -> None:
    with pytest.raises(InvalidField) as caught:
        checked_user_name(name)
    assert caught.value.field == "name"


@pytest.mark.parametrize(
    ("one", "other"),
    [("Admin", "admin"), ("ADMIN", "\uff41dmin"), ("STRASSE", "straße"), ("\u212b", "å"), ("ﬁ", "FI")],
)
def test_names_that_read_the_same_are_one_user(one: str, other: str) -> None:
    assert user_id(one) == user_id(other)


def test_an_id_is_its_own_id() -> None:
    for name in ("Admin", "\u212b", "ﬁ", "İ", "\u1e9e", "\u03d2\u0301"):
        assert user_id(user_id(name)) == user_id(name)


# --- records -------------------------------------------------------------------------------------------


def test_a_user_comes_back_from_the_store_as_it_was() -> None:
    stored = new_user("Änne", GOOD_HASH, Role.MANAGER, created_by="key:ci", now=5.0)
    assert from_document(to_document(stored)) == stored


def test_a_record_shows_neither_hash_nor_generation(house: House) -> None:
    stored = house.add("ann")
    for shown in (repr(stored), repr(stored.user), repr(house.accounts.users.list())):
        assert GOOD_HASH not in shown
        assert stored.generation not in shown


def test_a_user_is_found_in_any_spelling(house: House) -> None:
    house.add("Ann")
    assert house.accounts.users.get("ANN").name == "Ann"
    with pytest.raises(NotFound, match="bob"):
        house.accounts.users.get("bob")


def test_users_are_listed_oldest_first(house: House) -> None:
    for name in ("c", "a", "b"):
        house.clock.now += 1
        house.add(name)
    assert [user.name for user in house.accounts.users.list()] == ["c", "a", "b"]


# --- one change at a time ------------------------------------------------------------------------------


def test_whatever_is_decided_holds_although_another_node_writes_at_the_same_time(house: House) -> None:
    """Two administrators, each deleted at another node at the same moment: one of them stays."""
    for name in ("ann", "bob"):
        house.add(name)
    other = house.node()

    def delete(users: Users, name: str) -> None:
        def decide(known: StoredUsers) -> list[Change]:
            refuse_no_admin(known[name], None, known)
            return [name]

        users.commit(decide)

    house.store.meanwhile = lambda: delete(other.users, "bob")
    with pytest.raises(Conflict, match="last administrator"):
        delete(house.accounts.users, "ann")
    assert [user.name for user in house.node().users.list()] == ["ann"]


def test_a_change_that_could_not_be_stored_is_not_made(house: House) -> None:
    stored = house.add("ann")
    house.store.full = True
    with pytest.raises(StoreReadOnly):
        house.accounts.users.commit(lambda _: [renewed(stored, now=1.0, disabled=True)])
    assert not house.accounts.users.get("ann").disabled


def test_a_change_that_always_meets_another_one_gives_up(house: House) -> None:
    house.add("ann")

    def once() -> None:
        house.store.put(COLLECTION, MARKER, {"had_user": True})

    def always(_: StoredUsers) -> list[Change]:
        house.store.meanwhile = once
        return ["nobody"]

    with pytest.raises(Conflict, match="try again"):
        house.accounts.users.commit(always)


def test_users_of_another_node_are_known_after_a_refresh(house: House) -> None:
    other = house.node()
    house.add("ann")
    assert not other.users.exists()
    other.refresh()
    assert other.users.exists()


# --- missing and corrupt -------------------------------------------------------------------------------


def test_a_first_boot_leaves_a_marker_and_a_second_one_finds_it(store: FillingStore) -> None:
    Users(store)
    assert [document.key for document in store.list(COLLECTION)] == [MARKER]
    store.put("instances", "i", {})
    assert not Users(store).exists(), "everything after the marker is no sign of a loss"


@pytest.mark.parametrize("collection", OTHER_STATE)
def test_missing_users_beside_other_state_stop_the_boot(store: FillingStore, collection: str) -> None:
    store.put(collection, "x", {})
    with pytest.raises(StoreCorrupt, match=rf"'users'.*'{collection}'.*DATA_DIR.*backup") as caught:
        Users(store)
    assert caught.value.exit_status == 78
    assert store.list(COLLECTION) == []


def test_users_that_were_there_once_and_are_gone_stop_the_boot(store: FillingStore) -> None:
    add_user(Users(store), "ann")
    store.delete(COLLECTION, "user/ann")
    with pytest.raises(StoreCorrupt, match="lost its users"):
        Users(store)


def test_users_that_vanish_while_running_are_not_taken_for_a_first_run(house: House) -> None:
    house.add("ann")
    for document in house.store.list(COLLECTION):
        house.store.delete(COLLECTION, document.key)
    with pytest.raises(StoreCorrupt, match="lost its users"):
        house.accounts.refresh()
    assert house.accounts.users.exists()
    assert house.store.list(COLLECTION) == []


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        [],
        {},
        {"name": "ann"},
        *(
            {**to_document(new_user("ann", GOOD_HASH, Role.ADMIN, created_by="", now=1.0)), field: bad}
            for field, bad in [
                ("role", "root"),
                ("role", None),
                ("disabled", "no"),
                ("disabled", 0),
                ("password_hash", ""),
                ("password_hash", None),
                ("generation", ""),
                ("created", "yesterday"),
                ("created", None),
                ("name", "bob"),
                ("name", 7),
            ]
        ),
    ],
)
def test_a_user_that_cannot_be_read_stops_the_boot(store: FillingStore, value: object) -> None:
    add_user(Users(store), "zoe")
    store.put(COLLECTION, "user/ann", value)
    with pytest.raises(StoreCorrupt, match="user/ann") as caught:
        Users(store)
    assert GOOD_HASH not in caught.value.message


def test_a_marker_that_cannot_be_read_counts_as_one_of_an_installation_with_users(
    store: FillingStore,
) -> None:
    store.put(COLLECTION, MARKER, "nonsense")
    with pytest.raises(StoreCorrupt):
        Users(store)


def test_users_without_their_marker_are_kept_and_marked(store: FillingStore) -> None:
    add_user(Users(store), "ann")
    store.delete(COLLECTION, MARKER)
    assert Users(store).exists()
    store.delete(COLLECTION, "user/ann")
    with pytest.raises(StoreCorrupt):
        Users(store)


def test_two_nodes_that_boot_first_at_once_agree_on_one_marker(store: FillingStore) -> None:
    found: list[Users] = []
    threads = [threading.Thread(target=lambda: found.append(Users(store))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(store.list(COLLECTION)) == 1
    add_user(found[3], "ann")
