"""What people do with accounts: log in, confirm, change a password; and what administrators do to others."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest

from llamaman.access import Role, Scope
from llamaman.core.accounts.hasher import Hasher, is_outdated
from llamaman.core.accounts.users import COLLECTION
from llamaman.errors import (
    Conflict,
    Forbidden,
    InvalidField,
    LlamaManError,
    NotFound,
    SudoRequired,
    TooManyRequests,
    Unauthorized,
)
from llamaman.limits import FAILURES_PER_ACCOUNT, SUDO_S, USERS
from llamaman.records import NOBODY, Identity
from llamaman.testing.quick_hasher import QuickHasher

from .people import ADDRESS, BETTER, GOOD, GOOD_HASH, LOCAL, House, add_user, scrypt_hash

WRONG = "not-the-password-9"
MANAGER_KEY = Identity("key", "ci", Scope.MANAGE, "k1")


class CountingHasher(QuickHasher):
    """Tells which hashes it was asked to check."""

    def __init__(self) -> None:
        super().__init__(deadline_s=300.0)
        self.checked: list[str] = []

    def verify(self, known: str, password: str) -> bool:
        self.checked.append(known)
        return super().verify(known, password)


@pytest.fixture
def hasher(house: House, monkeypatch: pytest.MonkeyPatch) -> CountingHasher:
    hasher = CountingHasher()
    monkeypatch.setattr(house.accounts, "_hasher", hasher)
    monkeypatch.setattr(house.accounts._proof, "_hasher", hasher)
    return hasher


def login(house: House, name: str, password: str, previous: str | None = None) -> str:
    """The cookie's value."""
    return house.accounts.login(name, password, address=ADDRESS, agent="B/1", previous=previous).secret


# --- login ---------------------------------------------------------------------------------------------


def test_a_login_with_the_password_opens_a_session_in_any_spelling_of_the_name(house: House) -> None:
    house.add("Ann")
    assert house.accounts.users.get("ann").last_login is None
    identity = house.accounts.sessions.authenticate([login(house, "ANN ", GOOD)])
    assert identity is not None
    assert identity.name == "Ann"
    assert house.accounts.users.get("ann").last_login == house.clock.now
    [session] = house.accounts.sessions.list("ann")
    assert (session.address, session.agent) == (ADDRESS, "B/1")


@pytest.mark.parametrize(
    "case", ["wrong password", "unknown", "disabled", "no name at all", "impossible name"]
)
def test_every_failure_says_the_same_and_takes_a_hash_of_the_same_strength(
    house: House, hasher: CountingHasher, case: str
) -> None:
    house.add("ann")
    house.add("bob", Role.VIEWER)
    if case == "disabled":
        house.accounts.change_user("bob", disabled=True, by=LOCAL)
    name, password = {
        "wrong password": ("ann", WRONG),
        "unknown": ("eve", GOOD),
        "disabled": ("bob", GOOD),
        "no name at all": ("", GOOD),
        "impossible name": ("x/\x00" * 1000, GOOD),
    }[case]
    with pytest.raises(Unauthorized, match=r"^Invalid username or password$"):
        login(house, name, password)
    [known] = hasher.checked
    assert not is_outdated(known)
    assert (known == GOOD_HASH) is (case in ("wrong password", "disabled"))
    assert house.accounts.sessions.list() == ()


def test_an_id_from_before_the_login_is_dead_after_it(house: House) -> None:
    """Neither an invented value nor the session that the browser had becomes the new one."""
    house.add("ann")
    house.add("eve", Role.VIEWER)
    planted, identity = house.came_in("eve")
    secret = login(house, "ann", GOOD, previous=identity.session)
    assert secret != planted.secret
    assert house.accounts.sessions.authenticate([planted.secret]) is None
    assert house.accounts.sessions.authenticate(["invented"]) is None
    again = login(house, "ann", GOOD, previous="0" * 16)
    assert again != secret, "an old id that is over is no obstacle"


