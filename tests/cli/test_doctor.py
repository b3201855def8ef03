"""``doctor``: where it asks the manager, where it looks itself, and how it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from management_door import Manager

from llamaman.access import Scope
from llamaman.testing.processes import free_ports

Run = Callable[..., Any]


@pytest.fixture
def machine(environment: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A shell with the environment of a manager that could start here."""
    for name in [name for name in os.environ if name.startswith("LLAMAMAN_")]:
        environment.delenv(name)
    for name in ("data", "logs", "models"):
        (tmp_path / name).mkdir(mode=0o700, exist_ok=True)
        environment.setenv({"models": "MODELS_DIR"}.get(name, f"{name.upper()}_DIR"), str(tmp_path / name))
    environment.setenv("LLAMAMAN_NODE_NAME", "n1")
    binary = tmp_path / "llama-server"
    binary.write_text('#!/bin/sh\necho "version: 1234 (build 1234)"\n')
    binary.chmod(0o755)
    environment.setenv("LLAMA_SERVER_BIN", str(binary))
    environment.setenv("LLAMAMAN_HOST", "127.0.0.1")
    environment.setenv("LLAMAMAN_RUNTIME", "process")  # whether this machine has Docker or not
    for variable, port in zip(("LLAMAMAN_PORT", "LLAMAMAN_PROXY_PORT"), free_ports(2), strict=True):
        environment.setenv(variable, str(port))
    return environment


def test_without_a_manager_the_machine_is_checked_from_the_environment(
    machine: object, llamaman: Run
) -> None:
    outcome = llamaman("doctor")
    assert outcome.status == 0, outcome.out
    assert "no manager of this account answers" in outcome.err
    assert any(line.split()[:2] == ["ok", "data-dir"] for line in outcome.out.splitlines())
    report = llamaman("doctor", "--json").json
    assert (report["source"], report["failed"]) == ("environment", False)
    assert {"check", "status", "what", "cure"} == set(report["findings"][0])


def test_what_failed_makes_the_status_1_and_comes_with_its_cure(
    machine: pytest.MonkeyPatch, llamaman: Run, tmp_path: Path
) -> None:
    machine.setenv("MODELS_DIR", str(tmp_path / "elsewhere"))
    outcome = llamaman("doctor")
    assert outcome.status == 1
    lines = outcome.out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("fail"))
    assert "elsewhere" in lines[place]
    assert lines[place + 1].strip().startswith("-> mkdir -p")
    assert "1 fail" in outcome.err


def test_warnings_alone_are_no_failure(machine: pytest.MonkeyPatch, llamaman: Run) -> None:
    machine.setenv("LLAMAMAN_PROT", "5000")
    report = llamaman("doctor", "--json")
    assert report.status == 0
    assert "warn" in {finding["status"] for finding in report.json["findings"]}


def test_every_problem_of_the_environment_is_found_at_once(
    machine: pytest.MonkeyPatch, llamaman: Run
) -> None:
    machine.delenv("LLAMAMAN_NODE_NAME")
    machine.setenv("REQUEST_TIMEOUT", "soon")
    machine.setenv("LLAMAMAN_URL", "not a url")
    outcome = llamaman("doctor")
    assert outcome.status == 1
    for variable in ("LLAMAMAN_NODE_NAME", "REQUEST_TIMEOUT", "LLAMAMAN_URL"):
        assert variable in outcome.out
    assert "data-dir" in outcome.out


def test_text_of_the_environment_reaches_the_terminal_written_out(
    machine: pytest.MonkeyPatch, llamaman: Run, tmp_path: Path
) -> None:
    machine.setenv("MODELS_DIR", str(tmp_path / "a\x1b[2Jb"))
    assert "\x1b[2J" not in llamaman("doctor").out


def test_a_manager_that_was_named_and_does_not_answer_is_3(
    machine: pytest.MonkeyPatch, llamaman: Run
) -> None:
    machine.setenv("LLAMAMAN_URL", "http://127.0.0.1:1")
    assert llamaman("doctor").status == 3


def test_a_running_manager_examines_itself(manager: Manager, llamaman: Run) -> None:
    outcome = llamaman("doctor", "--security", "--json")
    report = outcome.json
    assert (report["source"], report["node"]) == ("manager", "testnode")
    by_check = {finding["check"]: finding for finding in report["findings"]}
    assert by_check["require-auth"]["status"] == "ok"
    assert by_check["setup"]["status"] == "warn"
    assert by_check["admin-socket"]["status"] == "ok"
    assert outcome.status == (1 if report["failed"] else 0)
    assert "testnode says of itself" in llamaman("doctor").err


def test_findings_follow_the_managers_settings_keys_and_users(manager: Manager, llamaman: Run) -> None:
    def status(check: str) -> str:
        findings = llamaman("doctor", "--security", "--json").json["findings"]
        return str(next(finding["status"] for finding in findings if finding["check"] == check))

    assert (status("keys"), status("unlisted-args")) == ("ok", "ok")
    manager.key(Scope.ADMIN)
    assert llamaman("settings", "set", "launch.allow_unlisted_args", "true").status == 0
    assert (status("keys"), status("unlisted-args")) == ("warn", "warn")


def test_from_elsewhere_an_admins_key_gets_the_managers_findings(
    manager: Manager, llamaman: Run, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("LLAMAMAN_URL", f"http://127.0.0.1:{manager.port}")
    environment.setenv("LLAMAMAN_API_KEY", manager.key(Scope.ADMIN))
    assert llamaman("doctor", "--json").json["node"] == "testnode"
    environment.setenv("LLAMAMAN_API_KEY", manager.key(Scope.MANAGE))
    outcome = llamaman("doctor")
    assert (outcome.status, outcome.out) == (1, "")
    assert "'admin'" in outcome.err


def test_security_is_true_or_false(manager: Manager) -> None:
    key = manager.key(Scope.ADMIN)
    status, answer = manager.call("GET", "/api/doctor?security=perhaps", key=key)
    assert status == 400
    assert "security" in answer["error"]


def test_only_one_examination_goes_on_at_a_time(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    key = manager.key(Scope.ADMIN)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> tuple[()]:
        begun.set()
        assert go_on.wait(20)
        return ()

    assert manager.call("GET", "/api/doctor", key=key)[0] == 200
    monkeypatch.setattr("llamaman.dashboard.rest.doctor.diagnose", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(manager.call, "GET", "/api/doctor", None, key)
        assert begun.wait(20)
        try:
            assert manager.call("GET", "/api/doctor", key=key)[0] == 409
        finally:
            go_on.set()
        assert first.result(20)[0] == 200
    assert manager.call("GET", "/api/doctor", key=key)[0] == 200
