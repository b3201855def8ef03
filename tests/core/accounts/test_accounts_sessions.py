"""Sessions: one secret per login, known by its digest, ended at once and for good."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

import pytest

from llamaman.access import Role, Scope
from llamaman.core.accounts.sessions import COLLECTION, Sessions
from llamaman.core.accounts.user_rules import renewed
from llamaman.core.secrets import RootSecret
from llamaman.errors import NotFound, StoreReadOnly, Unauthorized
from llamaman.limits import SESSION_IDLE_S, SESSION_LONGEST_S, SESSIONS_PER_USER, SUDO_S
from llamaman.records import NOBODY

from .people import LOCAL, House


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it holds; fail after ten seconds."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.01)


# --- who is it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "scope"),
    [(Role.VIEWER, Scope.VIEW), (Role.MANAGER, Scope.MANAGE), (Role.ADMIN, Scope.ADMIN)],
)
def test_a_session_may_do_what_its_users_role_may(house: House, role: Role, scope: Scope) -> None:
    house.add("Ann", role)
    opened, identity = house.came_in("Ann")
    assert (identity.kind, identity.name, identity.scope, identity.models) == ("session", "Ann", scope, None)
    assert identity.session == opened.session.id
    assert identity.actor == "session:Ann"


def test_a_secret_has_256_random_bits_and_is_stored_as_its_digest_only(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    assert len(opened.secret) == 43
    digest = hashlib.sha256(opened.secret.encode()).hexdigest()
    assert opened.session.id == digest[:16]
    stored = b"".join(path.read_bytes() for path in house.data_dir.rglob("*") if path.is_file())
    assert digest.encode() in stored
    assert opened.secret.encode() not in stored


def test_neither_the_secret_nor_its_digest_is_in_a_repr(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    assert opened.secret not in repr(opened)
    assert opened.session.digest not in repr(opened)


@pytest.mark.parametrize("values", [[], ["guess"], [""], ["\ud800"], ["x" * 10_000], ["a", "b"]])
def test_cookies_that_are_no_session_are_nobody(house: House, values: list[str]) -> None:
    house.add("ann")
    house.open("ann")
    assert house.accounts.sessions.authenticate(values) is None


def test_a_planted_cookie_that_is_no_session_does_not_hide_the_good_one(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    identity = house.accounts.sessions.authenticate(["EVIL", opened.secret, opened.secret])
    assert identity is not None
    assert identity.session == opened.session.id


def test_two_live_sessions_in_one_request_both_end(house: House) -> None:
    house.add("ann")
    house.add("eve", Role.VIEWER)
    mine, planted = house.open("ann"), house.open("eve")
    ended: list[str] = []
    house.accounts.sessions.on_end(ended.append)
    with pytest.raises(Unauthorized, match="both were ended"):
        house.accounts.sessions.authenticate([planted.secret, mine.secret])
    assert sorted(ended) == sorted([mine.session.id, planted.session.id])
    for opened in (mine, planted):
        assert house.accounts.sessions.authenticate([opened.secret]) is None
    eventually(lambda: house.store.list(COLLECTION) == [])


def test_asking_who_it_is_never_waits_for_the_store(house: House) -> None:
    """While another thread holds the lock for writing, as it does during an fsync."""
    house.add("ann")
    opened, identity = house.came_in("ann")
    other = house.open("ann")
    sessions = house.accounts.sessions
    answers: list[object] = []

    def ask() -> None:
        answers.append(sessions.authenticate([opened.secret]))
        answers.append(sessions.is_live(identity))
        answers.append(sessions.csrf_token(opened.session.id))
        with pytest.raises(Unauthorized):
            sessions.authenticate([opened.secret, other.secret])

    with sessions._writing:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert len(answers) == 3


def test_a_session_is_known_after_a_restart(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    identity = house.node().sessions.authenticate([opened.secret])
    assert identity is not None
    assert identity.name == "ann"


# --- time ----------------------------------------------------------------------------------------------


def test_a_session_that_nobody_uses_ends(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    house.clock.now += SESSION_IDLE_S - 1
    assert house.accounts.sessions.authenticate([opened.secret])
    house.clock.now += SESSION_IDLE_S - 1
    assert house.accounts.sessions.authenticate([opened.secret]), "every use starts the time anew"
    house.clock.now += SESSION_IDLE_S
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    assert house.accounts.sessions.list() == ()


def test_a_session_ends_however_much_it_is_used(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    end = house.clock.now + SESSION_LONGEST_S
    while house.clock.now < end:
        assert house.accounts.sessions.authenticate([opened.secret])
        house.clock.now += SESSION_IDLE_S / 2
    assert house.accounts.sessions.authenticate([opened.secret]) is None


def test_a_session_whose_time_is_over_is_told_of_and_deleted_by_the_flush(house: House) -> None:
    house.add("ann")
    opened, identity = house.came_in("ann")
    ended: list[str] = []
    house.accounts.sessions.on_end(ended.append)
    house.clock.now += SESSION_IDLE_S
    assert not house.accounts.sessions.is_live(identity)
    house.accounts.sessions.flush()
    assert ended == [opened.session.id]
    assert house.store.list(COLLECTION) == []


def test_last_use_is_written_by_the_flush_and_not_by_requests(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    before = house.store.list(COLLECTION)
    house.clock.now += 3600
    house.accounts.sessions.authenticate([opened.secret])
    assert house.store.list(COLLECTION) == before
    assert house.accounts.sessions.list("ann")[0].last_seen == house.clock.now
    house.accounts.sessions.flush()
    assert house.node().sessions.list("ann")[0].last_seen == house.clock.now
    written = house.store.list(COLLECTION)
    house.accounts.sessions.flush()
    assert house.store.list(COLLECTION) == written, "nothing new is nothing to write"


def test_last_use_is_written_while_another_node_writes_too(house: House) -> None:
    house.add("ann")
    first, second = house.open("ann"), house.open("ann")
    other = house.node()
    house.clock.now += 60
    other.sessions.authenticate([first.secret])
    other.sessions.flush()
    house.accounts.sessions.authenticate([first.secret, "x"])
    house.accounts.sessions.authenticate([second.secret])
    house.accounts.sessions.flush()
    assert {session.last_seen for session in house.node().sessions.list()} == {house.clock.now}


# --- ending --------------------------------------------------------------------------------------------


def test_an_ended_session_is_dead_at_once_and_after_a_restart(house: House) -> None:
    house.add("ann")
    opened, identity = house.came_in("ann")
    stays = house.open("ann")
    house.accounts.sessions.end(opened.session.id, by=identity, reason="logged out")
    for sessions in (house.accounts.sessions, house.node().sessions):
        assert sessions.authenticate([opened.secret]) is None
        assert not sessions.is_live(identity)
        assert sessions.authenticate([stays.secret]) is not None
    [event] = [event for event in house.heard if event.kind == "ended"]
    assert (event.actor, event.reason) == ("session:ann", "logged out")
    with pytest.raises(NotFound, match=opened.session.id):
        house.accounts.sessions.end(opened.session.id, by=LOCAL, reason="again")


def test_all_sessions_of_a_user_end_and_no_other(house: House) -> None:
    house.add("ann")
    house.add("bob")
    anns, bobs = [house.open("ann") for _ in range(3)], house.open("bob")
    assert house.accounts.sessions.end_of_user("ann", by=LOCAL, reason="lost phone") == 3
    assert all(house.accounts.sessions.authenticate([opened.secret]) is None for opened in anns)
    assert house.accounts.sessions.authenticate([bobs.secret])


def test_subscribers_hear_of_every_end_and_a_deaf_one_does_not_hide_it(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    heard: list[str] = []

    def deaf(session_id: str) -> None:
        raise RuntimeError("deaf")

    house.accounts.sessions.on_end(deaf)
    house.accounts.sessions.on_end(heard.append)
    leave = house.accounts.sessions.on_end(lambda _: heard.append("gone"))
    leave()
    house.accounts.sessions.end(opened.session.id, by=LOCAL, reason="x")
    assert heard == [opened.session.id]


def test_a_session_ends_even_if_the_store_cannot_be_written_and_is_deleted_later(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    house.store.full = True
    with pytest.raises(StoreReadOnly):
        house.accounts.sessions.end(opened.session.id, by=LOCAL, reason="logged out")
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    house.accounts.refresh()
    assert house.accounts.sessions.authenticate([opened.secret]) is None, (
        "reading the store does not revive it"
    )
    house.store.full = False
    house.accounts.sessions.flush()
    assert house.store.list(COLLECTION) == []


def test_no_session_is_opened_that_could_not_be_stored(house: House) -> None:
    house.add("ann")
    house.store.full = True
    with pytest.raises(StoreReadOnly):
        house.open("ann")
    assert house.accounts.sessions.list() == ()


def test_a_user_has_so_many_sessions_and_the_oldest_ends_for_a_new_one(house: House) -> None:
    house.add("ann")
    house.add("bob")
    bobs = house.open("bob")
    opened = []
    for _ in range(SESSIONS_PER_USER + 1):
        house.clock.now += 1
        opened.append(house.open("ann"))
    assert len(house.accounts.sessions.list("ann")) == SESSIONS_PER_USER
    assert house.accounts.sessions.authenticate([opened[0].secret]) is None
    assert house.accounts.sessions.authenticate([opened[1].secret])
    assert house.accounts.sessions.authenticate([bobs.secret])


# --- users and other nodes -----------------------------------------------------------------------------


def test_a_session_of_a_changed_user_is_dead_with_the_one_write_of_the_user(house: House) -> None:
    """A crash between changing the user and deleting the sessions leaves nobody logged in."""
    stored = house.add("ann")
    opened, identity = house.came_in("ann")
    house.accounts.users.commit(lambda _: [renewed(stored, now=house.clock())])
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    assert not house.accounts.sessions.is_live(identity)
    assert house.node().sessions.authenticate([opened.secret]) is None


def test_a_session_ended_at_another_node_ends_here_with_the_next_refresh(house: House) -> None:
    house.add("ann")
    opened, identity = house.came_in("ann")
    ended: list[str] = []
    house.accounts.sessions.on_end(ended.append)
    house.node().sessions.end(opened.session.id, by=LOCAL, reason="x")
    house.accounts.refresh()
    assert ended == [opened.session.id]
    assert not house.accounts.sessions.is_live(identity)


def test_a_user_disabled_at_another_node_is_out_here_with_the_next_refresh(house: House) -> None:
    house.add("ann")
    house.add("bob", Role.MANAGER)
    opened, _ = house.came_in("bob")
    ended: list[str] = []
    house.accounts.sessions.on_end(ended.append)
    house.node().change_user("bob", disabled=True, by=LOCAL)
    house.accounts.refresh()
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    assert opened.session.id in ended


def test_a_session_and_its_user_from_another_node_count_here_after_a_refresh(house: House) -> None:
    house.add("ann")
    other = house.node()
    house.add("bob")
    opened = house.open("bob")
    assert other.sessions.authenticate([opened.secret]) is None
    other.refresh()
    assert other.sessions.authenticate([opened.secret])


def test_a_flush_does_not_revive_what_another_node_ended(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    other = house.node()
    house.clock.now += 60
    house.accounts.sessions.authenticate([opened.secret])
    house.store.meanwhile = lambda: other.sessions.end(opened.session.id, by=LOCAL, reason="x")
    house.accounts.sessions.flush()
    assert house.store.meanwhile is None
    assert house.store.list(COLLECTION) == []
    assert house.accounts.sessions.authenticate([opened.secret]) is None


def test_a_stored_session_that_cannot_be_read_does_not_count_and_stops_nothing(house: House) -> None:
    house.add("ann")
    opened = house.open("ann")
    house.store.put(COLLECTION, "0" * 64, {"user": "ann"})
    house.store.put(COLLECTION, "1" * 64, "nonsense")
    again = house.node()
    assert [session.id for session in again.sessions.list()] == [opened.session.id]


# --- tokens and confirmation ---------------------------------------------------------------------------


def test_a_token_belongs_to_one_session_and_one_installation(house: House) -> None:
    house.add("ann")
    one, two = house.open("ann"), house.open("ann")
    sessions = house.accounts.sessions
    token = sessions.csrf_token(one.session.id)
    assert len(token) == 64
    assert token != sessions.csrf_token(two.session.id)
    assert token == house.node().sessions.csrf_token(one.session.id), "a restart does not break open pages"
    assert token != sessions.presession_csrf(one.session.digest)
    assert house.node().sessions.presession_csrf("v") == sessions.presession_csrf("v")
    assert sessions.presession_csrf("v") != sessions.presession_csrf("w")
    other = Sessions(house.store, house.accounts.users, root=RootSecret(b"o" * 32))
    assert other.presession_csrf("v") != sessions.presession_csrf("v")
    assert other.csrf_token(one.session.id) != token
    with pytest.raises(Unauthorized):
        sessions.csrf_token("0" * 16)


def test_a_confirmation_is_for_one_session_and_a_while_and_ends_with_it(house: House) -> None:
    house.add("ann")
    one, two = house.open("ann"), house.open("ann")
    sessions = house.accounts.sessions
    assert sessions.confirm(one.session.id) == house.clock.now + SUDO_S
    assert sessions.is_confirmed(one.session.id)
    assert not sessions.is_confirmed(two.session.id)
    assert not house.node().sessions.is_confirmed(one.session.id), "a restart asks again"
    house.clock.now += SUDO_S
    assert not sessions.is_confirmed(one.session.id)
    sessions.confirm(two.session.id)
    sessions.end(two.session.id, by=LOCAL, reason="x")
    assert not sessions.is_confirmed(two.session.id)


def test_callers_without_a_session_are_not_judged_here(house: House) -> None:
    assert house.accounts.sessions.is_live(NOBODY)
    assert house.accounts.sessions.is_live(LOCAL)


def test_what_a_browser_says_of_itself_is_bounded_and_harmless(house: House) -> None:
    house.add("ann")
    opened = house.accounts.sessions.open(
        house.accounts.users.stored("ann"), address=None, agent="\x1b[31m" + "x" * 5000
    )
    assert "\x1b" not in opened.session.agent
    assert len(opened.session.agent) <= 256