def test_failures_lead_to_a_pause_without_hashing_and_the_owner_gets_in_after_it(
    house: House, hasher: CountingHasher
) -> None:
    house.add("ann")
    for _ in range(FAILURES_PER_ACCOUNT):
        with pytest.raises(Unauthorized):
            login(house, "ann", WRONG)
    before = len(hasher.checked)
    for _ in range(20):
        with pytest.raises(TooManyRequests) as caught:
            login(house, "ann", GOOD)
        assert caught.value.retry_after == 1
    assert len(hasher.checked) == before
    house.throttle_clock.now += 1
    assert login(house, "ann", GOOD)


def test_a_login_that_was_not_checked_does_not_count_as_a_failure(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add("ann")
    with monkeypatch.context() as patched:
        patched.setattr(house.accounts._proof, "_hasher", Hasher(at_once=0, waiting=0))
        for _ in range(FAILURES_PER_ACCOUNT + 1):
            with pytest.raises(TooManyRequests, match="are being checked"):
                login(house, "ann", GOOD)
    login(house, "ann", GOOD)


def test_a_password_changed_while_the_old_one_is_checked_does_not_log_in(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add("ann")

    class Slow(QuickHasher):
        def verify(self, known: str, password: str) -> bool:
            right = super().verify(known, password)
            add_user(house.accounts.users, "ann")  # the same name and hash in a new generation
            return right

    monkeypatch.setattr(house.accounts._proof, "_hasher", Slow())
    with pytest.raises(Unauthorized):
        login(house, "ann", GOOD)


def test_an_imported_scrypt_hash_logs_in_once_and_is_replaced(house: House) -> None:
    stored = house.add("ann")
    document = house.store.get(COLLECTION, "user/ann")
    assert document is not None
    house.store.put(COLLECTION, "user/ann", {**document.value, "password_hash": scrypt_hash(GOOD)})
    house.accounts.refresh()
    opened, _ = house.came_in("ann")
    with pytest.raises(Unauthorized):
        login(house, "ann", WRONG)
    login(house, "ann", GOOD)
    document = house.store.get(COLLECTION, "user/ann")
    assert document is not None
    assert document.value["password_hash"].startswith("$argon2id$")
    assert document.value["password_changed"] == stored.user.password_changed
    assert house.accounts.sessions.authenticate([opened.secret]), (
        "it is the same password: nobody is thrown out"
    )
    login(house, "ann", GOOD)


def test_a_hash_that_cannot_be_replaced_now_does_not_keep_anybody_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add("ann")
    document = house.store.get(COLLECTION, "user/ann")
    assert document is not None
    house.store.put(COLLECTION, "user/ann", {**document.value, "password_hash": scrypt_hash(GOOD, n=2**4)})
    house.accounts.refresh()
    monkeypatch.setattr(house.accounts, "_hasher", Hasher(at_once=0, waiting=0))
    login(house, "ann", GOOD)


# --- confirming ----------------------------------------------------------------------------------------


def test_sensitive_actions_need_a_confirmed_session_and_keys_are_judged_by_their_scope(house: House) -> None:
    house.add("ann")
    _, identity = house.came_in("ann")
    with pytest.raises(SudoRequired):
        house.accounts.require_sudo(identity)
    with pytest.raises(Forbidden, match="password is wrong"):
        house.accounts.confirm(identity, WRONG, address=ADDRESS)
    with pytest.raises(SudoRequired):
        house.accounts.require_sudo(identity)
    until = house.accounts.confirm(identity, GOOD, address=ADDRESS)
    assert until == house.clock.now + SUDO_S
    house.accounts.require_sudo(identity)
    house.clock.now = until
    with pytest.raises(SudoRequired):
        house.accounts.require_sudo(identity)
    for other in (LOCAL, Identity("key", "ci", Scope.ADMIN, "k")):
        house.accounts.require_sudo(other)
    with pytest.raises(Unauthorized):
        house.accounts.require_sudo(NOBODY)


def test_only_a_live_session_confirms_or_changes_its_password(house: House) -> None:
    house.add("ann")
    opened, identity = house.came_in("ann")
    house.accounts.sessions.end(opened.session.id, by=LOCAL, reason="x")
    uses: list[Callable[[Identity], object]] = [
        lambda who: house.accounts.confirm(who, GOOD, address=ADDRESS),
        lambda who: house.accounts.change_password(who, GOOD, BETTER, address=ADDRESS),
    ]
    for use in uses:
        with pytest.raises(Forbidden, match="only a user"):
            use(MANAGER_KEY)
        with pytest.raises(Unauthorized, match="ended"):
            use(identity)


def test_a_stolen_session_guesses_no_password(house: House, hasher: CountingHasher) -> None:
    house.add("ann")
    _, identity = house.came_in("ann")
    for _ in range(FAILURES_PER_ACCOUNT):
        with pytest.raises(Forbidden):
            house.accounts.confirm(identity, WRONG, address=ADDRESS)
    with pytest.raises(TooManyRequests):
        house.accounts.confirm(identity, GOOD, address=ADDRESS)
    with pytest.raises(TooManyRequests):
        house.accounts.change_password(identity, GOOD, BETTER, address=ADDRESS)
    assert len(hasher.checked) == FAILURES_PER_ACCOUNT


# --- one's own password --------------------------------------------------------------------------------


def test_a_new_password_ends_every_session_and_goes_on_under_a_new_id(house: House) -> None:
    house.add("ann")
    others = [house.open("ann") for _ in range(2)]
    mine, identity = house.came_in("ann")
    ended: list[str] = []
    house.accounts.sessions.on_end(ended.append)
    house.clock.now += 5
    opened = house.accounts.change_password(identity, GOOD, BETTER, address=ADDRESS, agent="B/2")
    assert opened.session.id != mine.session.id
    assert {other.session.id for other in (*others, mine)} == set(ended)
    for old in (*others, mine):
        assert house.accounts.sessions.authenticate([old.secret]) is None
    assert house.accounts.sessions.authenticate([opened.secret]) is not None
    assert house.accounts.users.get("ann").password_changed == house.clock.now
    assert login(house, "ann", BETTER)
    with pytest.raises(Unauthorized):
        login(house, "ann", GOOD)


@pytest.mark.parametrize("new", ["short", "password123", "ann-ann-ann-1", GOOD])
def test_a_new_password_meets_the_rules_and_is_another_one(house: House, new: str) -> None:
    house.add("ann")
    _, identity = house.came_in("ann")
    with pytest.raises(InvalidField) as caught:
        house.accounts.change_password(identity, GOOD, new, address=ADDRESS)
    assert caught.value.field == "new"
    assert house.accounts.sessions.is_live(identity)


def test_the_current_password_is_needed_for_a_new_one(house: House) -> None:
    house.add("ann")
    _, identity = house.came_in("ann")
    with pytest.raises(Forbidden, match="wrong"):
        house.accounts.change_password(identity, WRONG, BETTER, address=ADDRESS)
    assert house.accounts.sessions.is_live(identity)


# --- other people --------------------------------------------------------------------------------------


def test_a_created_user_logs_in_with_the_role_given(house: House) -> None:
    house.add("ann")
    user = house.accounts.create_user("Bob", GOOD, "viewer", by=LOCAL)
    assert (user.id, user.name, user.role, user.created_by) == ("bob", "Bob", Role.VIEWER, "local:uid:0")
    identity = house.accounts.sessions.authenticate([login(house, "bob", GOOD)])
    assert identity is not None
    assert identity.scope is Scope.VIEW


@pytest.mark.parametrize("name", ["Ann", "ann", "ANN", "\uff21nn"])
def test_a_name_is_taken_in_every_spelling_of_it(house: House, name: str) -> None:
    house.add("ann")
    with pytest.raises(Conflict, match="'ann'"):
        house.accounts.create_user(name, GOOD, Role.VIEWER, by=LOCAL)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("name", {"name": "a\u202eb"}),
        ("name", {"name": ""}),
        ("role", {"role": "root"}),
        ("role", {"role": "Admin"}),
        ("password", {"password": "password123"}),
        ("password", {"password": "short"}),
    ],
)
def test_a_wrong_field_is_named_and_no_user_is_made(
    house: House, field: str, arguments: dict[str, str]
) -> None:
    house.add("ann")
    given = {"name": "bob", "password": GOOD, "role": "viewer", **arguments}
    with pytest.raises(InvalidField) as caught:
        house.accounts.create_user(**given, by=LOCAL)
    assert caught.value.field == field
    assert len(house.accounts.users.list()) == 1


