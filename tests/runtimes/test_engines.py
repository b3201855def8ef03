"""What a build is asked, how often, and what becomes of a build that does not answer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llamaman.runtimes import engines
from llamaman.runtimes.engines import Probes, find_binary, parse_help, parse_version
from llamaman.runtimes.process import ProcessRuntime
from llamaman.testing import write_temper
from llamaman.testing.engines import available_engines

ENV = {"PATH": "/usr/bin:/bin"}

HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (--not-a-flag)
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        use single unified KV buffer (-x)
--log-colors [on|off|auto]              Set colored logging
--draft, --draft-n, --draft-max N       the argument has been removed. use --spec-draft-n-max
"""


def asking(folder: Path, body: str) -> Path:
    """A program that notes how often it is asked, then does ``body``."""
    path = folder / "llama-server"
    path.write_text(f'#!/bin/sh\necho "$1" >> {folder}/asked\n{body}\n')
    path.chmod(0o700)
    return path


def asked(folder: Path) -> int:
    return (folder / "asked").read_text().count("--help")


def test_flags_are_the_spellings_at_the_start_of_option_lines() -> None:
    assert parse_help(HELP) == {
        "-h", "--help", "--usage", "-c", "--ctx-size", "-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified",
        "--log-colors",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("version: 0.6.0-dev (build 11434, commit b11434)\nbuilt with GNU", "b11434"),
        ("version: 4567 (0a1b2c3d)\nbuilt with cc", "b4567"),
        ("nothing", None),
    ],
)
def test_a_build_is_named_as_llama_cpp_names_its_releases(text: str, build: str | None) -> None:
    assert parse_version(text) == build


@pytest.mark.real("llama-server")
def test_the_real_server_tells_its_flags_and_build(tmp_path: Path) -> None:
    engine = available_engines()[0]
    if engine.missing or engine.binary is None:
        pytest.skip(engine.missing or "")
    found, reason = Probes(tmp_path, ENV).engine(engine.binary)
    assert reason is None
    assert found.flags is not None
    assert {"--model", "-m", "--ctx-size", "--parallel", "--flash-attn", "--metrics"} <= found.flags
    assert found.build is not None


def test_a_build_is_asked_once_also_over_restarts(tmp_path: Path) -> None:
    binary = asking(tmp_path, "echo '--model FNAME   model'")
    assert Probes(tmp_path, ENV).engine(binary)[0].flags == {"--model"}
    probes = Probes(tmp_path, ENV)
    assert probes.engine(binary)[0].flags == {"--model"}
    assert probes.engine(binary)[0].flags == {"--model"}
    assert asked(tmp_path) == 1


def test_another_build_at_the_same_path_is_asked_again(tmp_path: Path) -> None:
    binary = asking(tmp_path, "echo '--model FNAME   model'")
    probes = Probes(tmp_path, ENV)
    probes.engine(binary)
    binary = asking(tmp_path, "echo '--model FNAME   model'; echo '--new   thing'")
    os.utime(binary, (1, 1))
    assert probes.engine(binary)[0].flags == {"--model", "--new"}


@pytest.mark.parametrize(
    ("body", "words"), [("exit 3", "exit status 3"), ("echo hello", "listed 0 flags"), ("kill -9 $$", "-9")]
)
def test_a_build_that_does_not_tell_is_offered_with_unknown_flags_and_the_reason(
    tmp_path: Path, body: str, words: str
) -> None:
    binary = asking(tmp_path, body)
    engine, reason = Probes(tmp_path, ENV).engine(binary)
    assert engine.flags is None
    assert words in (reason or "")
    runtime = ProcessRuntime(binary=binary, embedded=False, state_dir=tmp_path / "state")
    assert any(words in note for note in runtime.notes())


def test_a_build_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_TIMEOUT_S", 0.2)
    engine, reason = Probes(tmp_path, ENV).engine(asking(tmp_path, "sleep 1000"))
    assert engine.flags is None
    assert "no answer" in (reason or "")


def test_a_broken_cache_is_only_a_cache(tmp_path: Path) -> None:
    binary = asking(tmp_path, "echo '--model FNAME   model'")
    for content in ("{", "[]", json.dumps({str(binary): {}}), json.dumps({str(binary): 3})):
        (tmp_path / "engines.json").write_text(content)
        assert Probes(tmp_path, ENV).engine(binary)[0].flags == {"--model"}, content


def test_the_configured_program_goes_before_the_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    on_path = asking(tmp_path / "bin", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_binary(None) == on_path
    configured = write_temper(tmp_path, "polite")
    assert find_binary(configured) == configured
    assert find_binary(tmp_path / "none") is None
    monkeypatch.setenv("PATH", "")
    assert find_binary(None) is None


def test_a_configured_program_that_is_missing_is_said(tmp_path: Path) -> None:
    runtime = ProcessRuntime(binary=tmp_path / "none", embedded=False, state_dir=tmp_path / "state")
    assert runtime.engines() == []
    assert any("LLAMA_SERVER_BIN" in note for note in runtime.notes())
