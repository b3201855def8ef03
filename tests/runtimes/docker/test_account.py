"""Which account may read the files, decided as the kernel decides it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaman.errors import LaunchError
from llamaman.runtimes.docker.account import NOBODY, Account, account_for


@dataclass(frozen=True)
class Stat:
    st_mode: int
    st_uid: int = 0
    st_gid: int = 0


def account(*files: Stat) -> Account:
    return account_for({Path(f"/m/{number}.gguf"): file for number, file in enumerate(files)})


def test_files_that_everybody_may_read_are_read_by_nobody() -> None:
    assert account(Stat(0o100644), Stat(0o100604, 1000, 1000)) == Account(NOBODY, NOBODY, ())


def test_a_file_for_its_group_is_read_by_nobody_in_that_group() -> None:
    assert account(Stat(0o100640, 0, 44)) == Account(NOBODY, NOBODY, (44,))
    assert account(Stat(0o100640, 0, 0)) == Account(NOBODY, NOBODY, (0,))
    assert account(Stat(0o100640, 0, 50), Stat(0o100640, 0, 44), Stat(0o100644)) == Account(groups=(44, 50))


def test_a_file_for_nobodys_own_group_needs_no_further_one() -> None:
    assert account(Stat(0o100640, 0, NOBODY)) == Account(NOBODY, NOBODY, ())


def test_a_file_for_its_owner_alone_is_read_by_that_owner() -> None:
    assert account(Stat(0o100600, 1000, 1001)) == Account(1000, 1001, ())
    assert account(Stat(0o100600, 1000, 1001), Stat(0o100640, 0, 44)) == Account(1000, 1001, (44,))


def test_an_owner_never_brings_the_group_of_root_as_main_group() -> None:
    assert account(Stat(0o100400, 1000, 0)) == Account(1000, NOBODY, ())


def test_a_file_that_only_root_may_read_is_refused_with_the_cure() -> None:
    with pytest.raises(
        LaunchError, match=r"'0\.gguf'.*0600.*never runs as root.*chmod a\+r '0\.gguf'"
    ) as caught:
        account(Stat(0o100600))
    assert caught.value.detail == "chmod a+r '/m/0.gguf'"
    assert "/m/" not in caught.value.message


def test_files_that_no_single_account_may_read_name_one_to_change() -> None:
    with pytest.raises(LaunchError, match=r"uid 1000 with mode 0600, and no single account.*chmod"):
        account(Stat(0o100600, 1000), Stat(0o100600, 1001))
    with pytest.raises(LaunchError, match="chmod"):
        account(Stat(0o100000, 1000))


def test_a_group_that_is_shut_out_though_others_are_not_is_not_joined() -> None:
    assert account(Stat(0o100604, 0, 44)) == Account()
    with pytest.raises(LaunchError):
        account(Stat(0o100604, 0, 44), Stat(0o100640, 0, 44))  # the kernel asks the group's bits alone


def may_read(uid: int, groups: tuple[int, ...], file: Stat) -> bool:
    """What the manual page path_resolution(7) says."""
    shift = 6 if file.st_uid == uid else 3 if file.st_gid in groups else 0
    return bool(file.st_mode >> shift & 4)


@given(
    st.lists(
        st.builds(
            Stat, st.integers(0, 0o777), st.sampled_from([0, 1000, 1001]), st.sampled_from([0, 44, NOBODY])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_account_is_never_root_and_may_read_every_file(files: list[Stat]) -> None:
    try:
        found = account(*files)
    except LaunchError:
        assert not all(may_read(NOBODY, (NOBODY,), file) for file in files)
        return
    assert found.uid != 0
    assert found.gid != 0
    assert all(may_read(found.uid, (found.gid, *found.groups), file) for file in files)
