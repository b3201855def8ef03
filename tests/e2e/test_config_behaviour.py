"""Each environment variable changes what a real manager does when it has another value than its default.

Variables whose readers arrive with later parts are parsed and checked (``tests/core/test_config.py``), and
nothing acts on them:

- containers: HOST_LOGS_DIR, which nothing needs any more, since containers write no files
- cluster: CLUSTER_ENABLED, CLUSTER_SECRET, CLUSTER_ADVERTISE_URL, CLUSTER_NODE_ONLINE_WINDOW_S,
  CLUSTER_ALLOW_RAW_SECRET
- downloads and recording: HF_ENDPOINT, RECORDINGS_DIR
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from proven import proven, proves

from llamaman.core.config import VARIABLES
from llamaman.testing import processes, write_temper
from llamaman.testing.manager import ENDLESS, FOR_EVER, Manager, command
from llamaman.testing.visitor import Visitor
from llamaman.testing.wire import call, refuses

EXIT_CONFIG = 78
pytestmark = pytest.mark.usefixtures("embedded")
With = Callable[..., Manager]


@pytest.fixture
def with_env(new_manager: Callable[..., Manager]) -> With:
    """A running manager with these variables."""

    def make(env: Mapping[str, str] | None = None, **options: Any) -> Manager:
        return new_manager(env=env, **options)

    return make


def refused_start(manager: Manager) -> str:
    """What it says when it does not start because of its configuration."""
    manager.spawn()
    assert manager.running.wait(60) == EXIT_CONFIG, manager.output()
    return manager.output()


def test_every_variable_is_proven_here_or_listed_as_one_of_a_later_part() -> None:
    later = {item.env for item in VARIABLES} & set(re.findall(r"[A-Z_]{4,}", __doc__ or ""))
    assert proven() | later == {item.env for item in VARIABLES}
    assert not proven() & later


# --- folders, names and ports -----------------------------------------------------------------------------


@proves("LLAMAMAN_NODE_NAME")
def test_node_name_is_required_remembered_and_marks_the_engines(with_env: With) -> None:
    manager = with_env({"LLAMAMAN_NODE_NAME": "north"})
    manager.launch("tiny")
    (environ,) = manager.engines().values()
    assert environ["LLAMAMAN_NODE"] == "north"
    assert manager.admin_socket.name == "north.sock"
    manager.terminate()
    manager.env["LLAMAMAN_NODE_NAME"] = "south"
    said = refused_start(manager)
    assert "north" in said
    assert "south" in said
    del manager.env["LLAMAMAN_NODE_NAME"]
    assert "export LLAMAMAN_NODE_NAME=" in refused_start(manager)
    manager.env["LLAMAMAN_NODE_NAME"] = "north"


@proves("MODELS_DIR")
def test_models_dir_names_every_folder_that_is_scanned(
    with_env: With, tmp_path: Path, tiny_model: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, name in zip(folders, ("one", "two"), strict=True):
        folder.mkdir()
        shutil.copy(tiny_model, folder / f"{name}.gguf")
    manager = with_env({"MODELS_DIR": ":".join(map(str, folders))})
    assert sorted(model["name"] for model in manager.manage("GET", "/api/models")) == ["one", "two"]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder of ours whose path is short enough for a socket's address."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@proves("DATA_DIR", "LOGS_DIR", "XDG_RUNTIME_DIR")
def test_data_logs_and_the_admin_socket_lie_where_they_are_told(
    with_env: With, tmp_path: Path, short_folder: Path
) -> None:
    where = {name: tmp_path / name.lower() for name in ("DATA_DIR", "LOGS_DIR")}
    where["XDG_RUNTIME_DIR"] = short_folder
    manager = with_env({name: str(path) for name, path in where.items()})
    instance = manager.launch("tiny")
    assert (where["LOGS_DIR"] / f"{instance['id']}.log").stat().st_size > 0
    assert instance["id"] in "".join(
        each.read_text() for each in where["DATA_DIR"].rglob("*.json") if each.is_file()
    )
    assert [path.name for path in (where["XDG_RUNTIME_DIR"] / "llamaman").glob("*.sock")]
    assert not list(manager.logs.iterdir())


@proves("PORT_RANGE_START", "PORT_RANGE_END", "INTERNAL_PORT_RANGE_START", "INTERNAL_PORT_RANGE_END")
def test_instances_and_engines_take_their_ports_from_the_ranges(with_env: With) -> None:
    manager = with_env()
    manager.terminate()
    public, internal = manager.public_ports[4:6], manager.internal_ports[3:5]
    manager.env |= {
        "PORT_RANGE_START": str(public[0]),
        "PORT_RANGE_END": str(public[1]),
        "INTERNAL_PORT_RANGE_START": str(internal[0]),
        "INTERNAL_PORT_RANGE_END": str(internal[1]),
    }
    manager.start()
    assert {manager.launch("tiny")["port"] for _ in range(2)} == set(public)
    inside = {int(e["LLAMAMAN_ADDRESS"].rpartition(":")[2]) for e in manager.engines().values()}
    assert inside == set(internal)
    refused = manager.admin("POST", "/api/instances", {"model": "tiny", "port": manager.public_ports[0]})
    assert refused.status == 400
    assert "PORT_RANGE_START" in refused.error


@proves("LLAMAMAN_HOST", "LLAMAMAN_PORT", "LLAMAMAN_PROXY_PORT")
def test_the_public_ports_are_opened_on_the_chosen_address_only(with_env: With) -> None:
    manager = with_env({"LLAMAMAN_HOST": "127.0.0.2"})
    instance = manager.launch("tiny")
    for port in (manager.port, manager.proxy_port, instance["port"]):
        assert refuses(port), "not on 127.0.0.1"
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


# --- limits and times -------------------------------------------------------------------------------------


@proves("LLAMAMAN_MAX_MODELS")
def test_max_models_refuses_by_the_specifications_words_and_lets_an_administrator_confirm(
    with_env: With,
) -> None:
    manager = with_env({"LLAMAMAN_MAX_MODELS": "1"})
    (manager.models / "other.gguf").write_bytes((manager.models / "tiny.gguf").read_bytes())
    manager.manage("POST", "/api/models/rescan")
    first = manager.launch("tiny")
    refused = manager.chat("other")
    assert refused.status == 503
    assert refused.error == (
        "model limit reached (LLAMAMAN_MAX_MODELS=1); the OpenAI API does not evict running models"
    )
    body = {"model_path": str(manager.models / "other.gguf"), "threads": 1}
    asked = manager.admin("POST", "/api/instances", body)
    assert asked.status == 409
    assert asked.json()["confirm_required"] is True
    assert asked.error.startswith("You're about to launch a model beyond LLAMAMAN_MAX_MODELS=1 (1 running)")
    assert len(manager.instances()) == 1
    second = manager.launch("other", confirm_overcommit=True)
    assert manager.instance(first["id"])["status"] == "healthy"
    manager.stop(second["id"])
    manager.setting(admin_ui_enforce_max_models=True)
    manager.launch("other")
    assert manager.instance(first["id"])["status"] == "stopped", "evicted without asking"


@proves("DRAIN_TIMEOUT")
def test_drain_timeout_bounds_how_long_an_eviction_waits_for_a_running_answer(
    with_env: With, slow: Callable[[Manager], str]
) -> None:
    manager = with_env({"LLAMAMAN_MAX_MODELS": "1", "DRAIN_TIMEOUT": "0.3"})
    manager.setting(admin_ui_enforce_max_models=True)
    instance = manager.launch(slow(manager), **ENDLESS)
    with manager.ask("slow", stream=True, max_tokens=FOR_EVER) as request:
        events = request.events()
        next(events)
        refused = manager.admin("POST", "/api/instances", {"model": "tiny", "threads": 1})
        assert refused.status == 503, refused.text
        assert "could not be evicted within 0.3 s (DRAIN_TIMEOUT)" in refused.error
        next(events)
    assert manager.instance(instance["id"])["status"] == "healthy"
    assert len(manager.instances()) == 1


@proves("LLAMAMAN_IDLE_TIMEOUT")
def test_idle_timeout_puts_on_demand_instances_to_sleep_and_no_others(with_env: With) -> None:
    manager = with_env({"LLAMAMAN_IDLE_TIMEOUT": "0.01"})
    (manager.models / "other.gguf").write_bytes((manager.models / "tiny.gguf").read_bytes())
    manager.manage("POST", "/api/models/rescan")
    by_hand = manager.launch("other")
    assert manager.chat("tiny").status == 200
    (managed,) = (each for each in manager.instances() if each["managed"])
    manager.wait_status(managed["id"], "sleeping")
    assert manager.instance(by_hand["id"])["status"] == "healthy"
    assert manager.chat("tiny").status == 200


@proves("MODEL_LOAD_TIMEOUT")
def test_model_load_timeout_ends_a_load_that_takes_longer(tempered: Callable[..., Manager]) -> None:
    manager = tempered("polite", load_ms=60_000, env={"MODEL_LOAD_TIMEOUT": "0.5"})
    answer = manager.chat("tiny")
    assert answer.status == 503
    assert "did not become ready within 0.5 s" in answer.error


@proves("REQUEST_TIMEOUT")
def test_request_timeout_bounds_silence_and_the_wait_in_the_queue(
    tempered: Callable[..., Manager], at_once: ThreadPoolExecutor
) -> None:
    manager = tempered("hangs", env={"REQUEST_TIMEOUT": "1"})
    instance = manager.launch("tiny")
    first = at_once.submit(manager.chat, "tiny")
    manager.until(lambda: manager.instance(instance["id"])["queue"]["active"] == 1, "the first one")
    waiting = manager.chat("tiny")
    assert waiting.status in (429, 504), waiting.text
    assert "REQUEST_TIMEOUT" in waiting.error
    silent = first.result(60)
    assert (silent.status, silent.error) == (504, "the engine was silent for 1 s (REQUEST_TIMEOUT)")
    manager.stop(instance["id"], force=True)


@proves("HEALTH_CHECK_TIMEOUT")
@pytest.mark.parametrize(("seconds", "generation"), [("1", 2), ("60", 1)])
def test_health_check_timeout_decides_when_a_silent_engine_is_given_up(
    with_env: With, seconds: str, generation: int
) -> None:
    manager = with_env({"REQUEST_TIMEOUT": "3", "HEALTH_CHECK_TIMEOUT": seconds})
    instance = manager.launch("tiny")
    processes.freeze(instance["pid"])
    assert manager.chat("tiny").status == 504
    if generation == 1:
        time.sleep(6)  # the impatient one has given up three times by now
        os.kill(instance["pid"], signal.SIGCONT)
    else:
        manager.until(lambda: manager.instance(instance["id"])["generation"] == 2, "the restart")
    manager.wait_status(instance["id"], "healthy")
    assert manager.chat("tiny").status == 200
    assert manager.instance(instance["id"])["generation"] == generation


# --- secrets, stores, logs --------------------------------------------------------------------------------


@proves("SECRET_KEY")
def test_secret_key_takes_the_place_of_the_random_file(with_env: With) -> None:
    without = with_env()
    assert [path.name for path in without.data.iterdir() if "secret" in path.name]
    given = with_env({"SECRET_KEY": "a-long-and-random-value-of-this-test-0123456789"})
    assert not [path.name for path in given.data.iterdir() if "secret" in path.name]
    given.launch("tiny")
    assert given.chat("tiny").status == 200


@proves("DATABASE_URL", "LLAMAMAN_STORAGE")
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"DATABASE_URL": "mysql+pymysql://u:pass-word@nowhere/db"}, ["llamaman-store-sql"]),
        ({"LLAMAMAN_STORAGE": "sql"}, ["LLAMAMAN_STORAGE", "DATABASE_URL"]),
        (
            {"LLAMAMAN_STORAGE": "json", "DATABASE_URL": "mysql+pymysql://u:pass-word@nowhere/db"},
            ["LLAMAMAN_STORAGE", "DATABASE_URL"],
        ),
    ],
    ids=["url", "sql without url", "json with url"],
)
def test_a_store_that_cannot_be_had_stops_the_start_with_the_cure_and_is_never_replaced(
    with_env: With, env: dict[str, str], words: list[str]
) -> None:
    manager = with_env(env, start=False)
    said = refused_start(manager)
    for word in words:
        assert word in said
    assert "pass-word" not in said
    assert "Traceback" not in said
    assert not list(manager.data.glob("state.json"))


@proves("LLAMAMAN_LOG_LEVEL")
def test_log_level_decides_what_is_written(with_env: With) -> None:
    loud, quiet = with_env(), with_env({"LLAMAMAN_LOG_LEVEL": "error"})
    for manager in (loud, quiet):
        manager.launch("tiny")
    assert "INFO" in loud.output()
    assert quiet.output() == ""


@proves("LLAMAMAN_BOOTSTRAP_API_KEY")
def test_the_bootstrap_key_infers_only_may_come_from_a_file_and_is_made_once(
    with_env: With, tmp_path: Path
) -> None:
    secret = "llm-" + "bootstrap" * 5
    (tmp_path / "key").write_text(secret + "\n")
    manager = with_env(start=False)
    del manager.env["LLAMAMAN_BOOTSTRAP_API_KEY"]
    manager.env["LLAMAMAN_BOOTSTRAP_API_KEY_FILE"] = str(tmp_path / "key")
    manager.start()
    assert manager.chat("tiny", key=secret).status == 200
    assert manager.http("GET", "/api/instances", key=secret).status == 403
    assert manager.chat("tiny").status == 401, "the harness's own key is not known here"
    manager.restart()
    assert len(manager.manage("GET", "/api/api-keys")) == 1


# --- users and browsers -----------------------------------------------------------------------------------

PASSWORD = "correct horse battery staple"


@proves("LLAMAMAN_ADMIN_USER", "LLAMAMAN_ADMIN_PASSWORD")
def test_the_first_user_is_made_from_the_environment_once(with_env: With, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    manager = with_env(
        {"LLAMAMAN_ADMIN_USER": "ada", "LLAMAMAN_ADMIN_PASSWORD_FILE": str(tmp_path / "password")}
    )
    (user,) = manager.manage("GET", "/api/users")
    assert (user["name"], user["role"]) == ("ada", "admin")
    assert Visitor(manager.port).log_in("ada", PASSWORD).status == 303
    assert manager.manage("GET", "/api/setup-link") == {"link": None}
    manager.terminate()
    del manager.env["LLAMAMAN_ADMIN_PASSWORD_FILE"]
    manager.env |= {"LLAMAMAN_ADMIN_USER": "eve", "LLAMAMAN_ADMIN_PASSWORD": "another long password"}
    manager.start()
    assert [user["name"] for user in manager.manage("GET", "/api/users")] == ["ada"], "used once"
    assert Visitor(manager.port).log_in("ada", PASSWORD).status == 303
    manager.launch("tiny")
    (environ,) = manager.engines().values()
    assert not {name for name in environ if name.startswith("LLAMAMAN_ADMIN")}


@pytest.mark.parametrize(
    ("name", "password"), [("admin", "password12"), ("somebody1234", "Somebody1234")], ids=["common", "name"]
)
def test_a_first_password_that_no_form_would_take_stops_the_start_unseen(
    with_env: With, name: str, password: str
) -> None:
    env = {"LLAMAMAN_ADMIN_USER": name, "LLAMAMAN_ADMIN_PASSWORD": password}
    said = refused_start(with_env(env, start=False))
    assert "LLAMAMAN_ADMIN_PASSWORD" in said
    assert password not in said
    assert "Traceback" not in said


@proves("LLAMAMAN_TRUSTED_PROXIES")
@pytest.mark.parametrize(("trusted", "counts"), [("10.0.0.1", False), ("10.0.0.1, 127.0.0.0/8", True)])
def test_what_a_proxy_says_of_its_client_counts_if_it_is_trusted(
    with_env: With, trusted: str, counts: bool
) -> None:
    manager = with_env({"LLAMAMAN_TRUSTED_PROXIES": trusted, "LLAMAMAN_ADMIN_PASSWORD": PASSWORD})
    forwarded = {
        "X-Forwarded-For": "203.0.113.5",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "llama.lan",
    }
    visitor = Visitor(manager.port)
    origin = {"Origin": "https://llama.lan" if counts else f"http://{visitor.host}"}
    token = re.search(
        r'name="csrf_token"\s+value="([^"]*)"', visitor.call("GET", "/login", headers=forwarded).text
    )
    assert token is not None
    fields = {"username": "admin", "password": PASSWORD, "csrf_token": token[1]}
    assert visitor.post("/login", fields, headers={**forwarded, **origin}).status == 303
    (session,) = manager.manage("GET", "/api/sessions")
    assert session["address"] == ("203.0.113.5" if counts else "127.0.0.1")
    assert any(name.startswith("__Host-") for name in visitor.cookies) is counts


@proves("LLAMAMAN_ALLOWED_HOSTS", "LLAMAMAN_PUBLIC_URL")
@pytest.mark.parametrize(
    "env",
    [
        {"LLAMAMAN_ALLOWED_HOSTS": "a.example.net,llama.example.org"},
        {"LLAMAMAN_PUBLIC_URL": "https://llama.example.org"},
    ],
    ids=["allowed", "public"],
)
def test_a_public_host_name_is_served_where_it_is_said_to_be_ours(
    with_env: With, env: dict[str, str]
) -> None:
    host = {"Host": "llama.example.org"}
    unsaid, manager = with_env(), with_env(env)
    for port in (unsaid.port, unsaid.proxy_port):
        refused = call(port, "GET", "/api/version", headers=host)
        assert refused.status == 421
        assert "LLAMAMAN_ALLOWED_HOSTS=llama.example.org" in refused.error
    for port in (manager.port, manager.proxy_port):
        assert call(port, "GET", "/api/version", headers=host).status == 200
        assert call(port, "GET", "/api/version", headers={"Host": "llama.example.com"}).status == 421
    assert call(unsaid.proxy_port, "GET", "/v1/models", key=unsaid.inference_key, headers=host).status == 200


def test_the_public_url_is_where_the_setup_link_leads_and_https_makes_cookies_secure(with_env: With) -> None:
    manager = with_env({"LLAMAMAN_PUBLIC_URL": "https://llama.example.org/"})
    link = manager.manage("GET", "/api/setup-link")["link"]
    assert link.startswith("https://llama.example.org/setup/")
    assert link in manager.output()
    page = call(
        manager.port,
        "GET",
        link.removeprefix("https://llama.example.org"),
        headers={"Host": "llama.example.org"},
    )
    assert page.status == 200
    assert page.headers["set-cookie"].startswith("__Host-llamaman_")
    assert "secure" in page.headers["set-cookie"].lower()


@proves("LLAMAMAN_CORS_ORIGINS")
def test_pages_of_listed_origins_may_ask_models_while_no_key_is_needed(with_env: With) -> None:
    origin = {"Origin": "https://chat.example.org"}
    for manager, status in ((with_env(), 403), (with_env({"LLAMAMAN_CORS_ORIGINS": origin["Origin"]}), 200)):
        manager.setting(require_auth=False)
        answer = call(manager.proxy_port, "GET", "/v1/models", headers=origin)
        assert answer.status == status, answer.text
        assert (answer.headers.get("access-control-allow-origin") == origin["Origin"]) is (status == 200)
        assert (
            call(manager.proxy_port, "GET", "/v1/models", headers={"Origin": "https://evil.example"}).status
            == 403
        )


# --- engines ----------------------------------------------------------------------------------------------


@proves("LLAMAMAN_RUNTIME")
def test_a_runtime_that_is_not_there_stops_the_start_with_those_that_are(with_env: With) -> None:
    said = refused_start(with_env({"LLAMAMAN_RUNTIME": "docker"}, start=False))
    assert "LLAMAMAN_RUNTIME is 'docker'" in said
    assert "process" in said


@proves("LLAMA_SERVER_BIN")
def test_llama_server_bin_is_the_program_that_runs(with_env: With, tmp_path: Path) -> None:
    manager = with_env(binary=write_temper(tmp_path, "polite"))
    instance = manager.launch("tiny")
    assert instance["engine"] == "llama-server"
    assert "temper_server" in Path(f"/proc/{instance['pid']}/cmdline").read_text()
    assert with_env().launch("tiny")["engine"] == "embedded"


@pytest.fixture
def open_folder(tiny_model: Path) -> Iterator[Path]:
    """A folder that every account may read, with a model and an engine that does nothing but run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(tiny_model, folder / "tiny.gguf")
        script = folder / "llama-server"
        script.write_text(
            '#!/bin/sh\n[ "$1" = --help ] && exit 0\n[ "$1" = --version ] && exit 0\nexec sleep 600\n'
        )
        for path, mode in ((folder, 0o755), (folder / "tiny.gguf", 0o644), (script, 0o755)):
            path.chmod(mode)
        yield folder


