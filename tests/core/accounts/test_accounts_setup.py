"""The first user: made once, by whoever reads our log or owns the machine."""

from __future__ import annotations

import base64
import stat
import threading
from pathlib import Path

import pytest

from llamaman.access import Role, Scope
from llamaman.core.accounts.accounts import Accounts, Opened
from llamaman.core.accounts.setup_code import FILE, SetupCode
from llamaman.errors import ConfigError, Conflict, Forbidden, InvalidField, LlamaManError, TooManyRequests
from llamaman.limits import SETUP_CODES

from .people import ADDRESS, GOOD, House


def code_of(house: House) -> str:
    return (house.data_dir / FILE).read_text().strip()


def set_up(
    accounts: Accounts, *, code: str | None = None, owns_machine: bool = False, name: str = "ann"
) -> Opened:
    return accounts.set_up(name, GOOD, code=code, owns_machine=owns_machine, address=ADDRESS)


# --- the code ------------------------------------------------------------------------------------------


def test_the_code_has_128_bits_and_stands_in_a_private_file(house: House) -> None:
    code = code_of(house)
    assert len(base64.urlsafe_b64decode(code + "==")) == 16
    assert stat.S_IMODE((house.data_dir / FILE).stat().st_mode) == 0o600
    assert house.accounts.setup.link("http://nas.lan:5000/") == f"http://nas.lan:5000/setup/{code}"
    assert code not in repr(house.accounts.setup)


def test_every_boot_makes_another_code(house: House) -> None:
    before = code_of(house)
    again = house.node()
    assert code_of(house) != before
    with pytest.raises(Forbidden):
        set_up(again, code=before)


def test_the_code_makes_the_first_administrator_and_dies_with_it(house: House) -> None:
    code = code_of(house)
    opened = set_up(house.accounts, code=code)
    identity = house.accounts.sessions.authenticate([opened.secret])
    assert identity is not None
    assert (identity.name, identity.scope) == ("ann", Scope.ADMIN)
    assert house.accounts.users.get("ann").role is Role.ADMIN
    assert not (house.data_dir / FILE).exists()
    assert house.accounts.setup.link("http://x") is None
    with pytest.raises(Conflict):
        set_up(house.accounts, code=code, name="eve")
    assert house.kinds("users") == ["created"]
    assert house.kinds("sessions") == ["login"]


@pytest.mark.parametrize("code", [None, "", "guess", "\ud800", "x" * 5000])
def test_without_the_code_nobody_is_made(house: House, code: str | None) -> None:
    with pytest.raises(Forbidden, match="setup-link"):
        set_up(house.accounts, code=code)
    assert not house.accounts.users.exists()


def test_after_ten_wrong_codes_even_the_right_one_is_refused_until_a_restart(house: House) -> None:
    code = code_of(house)
    for _ in range(SETUP_CODES):
        with pytest.raises(Forbidden):
            set_up(house.accounts, code="guess")
    for tried in (code, "guess", None):
        with pytest.raises(TooManyRequests, match="restart"):
            set_up(house.accounts, code=tried)
    assert not house.accounts.users.exists()
    set_up(house.accounts, owns_machine=True)


def test_a_form_sent_without_a_code_is_no_guess(house: House) -> None:
    for _ in range(SETUP_CODES + 1):
        with pytest.raises(Forbidden):
            set_up(house.accounts, code=None)
    set_up(house.accounts, code=code_of(house))


def test_who_owns_the_machine_needs_no_code(house: House) -> None:
    set_up(house.accounts, owns_machine=True)
    assert house.accounts.users.exists()


def test_a_wrong_name_or_password_uses_nothing_up(house: House) -> None:
    code = code_of(house)
    with pytest.raises(InvalidField) as caught:
        house.accounts.set_up("a/b", GOOD, code=code, owns_machine=False, address=None)
    assert caught.value.field == "name"
    with pytest.raises(InvalidField) as caught:
        house.accounts.set_up("ann", "password123", code=code, owns_machine=False, address=None)
    assert caught.value.field == "password"
    set_up(house.accounts, code=code)


def test_a_code_that_a_run_before_left_is_removed_where_users_exist(house: House) -> None:
    house.add("ann")
    (house.data_dir / FILE).write_text("stale")
    again = house.node()
    assert not (house.data_dir / FILE).exists()
    assert again.setup.link("http://x") is None


def test_a_code_that_cannot_be_written_stops_the_boot(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="setup_code"):
        SetupCode(tmp_path / "missing", needed=True)


# --- one first user ------------------------------------------------------------------------------------


def test_fifty_at_once_make_one_user(house: House) -> None:
    """With the right code, over two nodes of one store."""
    other = house.node()
    second = code_of(house)
    first = house.accounts.setup.link("")
    assert first is not None
    outcomes: list[object] = []
    start = threading.Barrier(50)

    def attempt(number: int) -> None:
        accounts, code = ((house.accounts, first.rpartition("/")[2]), (other, second))[number % 2]
        start.wait()
        try:
            outcomes.append(set_up(accounts, code=code, name=f"user{number}"))
        except LlamaManError as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    made = [outcome for outcome in outcomes if isinstance(outcome, Opened)]
    assert len(made) == 1
    assert outcomes.count(Conflict) == 49
    assert [user.id for user in house.node().users.list()] == [made[0].session.user]


def test_a_first_user_made_at_another_node_ends_the_code_here(house: House) -> None:
    other = house.node()
    set_up(house.accounts, owns_machine=True)
    assert other.setup.link("http://x") is not None
    other.refresh()
    assert other.setup.link("http://x") is None
    with pytest.raises(Conflict):
        set_up(other, owns_machine=True, name="eve")


# --- the environment's first user ----------------------------------------------------------------------


def test_the_environment_makes_the_first_administrator(house: House) -> None:
    house.accounts.ensure_first("Root", GOOD)
    user = house.accounts.users.get("root")
    assert (user.role, user.created_by) == (Role.ADMIN, "environment")
    assert not (house.data_dir / FILE).exists()
    assert house.accounts.login("root", GOOD, address=ADDRESS)


def test_the_environment_acts_only_while_no_user_exists(house: House) -> None:
    house.add("ann")
    house.accounts.ensure_first("root", "weak")
    house.accounts.ensure_first("root", GOOD)
    assert [user.name for user in house.accounts.users.list()] == ["ann"]


def test_without_a_password_the_environment_makes_nobody(house: House) -> None:
    house.accounts.ensure_first("admin", None)
    house.accounts.ensure_first("admin", "")
    assert not house.accounts.users.exists()


@pytest.mark.parametrize("weak", ["hunter2", "password123", "admin12345", "x" * 300])
def test_a_weak_password_in_the_environment_stops_the_boot_and_is_not_repeated(
    house: House, weak: str
) -> None:
    with pytest.raises(ConfigError, match="LLAMAMAN_ADMIN_PASSWORD") as caught:
        house.accounts.ensure_first("admin", weak)
    assert weak not in caught.value.message
    assert caught.value.exit_status == 78
    assert caught.value.__cause__ is None


def test_a_wrong_name_in_the_environment_names_its_variable(house: House) -> None:
    with pytest.raises(ConfigError, match="LLAMAMAN_ADMIN_USER"):
        house.accounts.ensure_first("a/b", GOOD)
