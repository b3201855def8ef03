"""``llamaman node rename``: the folder's node gets another name, and nothing in it is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaman.testing.engines import available_engines
from llamaman.testing.manager import Manager, command

NEW = "another-name"


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Iterator[Manager]:
    """A manager in its own folder, not started."""
    manager = Manager(tmp_path / "m")
    shutil.copy(tiny_model, manager.models / "tiny.gguf")
    yield manager
    if manager.is_alive:
        manager.terminate()
    manager.close()


def rename(manager: Manager, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as it is typed: in the manager's environment, without its node name."""
    shell = {name: value for name, value in manager.env.items() if name != "LLAMAMAN_NODE_NAME"}
    done = subprocess.run(
        [*command(), "node", "rename", *arguments],
        env={**shell, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def as_node(manager: Manager, name: str) -> Manager:
    manager.env["LLAMAMAN_NODE_NAME"] = name
    return manager


def owner(manager: Manager) -> str:
    return str(json.loads((manager.data / "install.json").read_text(encoding="utf-8"))["node"])


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a refusal."""
    assert (done.returncode, done.stdout) == (78, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.real("embedded engine")
def test_a_renamed_node_keeps_its_instances_keys_presets_and_its_own_settings(home: Manager) -> None:
    (engine,) = (each for each in available_engines() if each.name == "embedded")
    if engine.missing:
        pytest.skip(engine.missing)
    old = home.node
    home.start()
    stopped = home.launch("tiny")
    home.stop(stopped["id"])
    sleeper = home.launch("tiny", idle_timeout_min=60)
    home.preset("tiny", ctx_size=1024)
    home.setting(admin_ui_enforce_max_models=True, recording_retention_days=7)
    key = home.key("manage")
    assert home.terminate() == 0

    done = rename(home, old, NEW)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"LLAMAMAN_NODE_NAME={NEW}" in done.stdout
    assert owner(home) == NEW

    home.spawn()
    assert home.running.wait(30) == 78, "the old name is not served any more"
    assert f"llamaman node rename {NEW} {old}" in home.output()

    as_node(home, NEW).start()
    assert home.instance(stopped["id"])["status"] == "stopped"
    assert home.instance(sleeper["id"])["status"] == "sleeping"
    assert home.chat(None, port=sleeper["port"]).status == 200, "it wakes under the new name"
    assert home.http("GET", "/api/instances", key=key.secret).status == 200
    settings = home.manage("GET", "/api/settings")
    assert settings["admin_ui_enforce_max_models"] is True, "kept per node"
    assert settings["recording_retention_days"] == 7
    assert [each["ctx_size"] for each in home.manage("GET", "/api/presets").values()] == [1024]
    assert home.terminate() == 0
    assert not home.engines()


def test_json_is_printed_on_request(home: Manager) -> None:
    home.start()
    home.terminate()
    done = rename(home, home.node, NEW, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"data_dir": str(home.data), "node": NEW}


def test_while_a_manager_runs_the_rename_is_refused_with_who_runs(home: Manager) -> None:
    home.start()
    said = refused(rename(home, home.node, NEW))
    assert f"is in use by pid {home.running.pid}" in said
    assert "stop that one" in said
    assert owner(home) == home.node


@pytest.mark.real("embedded engine")
def test_while_engines_of_a_killed_manager_run_the_rename_is_refused(home: Manager) -> None:
    (engine,) = (each for each in available_engines() if each.name == "embedded")
    if engine.missing:
        pytest.skip(engine.missing)
    home.start()
    instance = home.launch("tiny")
    home.kill()
    said = refused(rename(home, home.node, NEW))
    assert str(instance["pid"]) in said
    assert f"LLAMAMAN_NODE_NAME={home.node}" in said, "it says how they are ended"
    assert owner(home) == home.node
    home.start()
    assert home.wait_status(instance["id"], "healthy")["pid"] == instance["pid"]
    home.terminate()
    assert rename(home, home.node, NEW).returncode == 0


def test_a_wrong_old_name_is_refused_and_the_right_one_is_said(home: Manager) -> None:
    home.start()
    home.terminate()
    said = refused(rename(home, "somebody", NEW))
    assert f"belongs to node '{home.node}'" in said
    assert f"llamaman node rename {home.node} {NEW}" in said, "what would have worked"
    assert owner(home) == home.node


def test_a_name_that_no_manager_could_have_is_refused(home: Manager) -> None:
    home.start()
    home.terminate()
    for name, sentence in {
        "": "NEW is blank",
        "  ": "NEW is blank",
        "two\nlines": "without control characters",
        "x" * 129: "at most 128 characters",
    }.items():
        assert sentence in refused(rename(home, home.node, name))
    assert owner(home) == home.node


def test_where_no_node_lives_nothing_is_made(home: Manager, tmp_path: Path) -> None:
    empty = tmp_path / "elsewhere"
    said = refused(rename(home, home.node, NEW, DATA_DIR=str(empty)))
    assert f"no node lives in DATA_DIR {empty}" in said
    assert not empty.exists()