@proves("LLAMA_SERVER_USER")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as another user")
def test_engines_run_under_the_chosen_account_and_are_adopted_from_it(
    with_env: With, open_folder: Path
) -> None:
    env = {"LLAMA_SERVER_USER": "nobody", "MODELS_DIR": str(open_folder)}
    manager = with_env(env, binary=open_folder / "llama-server")
    manager.manage("POST", "/api/instances", {"model": "tiny", "threads": 1})
    (pid,) = manager.until(manager.engines, "the engine")
    manager.until(
        lambda: os.stat(f"/proc/{pid}").st_uid == pwd.getpwnam("nobody").pw_uid, "the other account"
    )
    manager.kill()
    manager.start()
    (instance,) = manager.instances()
    assert (instance["pid"], instance["status"]) == (pid, "starting")
    assert set(manager.engines()) == {pid}


@proves("LLAMA_GPU_DEVICES")
def test_gpu_devices_are_what_engines_may_see_unless_the_launch_says_otherwise(with_env: With) -> None:
    manager = with_env({"LLAMA_GPU_DEVICES": "1,2"})
    default, own, none = (
        manager.launch("tiny"),
        manager.launch("tiny", gpu_devices="0"),
        manager.launch("tiny", n_gpu_layers=0),
    )
    seen = [manager.engines(i["id"])[i["pid"]].get("CUDA_VISIBLE_DEVICES") for i in (default, own, none)]
    assert seen == ["1,2", "0", None]