def test_there_are_so_many_users_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamaman.core.accounts.accounts.USERS", 2)
    assert USERS == 1000
    house.add("ann")
    house.add("bob")
    with pytest.raises(Conflict, match="2 users"):
        house.accounts.create_user("carol", GOOD, Role.VIEWER, by=LOCAL)


@pytest.mark.parametrize("holder", [None, *Scope])
@pytest.mark.parametrize("role", list(Role))
def test_nobody_makes_changes_or_deletes_who_may_do_more_than_they(
    house: House, holder: Scope | None, role: Role
) -> None:
    may = {Scope.ADMIN: set(Role), Scope.MANAGE: {Role.VIEWER, Role.MANAGER}, Scope.VIEW: {Role.VIEWER}}
    house.add("ann")
    house.add("target", role)
    house.add("small", Role.VIEWER)
    by = Identity("key", "k", holder, "k1")
    acts: list[Callable[[], object]] = [
        lambda: house.accounts.change_user("target", disabled=True, by=by),
        lambda: house.accounts.change_user("small", role=role, by=by),
        lambda: house.accounts.delete_user("target", by=by),
    ]
    for act in acts:
        if holder is not None and role in may.get(holder, set()):
            act()
        else:
            with pytest.raises(Forbidden):
                act()
    if holder is None or role not in may.get(holder, set()):
        with pytest.raises(Forbidden):
            house.accounts.create_user("new", GOOD, role, by=by)
        with pytest.raises(Forbidden):
            house.accounts.change_user("target", password=BETTER, by=by)


