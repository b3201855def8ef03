"""Every command against a running manager, over its admin socket and from elsewhere with a key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from management_door import Manager, eventually, running_manager

from llamaman.access import Scope
from llamaman.cli.output import escape
from llamaman.cli.root import COMMANDS, cli
from llamaman.core.launch_options import OPTIONS
from llamaman.errors import Conflict
from llamaman.records import PluginRecord

Run = Callable[..., Any]


# --- reaching a manager --------------------------------------------------------------------------------


def test_on_the_managers_machine_no_password_is_needed(manager: Manager, llamaman: Run) -> None:
    assert llamaman("ps", "--json").json == []
    assert llamaman("keys", "list", "--json").json == []


def test_from_elsewhere_url_and_key_do_and_the_keys_scope_holds(
    manager: Manager, llamaman: Run, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("LLAMAMAN_URL", f"http://127.0.0.1:{manager.port}")
    outcome = llamaman("ps")
    assert outcome.status == 1
    assert "LLAMAMAN_API_KEY" in outcome.err
    environment.setenv("LLAMAMAN_API_KEY", manager.key(Scope.VIEW))
    assert llamaman("ps", "--json").json == []
    outcome = llamaman("keys", "list")
    assert outcome.status == 1
    assert "'admin'" in outcome.err


def test_without_a_manager_the_status_is_3_and_the_sentence_says_what_to_do(llamaman: Run) -> None:
    outcome = llamaman("ps")
    assert outcome.status == 3
    assert "llamaman serve" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_an_unreachable_url_is_3_too(llamaman: Run, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LLAMAMAN_URL", "http://127.0.0.1:1")
    outcome = llamaman("ps")
    assert outcome.status == 3
    assert "127.0.0.1:1" in outcome.err


def test_a_wrong_environment_is_78(llamaman: Run, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LLAMAMAN_URL", "not a url")
    outcome = llamaman("ps")
    assert outcome.status == 78
    assert "LLAMAMAN_URL" in outcome.err


def test_serve_without_a_node_name_is_78_and_names_the_variable(llamaman: Run) -> None:
    outcome = llamaman("serve")
    assert outcome.status == 78
    assert "LLAMAMAN_NODE_NAME" in outcome.err


def test_wrong_usage_is_2(llamaman: Run) -> None:
    assert llamaman("no-such-command").status == 2
    assert llamaman("stop").status == 2
    assert llamaman("keys", "create", "--scope", "root").status == 2


def test_a_socket_left_behind_by_a_killed_manager_is_passed_over(
    manager: Manager, llamaman: Run, tmp_path: Path
) -> None:
    import socket

    left = socket.socket(socket.AF_UNIX)
    left.bind(str(manager.admin.with_name("dead.sock")))
    left.close()
    assert llamaman("ps", "--json").json == []


def test_of_several_managers_the_environment_names_one(
    manager: Manager, llamaman: Run, environment: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_manager(tmp_path_factory.mktemp("b"), node="other") as other:
        manager.admin.with_name("other.sock").symlink_to(other.admin)
        outcome = llamaman("ps")
        assert outcome.status == 3
        assert "other" in outcome.err
        assert "testnode" in outcome.err
        other.kernel.plugins = (PluginRecord("x", None, None, "active"),)
        environment.setenv("LLAMAMAN_NODE_NAME", "other")
        assert [row["name"] for row in llamaman("plugins", "--json").json] == ["x"]


# --- commands ------------------------------------------------------------------------------------------


def test_the_life_of_an_instance(manager: Manager, llamaman: Run) -> None:
    launched = llamaman(
        "launch", "tiny-q8_0", "--ctx-size", "2048", "-o", "parallel=2", "--port", "8002", "--json"
    )
    assert launched.status == 0, launched.err
    request = manager.kernel.instances.launched[0]
    assert (request.options, request.port) == ({"ctx_size": 2048, "parallel": 2}, 8002)
    instance_id = launched.json["id"]
    assert manager.kernel.instances.calls[0][2] == f"local:uid:{os.geteuid()}"
    table = llamaman("ps").out.splitlines()
    assert table[0].split()[:4] == ["ID", "MODEL", "PORT", "STATUS"]
    assert table[1].split()[:4] == [instance_id[:8], "tiny-q8_0", "8002", "healthy"]
    assert llamaman("rm", instance_id).status == 1
    assert llamaman("stop", "8002").status == 0
    assert llamaman("restart", instance_id[:8]).status == 0
    assert llamaman("stop", "tiny-q8_0", "--force", "--json").json == {"id": instance_id, "status": "stopped"}
    assert llamaman("rm", instance_id).status == 0
    assert llamaman("ps", "--json").json == []
    assert llamaman("stop", instance_id).status == 1


def test_a_launch_by_path_and_waiting_for_it(manager: Manager, llamaman: Run) -> None:
    outcome = llamaman("launch", str(manager.model), "--wait")
    assert outcome.status == 0
    assert "healthy on port 8000" in outcome.err


def test_a_refused_launch_is_one_sentence(manager: Manager, llamaman: Run) -> None:
    outcome = llamaman("launch", "tiny-q8_0", "--ctx-size", "0")
    assert outcome.status == 1
    assert "ctx_size" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert llamaman("launch", "unknown").status == 1
    outcome = llamaman("launch", "tiny-q8_0", "-o", "ctx_sise=1")
    assert outcome.status == 2
    assert "ctx_size" in outcome.err
    assert manager.kernel.instances.launched == []


def test_a_launch_over_the_cap_asks_for_yes(manager: Manager, llamaman: Run) -> None:
    class Confirmation(Conflict):
        code = "confirm_required"

    manager.kernel.instances.refusal = Confirmation("one model runs already")
    outcome = llamaman("launch", "tiny-q8_0")
    assert outcome.status == 1
    assert "--yes" in outcome.err
    manager.kernel.instances.refusal = None
    llamaman("launch", "tiny-q8_0", "--yes")
    assert manager.kernel.instances.launched[0].confirm_overcommit


def test_every_launch_option_has_a_flag_and_its_default_is_taken(manager: Manager, llamaman: Run) -> None:
    help_text = llamaman("launch", "--help").out
    for option in OPTIONS:
        assert f"--{option.name.replace('_', '-')}" in help_text
    arguments = []
    for option in OPTIONS:
        value = option.default
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        arguments += ["-o", f"{option.name}={text}"]
    outcome = llamaman("launch", "tiny-q8_0", *arguments)
    assert outcome.status == 0, outcome.err
    options = manager.kernel.instances.launched[0].options
    assert {name: options[name] for name in options} == {option.name: option.default for option in OPTIONS}


def test_ambiguous_words_are_refused_with_the_candidates(manager: Manager, llamaman: Run) -> None:
    ids = [llamaman("launch", "tiny-q8_0", "--json").json["id"] for _ in range(2)]
    outcome = llamaman("stop", "tiny-q8_0")
    assert outcome.status == 1
    assert all(instance_id in outcome.err for instance_id in ids)


def test_logs_are_printed_without_what_a_terminal_would_obey(manager: Manager, llamaman: Run) -> None:
    instance = llamaman("launch", "tiny-q8_0", "--json").json
    Path(instance["log_file"]).write_text("plain\tline\n\x1b[2Jwiped\u202e\n")
    outcome = llamaman("logs", instance["id"])
    lines = outcome.out.splitlines()
    assert lines[0] == "plain\tline"
    assert "\x1b" not in outcome.out
    assert "\u202e" not in outcome.out
    assert "wiped" in lines[1]
    assert llamaman("logs", instance["id"], "--json").json["lines"][0] == "plain\tline\n"


def test_logs_follow_until_the_instance_is_removed(manager: Manager, llamaman: Run) -> None:
    instance = llamaman("launch", "tiny-q8_0", "--json").json
    log = Path(instance["log_file"])
    log.write_text("first\n")

    def later() -> None:
        with log.open("a") as file:
            file.write("second\n")
        manager.kernel.instances.stop(instance["id"], "test")
        manager.kernel.instances.remove(instance["id"], "test")

    timer = threading.Timer(0.8, later)
    timer.start()
    outcome = llamaman("logs", "-f", instance["id"])
    timer.join()
    assert outcome.status == 0
    assert outcome.out == "first\nsecond\n"


def test_models_and_presets(manager: Manager, llamaman: Run) -> None:
    assert [row["name"] for row in llamaman("models", "--rescan", "--json").json] == ["tiny-q8_0"]
    assert str(manager.model) in llamaman("models").out
    assert llamaman("presets", "get", "tiny-q8_0").status == 1
    changes = ("ctx_size=8192", "favorite=true", "note=a = b", "threads=", "aliases=a,b")
    assert llamaman("presets", "set", "tiny-q8_0", *changes).status == 0
    assert llamaman("presets", "set", "Tiny-Q8_0:latest", "parallel=2").status == 0
    assert "8192" in llamaman("presets", "get", "B:latest").out
    preset = llamaman("presets", "get", str(manager.model), "--json").json
    aliases = preset.pop("aliases")
    assert aliases == ["a", "b"]
    assert preset == {"ctx_size": 8192, "favorite": True, "note": "a = b", "threads": None, "parallel": 2}
    assert "8192" in llamaman("presets", "get", "tiny-q8_0").out
    assert list(llamaman("presets", "list", "--json").json) == [str(manager.model)]
    assert llamaman("presets", "set", "tiny-q8_0", "ctx_size=lots").status == 1
    assert llamaman("presets", "delete", "tiny-q8_0").status == 0
    assert llamaman("presets", "list", "--json").json == {}


def test_keys(manager: Manager, llamaman: Run) -> None:
    made = llamaman("keys", "create", "--name", "ci", "--scope", "manage", "--model", "a", "--json").json
    assert made["key"].startswith("llm-")
    assert (made["name"], made["scope"], made["models"]) == ("ci", "manage", ["a"])
    assert manager.call("GET", "/api/instances", key=made["key"])[0] == 200
    plain = llamaman("keys", "create")
    assert plain.out.startswith("llm-")
    assert len(plain.out.splitlines()) == 1
    listed = llamaman("keys", "list")
    assert made["id"] in listed.out
    assert made["key"] not in listed.out
    assert llamaman("keys", "revoke", made["id"]).status == 0
    assert manager.call("GET", "/api/instances", key=made["key"])[0] == 401
    assert llamaman("keys", "revoke", made["id"]).status == 1
    assert llamaman("keys", "create", "--expires", "soon").status == 1


def test_settings(manager: Manager, llamaman: Run) -> None:
    assert llamaman("settings", "get", "require_auth").out == "true\n"
    assert llamaman("settings", "set", "require_auth", "false").status == 0
    assert manager.kernel.settings.get("require_auth") is False
    assert llamaman("settings", "set", "cleanup.downloads_max_age_hours", "7").status == 0
    assert llamaman("settings", "get", "cleanup.downloads_max_age_hours", "--json").json == 7
    assert llamaman("settings", "get", "cleanup").json["downloads_max_age_hours"] == 7
    assert "cleanup.downloads_max_age_hours" in llamaman("settings", "list").out
    assert llamaman("settings", "list", "--json").json["require_auth"] is False
    for name, value in (("nonsense", "1"), ("require_auth", "maybe"), ("cleanup", "5")):
        outcome = llamaman("settings", "set", name, value)
        assert outcome.status == 1
        assert name in outcome.err
    assert llamaman("settings", "get", "nonsense").status == 1


def test_plugins_and_routes(manager: Manager, llamaman: Run) -> None:
    manager.kernel.plugins = (PluginRecord("gpu_x", "d", "1", "broken", "bad\x1b[31m", ("gpu_probe",)),)
    outcome = llamaman("plugins", "--hooks")
    assert "gpu_probe" in outcome.out
    assert "\x1b" not in outcome.out
    assert "HOOKS" not in llamaman("plugins").out
    assert llamaman("plugins", "--json").json[0]["state"] == "broken"
    assert {"method", "path", "surface", "level", "plugin"} == set(llamaman("routes", "--json").json[0])
    assert "/api/api-keys" in llamaman("routes").out


# --- promises of the whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_of_the_list_exists_and_has_help(command: str, llamaman: Run) -> None:
    outcome = llamaman(command, "--help")
    assert outcome.status == 0
    assert "Usage:" in outcome.out
    assert cli.get_command(None, command).name == command  # type: ignore[arg-type, union-attr] # no context needed


def test_every_command_that_answers_can_answer_json(llamaman: Run) -> None:
    import click

    def leaves(command: click.Command) -> list[click.Command]:
        if isinstance(command, click.Group):
            return [leaf for each in command.commands.values() for leaf in leaves(each)]
        return [command]

    for name in set(COMMANDS) - {"serve", "demo"}:
        command = cli.get_command(None, name)  # type: ignore[arg-type] # no context needed
        assert command is not None
        for leaf in leaves(command):
            assert any("--json" in parameter.opts for parameter in leaf.params), f"{name} {leaf.name}"


def test_the_package_imports_nothing_heavy_until_a_command_runs() -> None:
    heavy = {"click", "flask", "waitress", "uvloop", "asyncio", "requests", "http.client", "json"}
    program = "import llamaman, sys; before = set(sys.modules); import llamaman.cli; "
    program += "print(' '.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_the_program_runs_as_a_module_and_as_a_script(
    manager: Manager, environment: pytest.MonkeyPatch
) -> None:
    for program in ([sys.executable, "-m", "llamaman"], [str(Path(sys.executable).with_name("llamaman"))]):
        done = subprocess.run([*program, "ps", "--json"], capture_output=True, text=True, check=False)
        assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stderr


def test_a_reader_that_has_enough_is_no_error(manager: Manager, environment: pytest.MonkeyPatch) -> None:
    command = f"{sys.executable} -m llamaman routes | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("METHOD")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_interrupting_a_follow_is_130_without_a_traceback(
    manager: Manager, environment: pytest.MonkeyPatch
) -> None:
    import signal

    body = {"model": "tiny-q8_0"}
    instance = manager.call("POST", "/api/instances", body, manager.key(Scope.MANAGE))[1]
    Path(instance["log_file"]).write_text("first\n")
    command = [sys.executable, "-u", "-m", "llamaman", "logs", "-f", instance["id"]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == ""
    eventually(lambda: process.poll() is not None)


@pytest.mark.parametrize(
    "hostile", ["\x1b]0;x\x07", "\r", "\x9b31m", "\u202e", "\u2066", "\u200b", "\x00", "\x7f"]
)
def test_hostile_characters_are_written_out(hostile: str) -> None:
    shown = escape(f"a{hostile}b")
    assert shown.startswith("a\\")
    assert shown.isprintable()
