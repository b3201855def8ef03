"""Shell completion, in a real bash and with a running manager."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from management_door import Manager

from llamaman.cli.root import COMMANDS

Run = Callable[..., Any]
Complete = Callable[..., list[str]]

pytestmark = [
    pytest.mark.real("bash"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash"),
]


@pytest.fixture
def complete(llamaman: Run, tmp_path: Path, environment: pytest.MonkeyPatch) -> Complete:
    """What bash offers for the words of a command line, the last of which is being typed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "llamaman"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llamaman "$@"\n')
    program.chmod(0o755)
    script = tmp_path / "completion.bash"
    script.write_text(llamaman("completion", "bash").out)
    environment.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def offered(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("llamaman", *words))
        commands = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
            "_llamaman_completion llamaman; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", commands], capture_output=True, text=True, check=True, timeout=60
        )
        # Outside of a completion bash has no compopt; the program itself must be silent.
        assert done.stderr == ""
        return done.stdout.split()

    return offered


def test_bash_completes_commands_and_subcommands(complete: Complete) -> None:
    assert set(complete("")) == set(COMMANDS)
    assert set(complete("set")) == {"settings", "setup-link"}
    assert set(complete("users", "")) == {"list", "create", "passwd", "role", "disable", "enable", "rm"}


def test_bash_completes_options_and_choices(complete: Complete) -> None:
    assert "--json" in complete("ps", "--")
    assert complete("completion", "") == ["bash", "zsh", "fish"]
    assert complete("users", "create", "ada", "--role", "") == ["viewer", "manager", "admin"]


def test_bash_completes_models_and_instances_of_the_running_manager(
    manager: Manager, llamaman: Run, complete: Complete
) -> None:
    assert complete("launch", "") == ["tiny-q8_0"]
    assert complete("presets", "get", "ti") == ["tiny-q8_0"]
    first = llamaman("launch", "tiny-q8_0", "--json").json["id"]
    assert sorted(complete("stop", "")) == sorted([first, "tiny-q8_0"])
    assert complete("logs", first[:6]) == [first]
    second = llamaman("launch", "tiny-q8_0", "--json").json["id"]
    # Two instances of one model: its name says no more which is meant.
    assert sorted(complete("stop", "")) == sorted([first, second])


def test_a_name_that_a_shell_would_obey_is_never_offered(manager: Manager, complete: Complete) -> None:
    for name in ("$(reboot).gguf", "a;b.gguf", "x`id`.gguf", "*.gguf", "harmless.gguf"):
        shutil.copy(manager.model, manager.model.with_name(name))
    manager.kernel.library.rescan()
    assert complete("launch", "") == ["harmless", "tiny-q8_0"]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1", "not a url", "http://192.0.2.1:5000", None],
    ids=["closed", "bad", "silent", "none"],
)
def test_without_a_manager_completion_is_silent_and_quick(
    complete: Complete, environment: pytest.MonkeyPatch, url: str | None
) -> None:
    if url:
        environment.setenv("LLAMAMAN_URL", url)
    began = time.monotonic()
    assert complete("stop", "") == []
    assert time.monotonic() - began < 15  # a person waits; a silent address costs half a second


@pytest.mark.parametrize(("shell", "word"), [("zsh", "#compdef llamaman"), ("fish", "complete --no-files")])
def test_the_other_shells_have_scripts_too(llamaman: Run, shell: str, word: str) -> None:
    outcome = llamaman("completion", shell)
    assert outcome.status == 0
    assert word in outcome.out
    assert llamaman("completion", shell, "--json").json["script"] == outcome.out


def test_an_unknown_shell_is_wrong_usage(llamaman: Run) -> None:
    assert llamaman("completion", "cmd").status == 2