def test_a_key_limited_to_some_models_makes_no_users_who_are_not(house: House) -> None:
    house.add("ann")
    by = Identity("key", "k", Scope.ADMIN, "k1", frozenset({"tiny"}))
    with pytest.raises(Forbidden, match="limited"):
        house.accounts.create_user("bob", GOOD, Role.VIEWER, by=by)


@pytest.mark.parametrize("change", [{"role": "manager"}, {"disabled": True}, {"password": BETTER}])
def test_any_change_of_a_user_ends_their_sessions_and_subscribers_hear_of_it(
    house: House, change: dict[str, object]
) -> None:
    house.add("ann")
    house.add("bob", Role.VIEWER)
    opened, identity = house.came_in("bob")
    mine, _ = house.came_in("ann")
    ended: list[str] = []
    house.accounts.sessions.on_end(ended.append)
    house.accounts.change_user("BOB", **change, by=LOCAL)  # type: ignore[arg-type] # one of three fields
    assert ended == [opened.session.id]
    assert not house.accounts.sessions.is_live(identity)
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    assert house.accounts.sessions.authenticate([mine.secret])
    [event] = [event for event in house.heard if event.topic == "users"]
    assert event.kind == "changed"
    assert event.data["changed"] == list(change)


def test_a_change_that_changes_nothing_ends_nothing(house: House) -> None:
    house.add("ann")
    opened, _ = house.came_in("ann")
    house.accounts.change_user("ann", role=Role.ADMIN, disabled=False, by=LOCAL)
    assert house.accounts.sessions.authenticate([opened.secret])
    assert house.kinds("users") == []


def test_an_enabled_user_logs_in_again_and_old_sessions_stay_dead(house: House) -> None:
    house.add("ann")
    house.add("bob", Role.VIEWER)
    opened, _ = house.came_in("bob")
    house.accounts.change_user("bob", disabled=True, by=LOCAL)
    house.accounts.change_user("bob", disabled=False, by=LOCAL)
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    assert login(house, "bob", GOOD)


