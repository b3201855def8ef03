"""What each check says of a machine where the thing is well, and of one where it is not."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from llamaman.access import Scope
from llamaman.core.config import Config
from llamaman.core.datadir import open_data_dir
from llamaman.core.key_record import KeyRecord
from llamaman.doctor import (
    Finding,
    Live,
    Person,
    access,
    diagnose,
    diagnose_environment,
    engine,
    environment,
    exposure,
    failed,
    folders,
    machine,
    ports,
    run,
)
from llamaman.gateway.listeners import Listeners
from llamaman.testing.processes import free_ports

DAY_S = 86400.0

Make = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path) -> Make:
    """A configuration of folders that are there, and ports that are free; variables may be added."""
    for name in ("data", "logs", "models"):
        (tmp_path / name).mkdir(mode=0o700)
    first = free_ports(8)[0]
    environ = {
        "LLAMAMAN_NODE_NAME": "n1",
        "LLAMAMAN_RUNTIME": "process",  # whether this machine has Docker or not
        "DATA_DIR": str(tmp_path / "data"),
        "LOGS_DIR": str(tmp_path / "logs"),
        "MODELS_DIR": str(tmp_path / "models"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "LLAMAMAN_HOST": "127.0.0.1",
        "LLAMAMAN_PORT": str(first),
        "LLAMAMAN_PROXY_PORT": str(first + 1),
        "PORT_RANGE_START": str(first + 2),
        "PORT_RANGE_END": str(first + 4),
        "INTERNAL_PORT_RANGE_START": str(first + 5),
        "INTERNAL_PORT_RANGE_END": str(first + 7),
    }

    def make(**more: str) -> Config:
        return Config.from_environ({**environ, **more})

    return make


def statuses(findings: Iterable[Finding], check: str | None = None) -> list[str]:
    return [finding.status for finding in findings if check in (None, finding.check)]


def the(findings: Iterable[Finding], status: str) -> Finding:
    """The only finding with a status."""
    found = [finding for finding in findings if finding.status == status]
    assert len(found) == 1, found
    return found[0]


# --- the environment -----------------------------------------------------------------------------------


def test_every_wrong_variable_is_named_at_once_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    environ = {"LLAMAMAN_PORT": "door", "DRAIN_TIMEOUT": "-1", "DATA_DIR": str(tmp_path)}
    findings, config = environment.check_environment(environ)
    assert statuses(findings) == ["fail"] * 3
    assert {finding.what.split()[0].rstrip(":") for finding in findings} == {
        "LLAMAMAN_NODE_NAME",
        "LLAMAMAN_PORT",
        "DRAIN_TIMEOUT",
    }
    assert config is not None
    assert (config.port, config.data_dir) == (5000, tmp_path)
    assert any(str(finding.cure).startswith("export LLAMAMAN_NODE_NAME=") for finding in findings)


def test_variables_that_contradict_one_another_leave_nothing_to_check() -> None:
    findings = diagnose_environment(
        {"LLAMAMAN_NODE_NAME": "n", "LLAMAMAN_PORT": "7000", "LLAMAMAN_PROXY_PORT": "7000"}
    )
    assert "7000" in the(findings, "fail").what
    assert the(findings, "skip").check == "everything-else"


def test_a_secret_that_is_wrong_is_not_shown() -> None:
    findings, _ = environment.check_environment(
        {"LLAMAMAN_NODE_NAME": "n", "LLAMAMAN_ADMIN_PASSWORD": "hunter2"}
    )
    assert "LLAMAMAN_ADMIN_PASSWORD" in the(findings, "fail").what
    assert "hunter2" not in repr(findings)


def test_a_misspelt_variable_is_a_warning() -> None:
    findings, _ = environment.check_environment({"LLAMAMAN_NODE_NAME": "n", "LLAMAMAN_PROT": "1"})
    assert "LLAMAMAN_PORT" in the(findings, "warn").what


# --- engines -------------------------------------------------------------------------------------------


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_an_engine_that_names_its_version_is_well(config: Make, tmp_path: Path) -> None:
    binary = program(tmp_path / "llama-server", 'echo "version: 1234 (build 1234)"')
    findings = engine.check_engine(config(LLAMA_SERVER_BIN=str(binary)))
    assert any("b1234" in finding.what for finding in findings if finding.status == "ok")


def test_an_engine_that_cannot_run_fails_with_its_last_words(config: Make, tmp_path: Path) -> None:
    binary = program(
        tmp_path / "llama-server", 'echo "libggml.so: cannot open shared object file" >&2; exit 127'
    )
    finding = the(engine.check_engine(config(LLAMA_SERVER_BIN=str(binary))), "fail")
    assert "libggml.so" in finding.what
    assert "127" in finding.what


def test_an_engine_that_a_signal_kills_says_which(config: Make, tmp_path: Path) -> None:
    binary = program(tmp_path / "llama-server", "kill -ILL $$")
    assert "signal 4" in the(engine.check_engine(config(LLAMA_SERVER_BIN=str(binary))), "fail").what


def test_without_any_engine_the_cure_says_how_to_get_one(
    config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(engine, "embedded_version", lambda: None)
    assert "LLAMA_SERVER_BIN" in str(the(engine.check_engine(config()), "fail").cure)


def test_engines_see_nothing_of_our_environment(
    config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_KEY", "do not tell")
    binary = program(tmp_path / "llama-server", "env; exit 3")
    binary.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\n")
    engine.check_engine(config(LLAMA_SERVER_BIN=str(binary)))
    assert "do not tell" not in (tmp_path / "seen").read_text()


# --- ports ---------------------------------------------------------------------------------------------


def test_free_ports_are_well_and_free_afterwards(config: Make) -> None:
    wanted = config()
    assert set(statuses(ports.check_ports_to_be(wanted))) == {"ok"}
    assert set(statuses(ports.check_ports_to_be(wanted))) == {"ok"}


def test_a_port_that_another_program_holds_is_named(config: Make) -> None:
    wanted = config()
    with Listeners.reserve("127.0.0.1", wanted.port):
        finding = the(ports.check_ports_to_be(wanted), "fail")
    assert f"{wanted.port}" in finding.what
    assert "LLAMAMAN_PORT" in finding.what
    assert "ss -ltnp" in str(finding.cure)


def test_a_range_warns_when_some_of_it_is_held_and_fails_when_all_is(config: Make) -> None:
    wanted = config()
    with ExitStack() as held:
        held.enter_context(Listeners.reserve("127.0.0.1", wanted.port_range_start))
        assert str(wanted.port_range_start) in the(ports.check_ports_to_be(wanted), "warn").what
        for port in range(wanted.port_range_start + 1, wanted.port_range_end + 1):
            held.enter_context(Listeners.reserve("127.0.0.1", port))
        assert "no model can be launched" in the(ports.check_ports_to_be(wanted), "fail").what


def test_while_serving_our_own_ports_are_well_and_missing_ones_fail(config: Make) -> None:
    wanted = config()
    with Listeners.reserve("127.0.0.1", wanted.port):
        findings = ports.check_ports_in_use(wanted, frozenset())
    assert "served by this manager" in findings[0].what
    assert findings[0].status == "ok"
    assert "LLAMAMAN_PROXY_PORT" in the(findings, "fail").what


def test_while_serving_the_ports_of_our_engines_are_not_strangers(config: Make, tmp_path: Path) -> None:
    wanted = config()
    port = wanted.internal_port_range_start
    # As the kernel shows it: a listener that is none of this process's sockets.
    (tmp_path / "net").mkdir()
    row = (
        f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 987654321 1"
    )
    (tmp_path / "net" / "tcp").write_text(f"head\n{row}\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "fd").mkdir()
    strangers = ports.check_ports_in_use(wanted, frozenset(), tmp_path)
    assert str(port) in the(strangers, "warn").what
    assert "warn" not in statuses(ports.check_ports_in_use(wanted, frozenset({port}), tmp_path))


def test_without_the_kernels_tables_ports_are_not_checked(config: Make, tmp_path: Path) -> None:
    assert statuses(ports.check_ports_in_use(config(), frozenset(), tmp_path)) == ["skip"]


# --- folders -------------------------------------------------------------------------------------------


def test_folders_that_work_are_well_and_nothing_is_left_in_them(config: Make, tmp_path: Path) -> None:
    assert set(statuses(folders.check_folders(config(), serving=False))) == {"ok"}
    for name in ("data", "logs", "models"):
        assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize(("variable", "check"), [("DATA_DIR", "data-dir"), ("LOGS_DIR", "logs-dir")])
def test_a_folder_that_takes_no_file_fails_by_a_real_write(config: Make, variable: str, check: str) -> None:
    findings = folders.check_folders(config(**{variable: "/proc/self"}), serving=False)
    finding = the([each for each in findings if each.check == check], "fail")
    assert variable in finding.what
    assert "/proc/self" in finding.what


def test_a_folder_that_loses_what_is_written_fails(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "is full" in the(folders.check_folders(config(), serving=False)[:1], "fail").what


def test_a_file_in_the_place_of_a_folder_fails(config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = folders.check_folders(config(DATA_DIR=str(tmp_path / "file")), serving=False)
    assert "is not a folder" in the(findings, "fail").what


def test_a_folder_that_does_not_exist_yet_is_well_where_it_can_be_made(config: Make, tmp_path: Path) -> None:
    findings = folders.check_folders(config(DATA_DIR=str(tmp_path / "new" / "deep")), serving=False)
    assert set(statuses(findings)) == {"ok"}
    assert not (tmp_path / "new").exists()


def test_models_that_cannot_be_written_are_a_warning_for_the_first_folder_only(config: Make) -> None:
    findings = folders.check_folders(config(MODELS_DIR="/proc/self:/sys"), serving=False)
    assert "downloaded" in the([each for each in findings if each.check == "models-dir"], "warn").what


def test_models_that_are_not_there_fail(config: Make, tmp_path: Path) -> None:
    findings = folders.check_folders(config(MODELS_DIR=str(tmp_path / "none")), serving=False)
    assert "mkdir -p" in str(the(findings, "fail").cure)


def test_a_data_dir_in_use_fails_for_others_and_is_well_for_its_manager(config: Make) -> None:
    wanted = config()
    opened = open_data_dir(wanted.data_dir, "n1")
    try:
        assert f"pid {os.getpid()}" in the(folders.check_folders(wanted, serving=False), "fail").what
        assert statuses(folders.check_folders(wanted, serving=True), "lock") == ["ok"]
    finally:
        opened.close()
    assert statuses(folders.check_folders(wanted, serving=False), "lock") == ["ok"]


def test_a_manager_whose_lock_file_was_replaced_is_told(config: Make) -> None:
    wanted = config()
    opened = open_data_dir(wanted.data_dir, "n1")
    (wanted.data_dir / ".lock").unlink()
    (wanted.data_dir / ".lock").touch(mode=0o600)
    try:
        assert statuses(folders.check_folders(wanted, serving=True), "lock") == ["fail"]
    finally:
        opened.close()


def test_locks_that_exclude_nobody_fail(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: None)
    assert "locks do nothing" in the(folders.check_folders(config(), serving=False), "fail").what


def test_a_data_dir_of_another_node_fails(config: Make) -> None:
    open_data_dir(config().data_dir, "n2").close()
    assert "node 'n2'" in the(folders.check_folders(config(), serving=False), "fail").what


def test_little_space_warns_and_none_fails(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    def with_free(free: int) -> list[str]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100 << 30, 0, free))  # type: ignore[attr-defined] # the type that disk_usage returns
        return statuses(folders.check_space(config()))

    assert with_free(50 << 30) == ["ok"]
    assert with_free((5 << 30) - 1) == ["warn"]
    assert with_free(1 << 20) == ["fail"]


def test_what_others_can_read_or_write_is_found(config: Make) -> None:
    wanted = config()
    assert statuses(folders.check_modes(wanted)) == ["ok", "ok"]
    wanted.logs_dir.chmod(0o755)
    assert statuses(folders.check_modes(wanted)) == ["ok", "warn"]
    wanted.data_dir.chmod(0o722)
    assert statuses(folders.check_modes(wanted)) == ["fail", "warn"]
    secret = wanted.data_dir / "users.json"
    secret.touch()
    secret.chmod(0o640)
    findings = folders.check_modes(wanted)
    assert str(secret) in findings[-1].what
    assert "chmod" in str(findings[-1].cure)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_data_dir_of_somebody_else_fails(config: Make) -> None:
    wanted = config()
    os.chown(wanted.data_dir, 65534, 65534)
    assert "uid 65534" in the(folders.check_modes(wanted), "fail").what


# --- the machine ---------------------------------------------------------------------------------------


def test_a_clock_that_is_behind_our_own_files_fails(config: Make) -> None:
    wanted = config()
    assert statuses(machine.check_clock(wanted)) == ["ok"]
    assert statuses(machine.check_clock(wanted, now=946684800.0)) == ["fail"]
    newer = wanted.data_dir / "store.json"
    newer.touch()
    os.utime(newer, (time.time() + 3600, time.time() + 3600))
    assert "behind" in the(machine.check_clock(wanted), "fail").what


def test_a_file_system_with_another_time_is_a_warning(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "trial", lambda folder: folders.Trial(time.time() - 3600, True))
    assert "-3600" in the(machine.check_clock(config()), "warn").what


def test_little_memory_is_a_warning_and_unknown_memory_is_not_zero(tmp_path: Path) -> None:
    def with_available(kib: int) -> list[str]:
        (tmp_path / "meminfo").write_text(f"MemTotal: 16000000 kB\nMemAvailable: {kib} kB\n")
        return statuses(machine.check_memory(tmp_path, tmp_path))

    assert statuses(machine.check_memory(tmp_path, tmp_path)) == ["skip"]
    assert with_available(8_000_000) == ["ok"]
    assert with_available(500_000) == ["warn"]
    (tmp_path / "memory.max").write_text(str(512 << 20))
    assert with_available(8_000_000) == ["warn"]


def test_the_admin_sockets_folder_must_be_ours(config: Make, tmp_path: Path) -> None:
    wanted = config()
    assert statuses(machine.check_admin_socket(wanted, serving=False)) == ["ok"]
    folder = tmp_path / "run" / "llamaman"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert "others may write" in the(machine.check_admin_socket(wanted, serving=False), "fail").what


def test_a_manager_without_its_admin_socket_is_told(config: Make, tmp_path: Path) -> None:
    wanted = config()
    folder = tmp_path / "run" / "llamaman"
    folder.mkdir(parents=True, mode=0o700)
    assert statuses(machine.check_admin_socket(wanted, serving=True)) == ["fail"]
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(folder / "n1.sock"))
        (folder / "n1.sock").chmod(0o600)
        assert statuses(machine.check_admin_socket(wanted, serving=True)) == ["ok"]
        (folder / "n1.sock").chmod(0o666)
        assert statuses(machine.check_admin_socket(wanted, serving=True)) == ["fail"]


# --- security: what is open ----------------------------------------------------------------------------


def test_ports_that_other_machines_reach_are_said(config: Make) -> None:
    assert statuses(exposure.check_bind(config())) == ["ok"]
    finding = the(exposure.check_bind(config(LLAMAMAN_HOST="0.0.0.0", LLAMAMAN_IN_DOCKER="false")), "warn")
    assert "LLAMAMAN_HOST=127.0.0.1" in str(finding.cure)
    assert statuses(exposure.check_bind(config(LLAMAMAN_HOST="0.0.0.0", LLAMAMAN_IN_DOCKER="true"))) == ["ok"]


@pytest.mark.parametrize(
    ("variables", "status", "named"),
    [
        ({}, "ok", "unencrypted"),
        ({"LLAMAMAN_HOST": "0.0.0.0"}, "warn", "LLAMAMAN_PUBLIC_URL"),
        ({"LLAMAMAN_PUBLIC_URL": "http://models.example.org"}, "warn", "https"),
        ({"LLAMAMAN_PUBLIC_URL": "http://localhost:5000"}, "ok", "localhost"),
        ({"LLAMAMAN_PUBLIC_URL": "https://models.example.org"}, "warn", "LLAMAMAN_TRUSTED_PROXIES"),
        (
            {"LLAMAMAN_PUBLIC_URL": "https://models.example.org", "LLAMAMAN_TRUSTED_PROXIES": "10.0.0.1"},
            "ok",
            "models.example.org",
        ),
    ],
)
def test_what_crosses_the_network_unencrypted(
    config: Make, variables: Mapping[str, str], status: str, named: str
) -> None:
    (finding,) = exposure.check_public_url(config(**variables))
    assert finding.status == status
    assert named in f"{finding.what} {finding.cure}"


def test_a_trusted_network_as_wide_as_the_internet_fails(config: Make) -> None:
    assert statuses(exposure.check_proxies(config(LLAMAMAN_TRUSTED_PROXIES="10.0.0.1"))) == ["ok"]
    wide = exposure.check_proxies(config(LLAMAMAN_TRUSTED_PROXIES="10.0.0.1,0.0.0.0/0"))
    assert "0.0.0.0/0" in the(wide, "fail").what


def test_a_docker_socket_within_reach_is_said(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    assert statuses(exposure.check_docker(path)) == ["ok", "skip"]
    with socket.socket(socket.AF_UNIX) as docker:
        docker.bind(str(path))
        finding = exposure.check_docker(path)[0]
        assert "root on the host" in finding.what
        assert "need no Docker" in str(finding.cure)


def test_docker_in_use_is_said_to_be_root_on_the_host(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    assert statuses(exposure.check_docker(path, used=True)) == ["ok"]
    with socket.socket(socket.AF_UNIX) as docker:
        docker.bind(str(path))
        finding = the(exposure.check_docker(path, used=True), "warn")
        assert "to run engines" in finding.what
        assert "root on the host" in finding.what
        assert "need no Docker" not in str(finding.cure)
    assert "another machine" in the(exposure.check_docker(None, used=True), "warn").what


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a file away")
def test_the_daemon_of_an_ordinary_account_is_not_called_root(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as docker:
        docker.bind(str(path))
        os.chown(path, 1234, 1234)
        assert "uid 1234 on the host" in the(exposure.check_docker(path, used=True), "warn").what


def test_the_raw_cluster_secret_is_a_warning(config: Make) -> None:
    assert statuses(exposure.check_cluster(config())) == ["ok"]
    raw = config(CLUSTER_ALLOW_RAW_SECRET="1", SECRET_KEY="x" * 40)
    assert statuses(exposure.check_cluster(raw)) == ["warn"]


def test_what_isolates_engines_and_what_does_not_is_said(config: Make, tmp_path: Path) -> None:
    script = program(tmp_path / "llama-server", "exit 0")
    assert statuses(exposure.check_isolation(config(), contained=True)) == ["ok"]
    findings = exposure.check_isolation(config(LLAMA_SERVER_BIN=str(script)))
    assert any("script" in finding.what or "Landlock" in finding.what for finding in findings)
    assert "warn" in statuses(findings)
    assert all(finding.cure for finding in findings if finding.status == "warn")


# --- security: who may do what -------------------------------------------------------------------------

NOW = 2_000_000_000.0


def key(scope: Scope = Scope.ADMIN, expires: float | None = None) -> KeyRecord:
    return KeyRecord("k1", "deploy", "llm-abcd", "0" * 64, scope, None, NOW - DAY_S, expires, "local:uid:0")


def person(name: str = "ada", *, last: float | None = NOW - 60, created: float = NOW - 400 * DAY_S) -> Person:
    return Person(name, "admin", disabled=False, created=created, last_login=last)


def live(**changes: object) -> Live:
    facts: dict[str, object] = {
        "started_at": NOW - 60,
        "require_auth": True,
        "unlisted_args": False,
        "people": (person(),),
        "keys": (),
        "engine_ports": frozenset(),
    }
    return Live(**{**facts, **changes})  # type: ignore[arg-type] # each has the type of its field


def judged(config: Config, facts: Live | None, check: str) -> Finding:
    found = [finding for finding in access.check_access(config, facts, NOW) if finding.check == check]
    assert len(found) == 1, found
    return found[0]


def test_a_manager_in_good_order_has_only_well_findings(config: Make) -> None:
    assert set(statuses(access.check_access(config(), live(), NOW))) == {"ok"}


def test_require_auth_off_fails_where_other_machines_reach_us(config: Make) -> None:
    off = live(require_auth=False)
    assert judged(config(), off, "require-auth").status == "warn"
    open_to_all = judged(config(LLAMAMAN_HOST="0.0.0.0"), off, "require-auth")
    assert open_to_all.status == "fail"
    assert "require_auth true" in str(open_to_all.cure)


def test_no_user_yet_is_a_warning_with_both_ways_to_make_one(config: Make) -> None:
    finding = judged(config(), live(people=()), "setup")
    assert finding.status == "warn"
    assert "setup-link" in str(finding.cure)
    assert "users create" in str(finding.cure)


def test_unlisted_arguments_are_a_warning(config: Make) -> None:
    assert judged(config(), live(unlisted_args=True), "unlisted-args").status == "warn"


def test_an_admins_key_for_ever_is_named_and_others_are_not(config: Make) -> None:
    finding = judged(config(), live(keys=(key(),)), "keys")
    assert finding.status == "warn"
    assert "deploy" in finding.what
    others = (key(Scope.MANAGE), key(expires=NOW + DAY_S))
    assert judged(config(), live(keys=others), "keys").status == "ok"


def test_users_who_stay_away_are_named_as_far_as_the_manager_can_know(config: Make) -> None:
    long = NOW - 100 * DAY_S
    finding = judged(config(), live(people=(person("eve", last=long), person("ada"))), "users")
    assert finding.status == "warn"
    assert "eve" in finding.what
    assert "ada" not in finding.what
    assert judged(config(), live(people=(person(last=None),)), "users").status == "skip"
    assert judged(config(), live(people=(person(last=None),), started_at=long), "users").status == "warn"
    new = person(last=None, created=NOW - DAY_S)
    assert judged(config(), live(people=(new,), started_at=long), "users").status == "ok"
    disabled = Person("eve", "viewer", disabled=True, created=long, last_login=long)
    assert judged(config(), live(people=(person(), disabled)), "users").status == "ok"


def test_a_first_password_left_in_the_environment_is_a_warning_that_does_not_show_it(config: Make) -> None:
    wanted = config(LLAMAMAN_ADMIN_PASSWORD="correct horse battery")
    finding = judged(wanted, live(), "first-credentials")
    assert finding.status == "warn"
    assert "has done its work" in finding.what
    assert "horse" not in repr(finding)


def test_without_a_manager_its_facts_are_not_checked_instead_of_guessed(config: Make) -> None:
    found = access.check_access(config(), None)
    assert {finding.check for finding in found if finding.status == "skip"} == {
        "require-auth",
        "setup",
        "unlisted-args",
        "keys",
        "users",
    }


# --- all together --------------------------------------------------------------------------------------


def test_everything_that_is_not_well_has_a_cure_and_everything_is_json(config: Make) -> None:
    findings = diagnose(config(LLAMAMAN_HOST="0.0.0.0", DATA_DIR="/proc/self"), security=True)
    assert failed(findings)
    assert all(finding.cure for finding in findings if finding.status in ("warn", "fail"))
    assert all(finding.cure is None for finding in findings if finding.status in ("ok", "skip"))
    json.dumps([finding.as_dict() for finding in findings])


def test_security_is_asked_for(config: Make) -> None:
    plain = {finding.check for finding in diagnose(config())}
    more = {finding.check for finding in diagnose(config(), security=True)}
    assert {"engine", "ports", "data-dir", "logs-dir", "models-dir", "space", "modes", "lock"} <= plain
    assert {"admin-socket", "clock", "memory", "account"} <= plain
    assert more - plain == {
        "bind", "tls", "proxies", "require-auth", "setup", "unlisted-args", "keys", "users",
        "first-credentials", "docker", "network", "isolation", "cluster-secret",
    }  # fmt: skip


def test_a_check_that_breaks_is_a_finding_and_hides_no_other(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> list[Finding]:
        raise RuntimeError("boom")

    monkeypatch.setattr(run.machine, "check_memory", broken)
    findings = diagnose(config())
    assert "boom" in next(finding.what for finding in findings if finding.check == "memory")
    assert "account" in {finding.check for finding in findings}