# --- plugins ----------------------------------------------------------------------------------------------


@proves("LLAMAMAN_PLUGINS", "LLAMAMAN_PLUGINS_DISABLED")
@pytest.mark.parametrize(
    "env", [{"LLAMAMAN_PLUGINS_DISABLED": "api_openai"}, {"LLAMAMAN_PLUGINS": "no_such_plugin"}], ids=str
)
def test_a_plugin_that_is_not_wanted_has_no_routes_and_is_listed_as_disabled(
    with_env: With, env: dict[str, str]
) -> None:
    manager = with_env(env)
    assert manager.chat("tiny").status == 404
    states = {plugin["name"]: plugin["state"] for plugin in manager.manage("GET", "/api/plugins")}
    assert states["api_openai"] == "disabled"
    assert states["store_json"] == "active", "the store is chosen by LLAMAMAN_STORAGE, not by this"


@pytest.fixture
def broken_plugin(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that holds an installed plugin which cannot be imported."""
    folder = tmp_path / "site"
    info = folder / "llamaman_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llamaman-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llamaman.plugins]\nbroken = llamaman_broken\n")
    (folder / "llamaman_broken.py").write_text("raise RuntimeError('this plugin is broken on purpose')\n")
    return folder


@proves("LLAMAMAN_STRICT")
def test_a_broken_plugin_is_listed_or_stops_the_start_when_strict(
    with_env: With, broken_plugin: Path
) -> None:
    manager = with_env({"PYTHONPATH": str(broken_plugin)})
    (listed,) = (p for p in manager.manage("GET", "/api/plugins") if p["name"] == "broken")
    assert listed["state"] == "broken"
    assert "broken on purpose" in listed["reason"]
    assert manager.chat("tiny").status == 200
    strict = with_env({"PYTHONPATH": str(broken_plugin), "LLAMAMAN_STRICT": "1"}, start=False)
    strict.spawn()
    assert strict.running.wait(60) != 0
    assert "broken on purpose" in strict.output()
    assert "Traceback" not in strict.output()


@proves("LLAMAMAN_TRACE_PLUGINS")
def test_trace_plugins_logs_hook_calls(with_env: With) -> None:
    traced, plain = with_env({"LLAMAMAN_TRACE_PLUGINS": "1"}), with_env()
    assert "route_register" in traced.output()
    assert "route_register" not in plain.output()


# --- the command line -------------------------------------------------------------------------------------


def run_cli(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), *arguments], env=dict(env), capture_output=True, text=True, check=False, timeout=60
    )


@proves("LLAMAMAN_URL", "LLAMAMAN_API_KEY")
def test_the_command_line_goes_where_it_is_told_with_the_key_it_is_given(
    with_env: With, tmp_path: Path
) -> None:
    manager = with_env()
    instance = manager.launch("tiny")
    local = run_cli(manager.env, "ps", "--json")
    assert [each["id"] for each in json.loads(local.stdout)] == [instance["id"]], local.stderr
    elsewhere = {
        "PATH": manager.env["PATH"],
        "HOME": str(tmp_path),
        "LLAMAMAN_URL": f"http://127.0.0.1:{manager.port}",
    }
    refused = run_cli(elsewhere, "ps", "--json")
    assert refused.returncode != 0
    assert "LLAMAMAN_API_KEY" in refused.stderr
    with_key = run_cli(elsewhere | {"LLAMAMAN_API_KEY": manager.key("manage").secret}, "ps", "--json")
    assert [each["id"] for each in json.loads(with_key.stdout)] == [instance["id"]], with_key.stderr


def test_a_misspelt_variable_is_pointed_out(with_env: With) -> None:
    manager = with_env({"LLAMAMAN_MAX_MODEL": "1"})
    assert "did you mean LLAMAMAN_MAX_MODELS" in manager.output()


def test_every_bad_variable_is_named_at_once_with_what_is_allowed(with_env: With) -> None:
    manager = with_env({"LLAMAMAN_PORT": "high", "REQUEST_TIMEOUT": "-1"}, start=False)
    said = refused_start(manager)
    for word in ("LLAMAMAN_PORT", "'high'", "REQUEST_TIMEOUT", "'-1'"):
        assert word in said
    assert "Traceback" not in said


def test_a_public_port_that_is_taken_stops_the_start_and_says_which(with_env: With) -> None:
    first = with_env()
    second = with_env({"LLAMAMAN_PROXY_PORT": str(first.proxy_port)}, start=False)
    said = refused_start(second)
    assert str(first.proxy_port) in said
    assert "in use" in said
    assert call(first.proxy_port, "GET", "/health").status == 200