def test_a_deleted_user_is_out_and_one_of_the_same_name_is_somebody_else(house: House) -> None:
    house.add("ann")
    house.add("bob", Role.MANAGER)
    opened, identity = house.came_in("bob")
    house.accounts.delete_user("Bob", by=LOCAL)
    assert not house.accounts.sessions.is_live(identity)
    house.add("bob", Role.ADMIN)
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    with pytest.raises(NotFound):
        house.accounts.delete_user("nobody", by=LOCAL)
    with pytest.raises(NotFound):
        house.accounts.change_user("nobody", disabled=True, by=LOCAL)


def test_sessions_end_although_the_store_fills_up_right_after_the_change(house: House) -> None:
    house.add("ann")
    house.add("bob", Role.VIEWER)
    opened, _ = house.came_in("bob")
    store = house.store

    def fill(_: str) -> None:
        store.full = True

    house.accounts.sessions.on_end(fill)
    house.accounts.change_user("bob", disabled=True, by=LOCAL)
    store.full = False
    assert house.accounts.sessions.authenticate([opened.secret]) is None
    assert house.node().sessions.authenticate([opened.secret]) is None


# --- the last administrator ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["deleted", "disabled", "demoted"])
def test_the_last_administrator_who_can_log_in_stays(house: House, case: str) -> None:
    house.add("ann")
    house.add("bob")
    house.add("carol", Role.MANAGER)
    house.accounts.change_user("bob", disabled=True, by=LOCAL)
    act: dict[str, Callable[[str], object]] = {
        "deleted": lambda name: house.accounts.delete_user(name, by=LOCAL),
        "disabled": lambda name: house.accounts.change_user(name, disabled=True, by=LOCAL),
        "demoted": lambda name: house.accounts.change_user(name, role="manager", by=LOCAL),
    }
    opened, _ = house.came_in("ann")
    with pytest.raises(Conflict, match="'ann' is the last administrator"):
        act[case]("ann")
    assert house.accounts.sessions.authenticate([opened.secret]), "nothing was changed"
    house.accounts.change_user("bob", disabled=False, by=LOCAL)
    act[case]("ann")


# --- what is told --------------------------------------------------------------------------------------


def test_what_happens_is_told_with_its_actor_and_without_secrets(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    opened = house.accounts.set_up("ann", GOOD, code=None, owns_machine=True, address=ADDRESS)
    house.accounts.create_user("bob", BETTER, "viewer", by=LOCAL)
    with pytest.raises(LlamaManError) as caught:
        login(house, "ann", WRONG)
    said.append(f"{caught.value!r} {caught.value.detail}")
    with pytest.raises(LlamaManError):
        login(house, WRONG, GOOD)  # typed into the wrong field
    identity = house.accounts.sessions.authenticate([opened.secret])
    assert identity is not None
    house.accounts.confirm(identity, GOOD, address=ADDRESS)
    with pytest.raises(LlamaManError) as caught:
        house.accounts.confirm(identity, WRONG, address=ADDRESS)
    said.append(repr(caught.value))
    changed = house.accounts.change_password(identity, GOOD, "meadow-of-copper-7x", address=ADDRESS)
    house.accounts.delete_user("bob", by=identity)
    told = [(event.topic, event.kind, event.actor) for event in house.heard]
    assert told == [
        ("users", "created", "setup"),
        ("sessions", "login", "session:ann"),
        ("users", "created", "local:uid:0"),
        ("sessions", "login_failed", "none"),
        ("sessions", "login_failed", "none"),
        ("sessions", "confirmed", "session:ann"),
        ("sessions", "confirm_failed", "session:ann"),
        ("sessions", "ended", "session:ann"),
        ("users", "changed", "session:ann"),
        ("users", "deleted", "session:ann"),
    ]
    said += [json.dumps(event.as_dict()) for event in house.heard]
    said += [
        caplog.text,
        repr(opened),
        repr(changed),
        repr(house.accounts),
        repr(house.accounts.users.list()),
    ]
    everything = "\n".join(said)
    for secret in (GOOD, BETTER, WRONG, "meadow-of-copper-7x", opened.secret, changed.secret, "$argon2id$"):
        assert secret not in everything
