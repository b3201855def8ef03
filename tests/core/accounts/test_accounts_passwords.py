"""Passwords: which are taken, how they are hashed, and that nothing but the child's stdin ever holds one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.accounts import hash_child
from llamaman.core.accounts.hasher import Hasher, HasherFailed, dummy_hash, is_outdated
from llamaman.core.accounts.password_rules import check_password, common_passwords, is_common
from llamaman.errors import InvalidField, TooManyRequests
from llamaman.limits import HASHES_AT_ONCE, HASHES_WAITING

from .people import BETTER, GOOD, scrypt_hash

# --- rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "password",
    [
        GOOD,
        BETTER,
        "x8F!k2#9qZ",
        "пароль для входа сюда",
        "七転び八起き七転び八起き猫",
        "a" * 9 + "bcdefgh",
        "q" * 128 + "w" * 128,
        "ann likes long walks",
    ],
)
def test_long_and_uncommon_is_enough(password: str) -> None:
    assert check_password(password, "ann") == password


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "123456789",
        "\u2075" * 9,
        "x" * 257,
        "\ufdfa" * 15,
        "ok until here\ud800",
        "password123",
        "Password123!",
        "PASSWORD1!!!",
        "1234567890",
        "0123456789",
        "qwertyuiop",
        "monkeymonkey",
        "DragonDragon1",
        "aaaaaaaaaaaa",
        "abababababab",
        "1q2w3e4r5t",
        "\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44\uff11\uff12\uff13",
        "iloveyou2024",
        "ann1234567",
        "annannannann",
        "ANN-ANN-2024!",
    ],
)
def test_short_long_and_easily_guessed_passwords_are_refused_and_not_repeated(password: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_password(password, "Ann", "new")
    assert caught.value.field == "new"
    assert not password or password not in caught.value.message


@pytest.mark.parametrize("password", [None, 7, ["x" * 12], b"x" * 12])
def test_a_password_is_a_text(password: object) -> None:
    with pytest.raises(InvalidField):
        check_password(password, "ann")


def test_the_list_holds_ten_thousand_and_says_where_it_comes_from() -> None:
    assert len(common_passwords()) == 10_000
    assert all(word == word.casefold() and len(word) >= 4 for word in common_passwords())
    path = Path(hash_child.__file__).with_name("common_passwords.txt")
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ") and "BSD-3-Clause" in first  # noqa: PT018 # one line, two facts about it
    assert second.startswith("# ") and "MIT" in second  # noqa: PT018 # the same
    assert not is_common("# ")


# --- hashing -------------------------------------------------------------------------------------------


#: Of GOOD by argon2id at the strength in use, made once.
REAL_HASH = (
    "$argon2id$v=19$m=65536,t=3,p=1$cxqLzRAVeGgx1v2PtqsjFQ$OedpNjjtNfRfOZI72j/jMDqb0mcsAqWoVKqxqKJ/pvc"
)


def patient(**options: Any) -> Hasher:
    """One that waits for its child, which steps back, on a machine that has other things to do."""
    return Hasher(deadline_s=300.0, **options)


def test_a_hash_is_argon2id_of_the_strength_we_say_with_a_salt_of_its_own() -> None:
    hasher = patient()
    one, two = hasher.hash(GOOD), hasher.hash(GOOD)
    assert one != two
    assert one.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert not is_outdated(one)
    assert hasher.verify(one, GOOD)
    assert not hasher.verify(one, GOOD + "x")


def test_a_password_typed_in_another_form_is_the_same() -> None:
    hasher = patient()
    assert hasher.verify(hasher.hash("caf\u00e9 \ufb01lter \uff11"), "cafe\u0301 filter 1")


def test_nothing_fits_the_dummy_and_it_looks_like_a_real_one() -> None:
    assert not patient().verify(dummy_hash(), "")
    assert not is_outdated(dummy_hash())
    assert [len(part) for part in dummy_hash().split("$")] == [len(part) for part in REAL_HASH.split("$")]
    assert dummy_hash() != dummy_hash()


def test_an_imported_scrypt_hash_is_checked_and_outdated() -> None:
    known = scrypt_hash("correct horse \u00e9")
    assert is_outdated(known)
    assert patient().verify(known, "correct horse \u00e9")
    assert not patient().verify(known, "correct horse e")


@pytest.mark.parametrize(
    "known",
    [
        "",
        "plain",
        "$argon2id$v=19$m=65536,t=3,p=1$short",
        "scrypt:1:2",
        "scrypt:a:b:c$s$h",
        "pbkdf2:sha256$s$h",
    ],
)
def test_a_damaged_hash_is_an_error_of_ours_and_not_a_wrong_password(known: str) -> None:
    with pytest.raises(HasherFailed) as caught:
        patient().verify(known, "hunter2hunter3")
    assert caught.value.status == 503
    assert "hunter2" not in f"{caught.value.message} {caught.value.detail}"


@pytest.mark.parametrize("cost", ["1048576:8:1", "16:8:100000", "0:8:1", "-8:8:1"])
def test_an_imported_hash_cannot_ask_for_the_whole_machine(cost: str) -> None:
    with pytest.raises(HasherFailed):
        patient().verify(f"scrypt:{cost}$salt$00", GOOD)


def test_any_text_can_be_typed() -> None:
    for typed in ("", "\x00 \ud800 " + "x" * 100_000, '"}\n{"known": null}'):
        assert not patient().verify(REAL_HASH, typed)


# --- the process ---------------------------------------------------------------------------------------


def stand_in(tmp_path: Path, body: str) -> Path:
    """A program in the place of the child."""
    path = tmp_path / "child.py"
    path.write_text(f"import json, os, sys, time\nsys.path[:0] = sys.argv[1:]\n{body}\n")
    return path


def test_the_password_is_on_stdin_alone_and_nothing_of_ours_is_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAMAN_ADMIN_PASSWORD", GOOD)
    monkeypatch.setenv("SECRET_KEY", "k" * 40)
    seen = tmp_path / "seen"
    child = stand_in(
        tmp_path,
        f"seen = open('/proc/self/cmdline').read() + '|' + open('/proc/self/environ').read()\n"
        f"open({str(seen)!r}, 'w').write(seen)\n"
        "json.dump({'hash': json.load(sys.stdin)['password']}, sys.stdout)",
    )
    assert patient(child=child).hash(GOOD) == GOOD
    command, _, environment = seen.read_text().partition("|")
    assert str(child) in command
    assert GOOD not in command
    assert {pair.split("=")[0] for pair in environment.split("\0") if pair} <= {
        "PATH",
        "LD_LIBRARY_PATH",
        "LANG",
    }


def test_the_real_child_steps_back_for_others_and_leaves_no_core() -> None:
    program = (
        "import os, pathlib, resource, runpy, sys\n"
        f"runpy.run_path({hash_child.__file__!r}, run_name='__main__')\n"
        "group = pathlib.Path('/proc/self/autogroup')\n"
        "group = group.read_text().split()[-1] if group.exists() else '10'\n"
        "print('', os.nice(0), resource.getrlimit(resource.RLIMIT_CORE), group)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=b'{"known": null, "password": "x"}',
        capture_output=True,
        check=True,
        start_new_session=True,  # as hasher.py does: niceness counts only within a session's group
    )
    assert done.stdout.decode().endswith(f" {hash_child.NICENESS} (0, 0) {hash_child.NICENESS}\n")


def test_the_child_imports_nothing_of_ours() -> None:
    program = (
        "import sys, runpy\n"
        f"runpy.run_path({hash_child.__file__!r}, run_name='__main__')\n"
        "print([name for name in sys.modules if name.startswith('llamaman')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=b'{"known": null, "password": "x"}',
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().endswith("[]\n")


def test_a_child_that_does_not_answer_is_ended_and_the_turn_is_free_again(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    child = stand_in(tmp_path, f"open({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    hasher = Hasher(at_once=1, waiting=0, deadline_s=1.0, child=child)
    for _ in range(2):
        with pytest.raises(HasherFailed) as caught:
            hasher.hash(GOOD)
        assert GOOD not in repr(caught.value.__cause__)
        assert caught.value.retry_after
    while not told.exists():  # a busy machine may need longer than that until a child runs at all
        assert hasher._deadline_s < 100
        hasher._deadline_s *= 2
        with pytest.raises(HasherFailed):
            hasher.hash(GOOD)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


def test_a_child_that_cannot_start_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(HasherFailed, match="could not be started"):
        Hasher().hash(GOOD)


# --- a few at a time -----------------------------------------------------------------------------------


@contextmanager
def held(hasher: Hasher, tmp_path: Path, callers: int) -> Iterator[tuple[Path, list[object]]]:
    """So many callers whose children wait for the file ``go``; yields the folder of those that run, and the answers."""
    answers: list[object] = []

    def call() -> None:
        try:
            answers.append(hasher.hash(GOOD))
        except TooManyRequests as error:
            answers.append(error)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield tmp_path / "running", answers
    finally:
        (tmp_path / "go").touch()
        for thread in threads:
            thread.join(120)


def test_two_hash_eight_wait_and_the_rest_are_told_to_come_back(tmp_path: Path) -> None:
    running = tmp_path / "running"
    running.mkdir()
    child = stand_in(
        tmp_path,
        f"open({str(running)!r} + '/' + str(os.getpid()), 'w').close()\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "print(json.dumps({'hash': 'done'}))",
    )
    hasher = patient(child=child)
    extra = 15
    with held(hasher, tmp_path, HASHES_AT_ONCE + HASHES_WAITING + extra) as (_, answers):
        deadline = time.monotonic() + 60
        while len(answers) < extra or len(list(running.iterdir())) < HASHES_AT_ONCE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(answers) == extra
        assert all(isinstance(answer, TooManyRequests) and answer.retry_after == 1 for answer in answers)
        assert len(list(running.iterdir())) == HASHES_AT_ONCE
    assert answers.count("done") == HASHES_AT_ONCE + HASHES_WAITING
