"""``users``, ``sessions`` and ``setup-link`` against a running manager, on a terminal and without one."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from management_door import Manager, eventually

from llamaman.access import Scope

Run = Callable[..., Any]
PASSWORD = "correct horse battery"
ANOTHER = "staple paper clip 7"


@pytest.fixture
def typing_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give the next command a standard input that is no terminal."""

    def give(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return give


@pytest.fixture
def ada(manager: Manager, llamaman: Run, typing_in: Callable[[str], None]) -> Manager:
    """A manager with an administrator."""
    typing_in(f"{PASSWORD}\n")
    assert llamaman("users", "create", "ada", "--role", "admin", "--password-stdin").status == 0
    return manager


def log_in(manager: Manager, name: str, password: str) -> Any:
    return manager.kernel.accounts.login(name, password, address="10.0.0.7", agent="a browser\x1b[2J")


# --- users ---------------------------------------------------------------------------------------------


def test_the_life_of_a_user(ada: Manager, llamaman: Run, typing_in: Callable[[str], None]) -> None:
    typing_in(f"{PASSWORD}\nwhat follows the first line is no part of it\n")
    made = llamaman("users", "create", "Eve", "--role", "viewer", "--password-stdin", "--json").json
    assert (made["name"], made["role"], made["disabled"]) == ("Eve", "viewer", False)
    assert log_in(ada, "eve", PASSWORD)
    lines = llamaman("users", "list").out.splitlines()
    assert lines[0].split()[:3] == ["NAME", "ROLE", "STATE"]
    assert lines[2].split()[:3] == ["Eve", "viewer", "active"]
    assert llamaman("users", "role", "eve", "manager").status == 0
    assert llamaman("users", "disable", "eve").status == 0
    assert [(row["role"], row["disabled"]) for row in llamaman("users", "list", "--json").json] == [
        ("admin", False),
        ("manager", True),
    ]
    assert llamaman("users", "enable", "eve").status == 0
    typing_in(ANOTHER)
    assert llamaman("users", "passwd", "eve", "--password-stdin").status == 0
    assert log_in(ada, "eve", ANOTHER)
    assert llamaman("users", "rm", "eve", "--yes", "--json").json == {"ok": True}
    assert [row["name"] for row in llamaman("users", "list", "--json").json] == ["ada"]


def test_refusals_are_the_managers_own_sentence(
    ada: Manager, llamaman: Run, typing_in: Callable[[str], None]
) -> None:
    typing_in("short\n")
    outcome = llamaman("users", "create", "eve", "--role", "viewer", "--password-stdin")
    assert outcome.status == 1
    assert "10" in outcome.err
    assert "short" not in outcome.err.replace("shorter", "").replace("too short", "")
    typing_in(f"{PASSWORD}\n")
    assert llamaman("users", "create", "ADA", "--role", "viewer", "--password-stdin").status == 1
    for arguments in (("rm", "ada", "--yes"), ("disable", "ada"), ("role", "ada", "viewer")):
        outcome = llamaman("users", *arguments)
        assert outcome.status == 1
        assert "admin" in outcome.err
    assert "users list" in llamaman("users", "disable", "nobody").err


def test_without_a_terminal_a_password_or_a_yes_must_be_asked_for(
    ada: Manager, llamaman: Run, typing_in: Callable[[str], None]
) -> None:
    typing_in(f"{PASSWORD}\n")
    outcome = llamaman("users", "create", "eve", "--role", "viewer")
    assert outcome.status == 2
    assert "--password-stdin" in outcome.err
    outcome = llamaman("users", "rm", "ada")
    assert outcome.status == 2
    assert "--yes" in outcome.err
    typing_in("\n")
    assert llamaman("users", "passwd", "ada", "--password-stdin").status == 2
    assert llamaman("users", "create", "eve", "--role", "king", "--password-stdin").status == 2


def test_no_command_takes_a_password_as_an_argument(llamaman: Run) -> None:
    for command in ("create", "passwd"):
        assert "--password " not in llamaman("users", command, "--help").out
    assert llamaman("users", "passwd", "ada", PASSWORD).status == 2


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._end, theirs = pty.openpty()
        command = [sys.executable, "-m", "llamaman", *arguments]
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def answer(self, prompt: str, text: str) -> None:
        """Wait for a prompt, then type a line."""
        self._read(lambda: self.shown.count(prompt) > 0)
        self.shown = ""
        os.write(self._end, f"{text}\n".encode())

    def end(self) -> int:
        """Read what is left; the exit status."""
        self._read(lambda: False)
        os.close(self._end)
        return self._process.wait(20)

    def _read(self, enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not enough():
            assert time.monotonic() < deadline, self.shown
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    data = os.read(self._end, 4096)
                except OSError:  # the command has closed its terminal
                    return
                if not data:
                    return
                self.shown += data.decode(errors="replace")


def test_on_a_terminal_the_password_is_asked_for_twice_and_not_shown(ada: Manager) -> None:
    terminal = Terminal("users", "create", "eve", "--role", "viewer")
    terminal.answer("Password: ", PASSWORD)
    terminal.answer("again: ", ANOTHER)
    terminal.answer("Password: ", PASSWORD)
    terminal.answer("again: ", PASSWORD)
    assert terminal.end() == 0
    assert PASSWORD not in terminal.shown
    assert log_in(ada, "eve", PASSWORD)


def test_on_a_terminal_deleting_asks_first(
    ada: Manager, llamaman: Run, typing_in: Callable[[str], None]
) -> None:
    typing_in(f"{PASSWORD}\n")
    llamaman("users", "create", "eve", "--role", "viewer", "--password-stdin")
    terminal = Terminal("users", "rm", "eve")
    terminal.answer("[y/N]", "n")
    assert terminal.end() == 1
    assert len(llamaman("users", "list", "--json").json) == 2
    terminal = Terminal("users", "rm", "eve")
    terminal.answer("[y/N]", "y")
    assert terminal.end() == 0
    assert len(llamaman("users", "list", "--json").json) == 1


# --- sessions ------------------------------------------------------------------------------------------


def test_sessions_are_listed_and_ended_one_by_one_by_user_and_all(
    ada: Manager, llamaman: Run, typing_in: Callable[[str], None]
) -> None:
    typing_in(f"{PASSWORD}\n")
    llamaman("users", "create", "Eve", "--role", "viewer", "--password-stdin")
    first = log_in(ada, "ada", PASSWORD).session.id
    for name in ("ada", "eve", "eve"):
        log_in(ada, name, PASSWORD)
    listed = llamaman("sessions", "list")
    assert first in listed.out
    assert "10.0.0.7" in listed.out
    assert "\x1b" not in listed.out
    assert llamaman("sessions", "end", first).status == 0
    assert llamaman("sessions", "end", first).status == 1
    assert len(llamaman("sessions", "end", "--user", "EVE", "--json").json["ended"]) == 2
    assert [row["user"] for row in llamaman("sessions", "list", "--json").json] == ["ada"]
    assert "0 sessions" in llamaman("sessions", "end", "--user", "eve").err
    assert llamaman("sessions", "end", "--user", "evve").status == 1
    assert "1 session " in llamaman("sessions", "end", "--all").err
    assert llamaman("sessions", "list", "--json").json == []


@pytest.mark.parametrize("arguments", [(), ("abc", "--all"), ("--all", "--user", "ada")])
def test_which_session_must_be_said_in_one_way(llamaman: Run, arguments: tuple[str, ...]) -> None:
    assert llamaman("sessions", "end", *arguments).status == 2


# --- the first user ------------------------------------------------------------------------------------


def test_the_setup_link_is_printed_alone_until_a_user_exists(
    manager: Manager, llamaman: Run, typing_in: Callable[[str], None]
) -> None:
    outcome = llamaman("setup-link")
    assert outcome.status == 0
    assert "/setup/" in outcome.out
    assert len(outcome.out.splitlines()) == 1
    typing_in(f"{PASSWORD}\n")
    assert llamaman("users", "create", "ada", "--role", "admin", "--password-stdin").status == 0
    outcome = llamaman("setup-link")
    assert (outcome.status, outcome.out) == (0, "")
    assert "exists already" in outcome.err
    assert llamaman("setup-link", "--json").json == {"link": None}


# --- from elsewhere ------------------------------------------------------------------------------------


def test_from_elsewhere_an_admins_key_does_and_a_smaller_one_is_told_what_is_missing(
    ada: Manager, llamaman: Run, environment: pytest.MonkeyPatch, typing_in: Callable[[str], None]
) -> None:
    environment.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    environment.setenv("LLAMAMAN_URL", f"http://127.0.0.1:{ada.port}")
    environment.setenv("LLAMAMAN_API_KEY", ada.key(Scope.ADMIN))
    typing_in(f"{PASSWORD}\n")
    assert llamaman("users", "create", "eve", "--role", "viewer", "--password-stdin").status == 0
    assert len(llamaman("users", "list", "--json").json) == 2
    log_in(ada, "eve", PASSWORD)
    assert len(llamaman("sessions", "list", "--json").json) == 1
    assert llamaman("sessions", "end", "--all").status == 0
    assert llamaman("settings", "describe", "require_auth").status == 0
    assert llamaman("requests", "list", "--json").json == []
    assert llamaman("events").status == 0
    assert "tiny-q8_0" in llamaman("why", "tiny-q8_0").out.splitlines()[0]
    assert llamaman("why", "nothing").status == 1
    assert eventually(lambda: "eve" in llamaman("audit").out)
    assert (
        llamaman("audit", "--action", "users", "--limit", "1", "--json").json[0]["action"].startswith("users")
    )
    assert llamaman("doctor", "--json").json["source"] == "manager"
    environment.setenv("LLAMAMAN_API_KEY", ada.key(Scope.MANAGE))
    for arguments in (("users", "list"), ("sessions", "list"), ("setup-link",), ("doctor",), ("audit",)):
        outcome = llamaman(*arguments)
        assert outcome.status == 1, arguments
        assert "'admin'" in outcome.err
        assert "'manage'" in outcome.err
