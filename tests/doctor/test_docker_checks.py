"""What the doctor says of Docker: of one that is well, and of each way in which it is not."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamaman.core.config import Config
from llamaman.doctor import Finding, Live, diagnose, docker, docker_machine, docker_place, docker_things
from llamaman.runtimes.docker import labels
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.network import Reach
from llamaman.runtimes.docker.place import Bind, Place

from .fake_daemon import INFO, VERSION, FakeDaemon, fake_daemon, healthy

BASE = {"LLAMAMAN_NODE_NAME": "n1", "LLAMAMAN_RUNTIME": "docker"}
HOST = Place(False, None, (), None)
OWN_ID = "c" * 64

# The documented troubles and their answers, word for word.
ANSWERS = {
    "Docker image not found": "Pull the matching image: docker pull ghcr.io/ggml-org/llama.cpp:server-cuda (NVIDIA), "
    "server-rocm (AMD), server-sycl (Intel Arc), or server (CPU).",
    "Docker API error": "Ensure /var/run/docker.sock is mounted into the LlamaMan container (it is by default in "
    "docker-compose.yml).",
    "stuck on starting": "The container is healthy but llamaman can't reach it. Deployment mode is auto-detected, but "
    "if it's wrong for your runtime, set LLAMAMAN_IN_DOCKER=false (bare-metal) or true (in Docker) explicitly.",
    "CDI": "Set GPU Layers to 0 to launch CPU-only with no GPU device attached, or fix the GPU runtime (e.g. install "
    "the NVIDIA Container Toolkit).",
    "not cleaned up": "LlamaMan stops and removes containers when instances are stopped. If containers are orphaned "
    "after a crash, run docker ps --filter name=llamaman- to find and remove them manually, or restart LlamaMan "
    "(orphan adoption runs on startup).",
}


def config(**more: str) -> Config:
    return Config.from_environ(BASE | more)


def of(findings: Iterable[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def the(findings: Iterable[Finding], status: str, check: str | None = None) -> Finding:
    """The only finding with a status."""
    found = [finding for finding in findings if finding.status == status and check in (None, finding.check)]
    assert len(found) == 1, found
    assert (status in ("warn", "fail")) is (found[0].cure is not None)
    return found[0]


def live(*containers: str, install: str = "here") -> Live:
    return Live(0.0, True, False, (), (), frozenset(), frozenset(containers), install)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A short path for a socket, in a root that has no mark of a container."""
    return tmp_path / "d.sock"


def examine(path: Path, manager: Live | None = None, **more: str) -> list[Finding]:
    environ = BASE | {"DOCKER_HOST": f"unix://{path}"} | more
    return list(docker.check_docker(Config.from_environ(environ), environ, manager, root=path.parent))


def test_a_docker_in_good_order_has_only_well_findings(place: Path) -> None:
    with fake_daemon(place, healthy()):
        found = examine(place)
    assert {finding.status for finding in found} == {"ok"}
    assert {finding.check for finding in found} == {
        "docker", "container-limits", "in-docker", "host-paths", "network", "image", "containers",
    }  # fmt: skip


# --- the socket, and who may use it ----------------------------------------------------------------------


def test_a_missing_socket_says_how_to_get_one(place: Path) -> None:
    missing = the(examine(place), "fail")
    assert "there is no Docker socket" in missing.what
    assert "systemctl start docker" in str(missing.cure)
    assert "LLAMAMAN_RUNTIME=process" in str(missing.cure)
    assert the(examine(place, LLAMAMAN_IN_DOCKER="true"), "fail").cure == ANSWERS["Docker API error"]


def test_a_folder_that_docker_made_in_its_place_is_told_apart(place: Path) -> None:
    place.mkdir()
    finding = the(examine(place), "fail")
    assert "is a folder" in finding.what
    assert ANSWERS["Docker API error"] in str(finding.cure)
    place.rmdir()
    place.write_text("")
    assert "is not a socket" in the(examine(place), "fail").what


def test_a_socket_where_nobody_listens_says_how_to_start_docker(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))
    finding = the(examine(place), "fail")
    assert "connection refused" in finding.what
    assert "systemctl start docker" in str(finding.cure)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another account")
@pytest.mark.parametrize(
    ("mode", "gid", "expected"),
    [
        (0o660, 2, "usermod -aG bin nobody"),
        (0o600, 2, "dockerd --group docker"),
        (0o660, 0, "dockerd --group docker"),
    ],
)
def test_a_socket_that_is_closed_to_us_names_the_group(
    place: Path, mode: int, gid: int, expected: str
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place))
    os.chown(place, 0, gid)
    place.chmod(mode)
    [finding] = as_nobody(place)
    assert finding["status"] == "fail"
    assert "this account (nobody) may not use" in str(finding["what"])
    assert expected in str(finding["cure"])
    [inside] = as_nobody(place, LLAMAMAN_IN_DOCKER="true")
    assert f"--group-add {gid}" in str(inside["cure"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another account")
def test_a_folder_that_we_may_not_enter_is_told(place: Path) -> None:
    place.parent.chmod(0o700)
    [finding] = as_nobody(place)
    assert "may not look into the folder" in str(finding["what"])


def as_nobody(path: Path, **more: str) -> list[dict[str, str | None]]:
    """The findings of an account without rights."""
    if path.exists():
        for folder in (path.parent, *path.parent.parents[:2]):  # pytest's own are closed to other accounts
            folder.chmod(0o755)
    else:
        for folder in path.parent.parents[:2]:
            folder.chmod(0o755)
    program = (
        "import json, os, pathlib, sys\n"
        "from llamaman.core.config import Config\n"
        "from llamaman.doctor import docker\n"
        "environ = json.loads(sys.argv[1])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "found = docker.check_docker(Config.from_environ(environ), environ, root=pathlib.Path('/nonexistent'))\n"
        "print(json.dumps([each.as_dict() for each in found]))"
    )
    environ = BASE | {"DOCKER_HOST": f"unix://{path}"} | more
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps(environ)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return list(json.loads(ended.stdout))


# --- the daemon ------------------------------------------------------------------------------------------


def test_a_daemon_that_hangs_costs_seconds_and_not_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "CALL_S", 0.3)
    daemon = healthy()
    daemon.held = threading.Event()
    began = time.monotonic()
    with fake_daemon(place, daemon):
        finding = the(examine(place), "fail")
    assert "no answer in time" in finding.what
    assert time.monotonic() - began < 60


def test_a_call_that_no_limit_ends_is_left_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "_ALL_S", 0.2)
    daemon = healthy()
    daemon.held = threading.Event()
    with fake_daemon(place, daemon):
        assert "hangs" in the(examine(place), "fail").what


def test_a_slow_daemon_leaves_the_rest_unlooked_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Daemon.info
    monkeypatch.setattr(docker, "CALL_S", 0.2)

    def slow(self: Daemon) -> Any:
        found = real(self)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    monkeypatch.setattr(Daemon, "info", slow)
    with fake_daemon(place, healthy()):
        found = examine(place)
    assert {finding.check for finding in found if finding.status == "skip"} >= {"image", "containers"}


def test_an_old_daemon_is_told_to_be_updated_and_asked_for_nothing_else(place: Path) -> None:
    with fake_daemon(
        place, FakeDaemon({"/version": {**VERSION, "Version": "19.03.15", "ApiVersion": "1.40"}})
    ):
        [finding] = examine(place)
    assert finding.status == "fail"
    assert "Docker 19.03.15 speaks version 1.40" in finding.what
    assert "20.10" in str(finding.cure)


def test_what_is_no_docker_daemon_is_said(place: Path) -> None:
    with fake_daemon(place, FakeDaemon({"/version": {"hello": "world"}})):
        assert "no Docker daemon" in the(examine(place), "fail").what


def test_a_part_that_a_guard_forbids_hides_no_other(place: Path) -> None:
    with fake_daemon(place, healthy(**{"/networks": 403})):
        found = examine(place)
    refused = the(found, "fail")
    assert refused.check == "network"
    assert "not for you (HTTP 403)" in refused.what
    assert of(found, "image")
    assert of(found, "containers")
    with fake_daemon(place.with_name("e.sock"), FakeDaemon({"/version": 403})):
        assert "refuses to tell" in the(examine(place.with_name("e.sock")), "fail").what


def test_a_daemon_over_a_network_without_encryption_is_a_warning() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    environ = BASE | {"DOCKER_HOST": f"tcp://127.0.0.1:{port}"}
    found = docker.check_docker(Config.from_environ(environ), environ)
    assert "without TLS" in the(found, "warn").what
    assert "connection refused" in the(found, "fail").what


# --- what it says of its machine -------------------------------------------------------------------------


def machine(info: dict[str, Any] | None = None, version: dict[str, Any] | None = None) -> list[Finding]:
    all_info, all_version = {**INFO, **(info or {})}, {**VERSION, **(version or {})}
    return [
        *docker_machine.check_kind(all_version, all_info, "ada"),
        *docker_machine.check_restart(all_version, all_info),
        *docker_machine.check_limits(all_version, all_info),
    ]


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("MemoryLimit", "all memory"),
        ("SwapLimit", "in swap"),
        ("CpuCfsQuota", "every processor"),
        ("PidsLimit", "start processes"),
    ],
)
def test_a_limit_that_docker_cannot_enforce_is_a_warning_with_its_meaning(field: str, what: str) -> None:
    finding = the(machine({field: False, "CgroupVersion": "1"}), "warn")
    assert field in finding.what
    assert what in finding.what
    assert "swapaccount=1" in str(finding.cure)
    rootless = machine({field: False, "SecurityOptions": ["name=rootless"]})
    assert "Delegate=" in str(the(rootless, "warn", "container-limits").cure)


def test_what_a_daemon_does_not_say_of_its_limits_is_not_taken_for_yes() -> None:
    silent = {name: value for name, value in INFO.items() if name != "SwapLimit"}
    finding = the(docker_machine.check_limits(VERSION, silent), "warn")
    assert "does not say whether it enforces SwapLimit" in finding.what


@pytest.mark.parametrize(
    ("info", "version", "missing"),
    [
        ({"InitBinary": ""}, {}, True),
        ({"InitCommit": {"ID": "N/A"}}, {}, True),
        ({}, {"Components": [{"Name": "docker-init", "Version": "N/A"}]}, True),
        ({"InitCommit": {"ID": ""}}, {}, False),
        ({"InitBinary": ""}, {"Components": [{"Name": "Podman Engine"}]}, False),
    ],
)
def test_a_missing_docker_init_is_found_though_its_name_is_configured(
    info: dict[str, Any], version: dict[str, Any], missing: bool
) -> None:
    found = docker_machine.check_limits({**VERSION, **version}, {**INFO, **info})
    assert any("docker-init is missing" in finding.what for finding in found) is missing


def test_docker_that_ends_models_with_every_update_is_a_warning() -> None:
    assert '"live-restore": true' in str(the(machine({"LiveRestoreEnabled": False}), "warn").cure)
    swarm = {"LiveRestoreEnabled": False, "Swarm": {"LocalNodeState": "active"}}
    assert "swarm" in str(the(machine(swarm), "warn").cure)


def test_desktop_rootless_and_podman_are_told_with_what_is_different() -> None:
    assert "virtual machine" in the(machine({"OperatingSystem": "Docker Desktop"}), "warn").what
    assert "enable-linger ada" in str(the(machine({"SecurityOptions": ["name=rootless"]}), "warn").cure)
    podman = [{"Name": "Podman Engine"}]
    old = the(machine(version={"Components": podman, "Version": "4.3.1"}), "warn")
    assert "Podman 4.3.1 ignores requests for GPUs" in old.what
    assert not [
        each for each in machine(version={"Components": podman, "Version": "5.4.0"}) if each.status != "ok"
    ]


def test_a_gpu_that_docker_cannot_hand_over_has_the_documented_answer() -> None:
    def check(config: Config, info: dict[str, Any], devices: Iterable[str] = ()) -> list[Finding]:
        return docker_machine.check_gpu(config, {**INFO, **info}, "x:server", lambda path: path in devices)

    assert the(check(config(GPU_TYPE="cuda"), {}), "warn").cure == ANSWERS["CDI"]
    assert the(check(config(), {}, ["/dev/nvidiactl"]), "warn").cure == ANSWERS["CDI"]
    assert check(config(), {}) == []
    assert check(config(GPU_TYPE="rocm"), {}, ["/dev/nvidiactl"]) == []
    for can in (
        {"Runtimes": {"nvidia": {}}},
        {"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]},
    ):
        assert the(check(config(GPU_TYPE="cuda"), can), "ok").check == "container-gpu"


# --- network ---------------------------------------------------------------------------------------------


def network(
    *networks: dict[str, Any],
    reach: Reach = "address",
    own: dict[str, Any] | None = None,
    running: int = 0,
    **more: str,
) -> list[Finding]:
    return docker_things.check_network(config(**more), networks, reach=reach, own=own, running=running)


INTERNAL = {"Id": "1" * 64, "Internal": True}
ORDINARY = {"Id": "2" * 64, "Internal": False}


def test_an_ordinary_network_is_said_to_lead_to_the_internet() -> None:
    assert the(network(INTERNAL), "ok")
    ordinary = the(network(ORDINARY), "warn")
    assert "an ordinary network: engines can reach the internet" in ordinary.what
    assert "docker network rm llamaman-net" in str(ordinary.cure)
    needed = the(network(ORDINARY, reach="port"), "warn")
    assert "an ordinary network: engines can reach the internet" in needed.what
    assert "dead on it" in the(network(INTERNAL, reach="port"), "fail").what


def test_a_network_that_does_not_exist_yet_is_well() -> None:
    assert "without a way out" in the(network(), "ok").what
    assert "can reach the internet" in the(network(reach="port"), "ok").what


def test_two_networks_of_one_name_and_one_of_dockers_own_are_told() -> None:
    assert "2 networks named" in the(network(INTERNAL, ORDINARY), "warn").what
    assert "one of Docker's own" in the(network(LLAMA_NETWORK="bridge"), "fail").what


def test_a_manager_in_a_container_must_be_attached_while_models_run() -> None:
    attached = {"Id": OWN_ID, "NetworkSettings": {"Networks": {"llamaman-net": {}}}}
    alone = {"Id": OWN_ID, "NetworkSettings": {"Networks": {"bridge": {}}}}
    assert {each.status for each in network(INTERNAL, reach="neighbour", own=attached, running=1)} == {"ok"}
    assert {each.status for each in network(INTERNAL, reach="neighbour", own=alone)} == {"ok"}
    cut_off = the(network(INTERNAL, reach="neighbour", own=alone, running=1), "fail")
    assert "docker network connect llamaman-net cccccccccccc" in str(cut_off.cure)


# --- image -----------------------------------------------------------------------------------------------


def image(ref: str = "ghcr.io/ggml-org/llama.cpp:server", **described: Any) -> list[Finding]:
    whole = {"Id": "sha256:" + "a" * 64, "Config": {"Entrypoint": ["/app/llama-server"]}, **described}
    return docker_things.check_image(ref, whole, INFO, chosen=False)


def test_a_missing_image_has_the_documented_answer_and_what_became_of_its_intel_tag() -> None:
    missing = the(docker_things.check_image("x/y:server", None, INFO, chosen=True), "warn")
    assert str(missing.cure).startswith(ANSWERS["Docker image not found"])
    assert "server-intel" in str(missing.cure)
    assert "docker pull x/y:server" in str(missing.cure)
    assert "server-intel" in str(the(image("ghcr.io/ggml-org/llama.cpp:server-sycl"), "fail").cure)


def test_an_image_for_another_processor_or_another_program_is_told() -> None:
    assert the(image(Architecture="amd64"), "ok")
    assert "--platform linux/amd64" in str(the(image(Architecture="arm64"), "fail").cure)
    other = the(image(Config={"Entrypoint": ["/bin/sh"]}), "warn")
    assert "/bin/sh" in other.what
    assert the(image(Config=None), "warn")


def test_an_image_of_another_vendor_than_the_gpu_is_told() -> None:
    def check(ref: str, gpu: str) -> list[Finding]:
        return docker_things.check_vendor(config(GPU_TYPE=gpu), ref)

    assert "rocm" in the(check("ghcr.io/ggml-org/llama.cpp:server-rocm", "cuda"), "warn").what
    assert check("ghcr.io/ggml-org/llama.cpp:server-cuda", "cuda") == []
    assert check("my/own:latest", "cuda") == []


# --- containers ------------------------------------------------------------------------------------------


def container(name: str, node: str = "n1", install: str = "here") -> dict[str, Any]:
    marks = {labels.MANAGED: "1", labels.NODE: node, labels.INSTALL: install}
    return {"Id": name * 8, "Names": [f"/{name}"], "Labels": marks}


def test_containers_without_a_manager_are_left_over_and_have_the_documented_answer() -> None:
    left = the(docker_things.check_containers("n1", [container("a")], None, None), "warn")
    assert str(left.cure).startswith(ANSWERS["not cleaned up"])
    assert "label=llamaman.managed=1" in str(left.cure)
    assert the(docker_things.check_containers("n1", [], None, None), "ok")


def test_containers_that_only_carry_our_labels_are_foreign() -> None:
    known = [container("a")]
    assert the(docker_things.check_containers("n1", known, {"a" * 8}, "here"), "ok")
    foreign = the(docker_things.check_containers("n1", [*known, container("b")], {"a" * 8}, "here"), "warn")
    assert "1 containers carry the labels of this node and belong to no instance: b." in foreign.what


def test_containers_of_other_installations_are_not_ours_to_judge() -> None:
    others = [container("a", node="n2"), container("b", install="elsewhere")]
    found = docker_things.check_containers("n1", others, (), "here")
    assert {finding.status for finding in found} == {"ok"}
    assert "a, b" in found[0].what


def test_a_container_of_this_moment_is_no_finding(place: Path) -> None:
    young = {**container("a"), "Created": time.time()}
    old = {**container("b"), "Created": time.time() - 3600}
    with fake_daemon(place, healthy(**{"/containers/json": [young, old]})):
        found = of(examine(place, live()), "containers")
    assert "no instance: b." in the(found, "warn").what


# --- whose paths -----------------------------------------------------------------------------------------


def test_a_wrong_idea_of_where_we_are_has_the_documented_answer() -> None:
    inside = Place(True, OWN_ID, (), None)
    assert the(docker_place.check_place(config(), inside, local=True), "ok")
    assert the(docker_place.check_place(config(), HOST, local=True), "ok")
    doubtful = Place(False, None, (), "LlamaMan seems to run in a container")
    assert (
        the(docker_place.check_place(config(), doubtful, local=True), "warn").cure
        == ANSWERS["stuck on starting"]
    )
    told = Place(False, OWN_ID, (), None)
    wrong = the(docker_place.check_place(config(LLAMAMAN_IN_DOCKER="false"), told, local=True), "warn")
    assert wrong.cure == ANSWERS["stuck on starting"]
    assert OWN_ID[:12] in wrong.what


def test_a_forced_mode_that_the_daemon_contradicts_is_found(place: Path) -> None:
    with fake_daemon(place, healthy()):
        found = of(examine(place, LLAMAMAN_IN_DOCKER="true"), "in-docker")
    assert the(found, "warn").cure == ANSWERS["stuck on starting"]


def folders(place: Place, *, local: bool = True, **more: str) -> list[Finding]:
    return docker_place.check_folders(config(MODELS_DIR="/models", **more), place, local=local)


def test_inside_a_container_the_mounts_say_where_models_are_on_the_host() -> None:
    mounted = Place(True, OWN_ID, (Bind("/srv/models", "/models"),), None)
    assert "/srv/models" in the(folders(mounted), "ok").what
    assert "HOST_MODELS_DIR" in str(the(folders(Place(True, OWN_ID, (), None)), "fail").cure)
    assert "HOST_MODELS_DIR" in the(folders(Place(True, OWN_ID, (), None), HOST_MODELS_DIR="/x"), "ok").what
    contradicted = the(folders(mounted, HOST_MODELS_DIR="/wrong"), "warn")
    assert "mounted from /srv/models" in contradicted.what
    assert the(folders(mounted, HOST_MODELS_DIR="/srv/models"), "ok")


def test_on_the_host_a_second_name_is_needed_for_another_machine_alone() -> None:
    assert the(folders(HOST), "ok")
    assert "unset HOST_MODELS_DIR" in str(the(folders(HOST, HOST_MODELS_DIR="/x"), "warn").cure)
    assert "another machine" in the(folders(HOST, local=False), "warn").what
    assert the(folders(HOST, local=False, HOST_MODELS_DIR="/x"), "ok")


# --- as part of all --------------------------------------------------------------------------------------


def test_docker_is_looked_at_where_engines_run_in_it_and_only_there(place: Path, tmp_path: Path) -> None:
    own = {"DATA_DIR": str(tmp_path), "LOGS_DIR": str(tmp_path), "MODELS_DIR": str(tmp_path)}
    for runtime, expected in (("docker", True), ("auto", True), ("process", False)):
        environ = BASE | own | {"LLAMAMAN_RUNTIME": runtime, "DOCKER_HOST": f"unix://{place}"}
        found = diagnose(Config.from_environ(environ), environ=environ)
        assert bool(of(found, "docker")) is expected, runtime
        assert bool(of(found, "engine")) is not expected, runtime


def test_where_docker_is_not_used_its_sdk_is_not_loaded() -> None:
    program = (
        "import sys\n"
        "from llamaman.core.config import Config\n"
        "from llamaman.doctor import diagnose\n"
        "environ = {'LLAMAMAN_NODE_NAME': 'n', 'LLAMAMAN_RUNTIME': 'process', 'DATA_DIR': '/nonexistent'}\n"
        "diagnose(Config.from_environ(environ), security=True, environ=environ)\n"
        "print([name for name in ('docker', 'requests', 'urllib3') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "[]\n"


# --- a real engine ---------------------------------------------------------------------------------------


@pytest.fixture
def scratch(docker_host: str) -> Iterator[Callable[[], tuple[Daemon, str]]]:
    """A daemon and a name; what carries it is removed."""
    name = f"lmt-doctor-{secrets.token_hex(4)}"
    daemon = Daemon(docker_host)
    yield lambda: (daemon, name)
    for found in daemon.containers([f"{labels.NODE}={name}"]):
        daemon.remove(found["Id"])
    daemon.remove_network(name)
    daemon.close()


@pytest.mark.real("docker")
def test_a_real_engine_is_examined_as_it_is(
    scratch: Callable[[], tuple[Daemon, str]],
    docker_host: str,
    server_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon, name = scratch()
    monkeypatch.setattr(docker, "_SETTLED_S", -60.0)
    environ = BASE | {
        "DOCKER_HOST": docker_host,
        "LLAMAMAN_NODE_NAME": name,
        "LLAMA_NETWORK": name,
        "LLAMA_IMAGE": server_image,
        "LLAMAMAN_IN_DOCKER": "false",
        "GPU_TYPE": "rocm",
    }

    def look(manager: Live | None = None) -> list[Finding]:
        return list(docker.check_docker(Config.from_environ(environ), environ, manager))

    before = look()
    assert not [each for each in before if each.status == "fail"], before
    assert "answers at" in before[0].what
    assert "does not exist yet" in of(before, "network")[0].what
    assert of(before, "image")[-1].status == "ok"
    assert daemon.networks(name) == [], "looking changed something"

    daemon.create_network(name, internal=True, labels={})
    made = daemon.create(
        name,
        {
            "Image": server_image,
            "Labels": {labels.MANAGED: "1", labels.NODE: name, labels.INSTALL: "here"},
            "HostConfig": {"NetworkMode": name},
        },
    )
    after = look()
    assert "reach nothing outside" in of(after, "network")[0].what
    assert str(the(of(after, "containers")[-1:], "warn").cure).startswith(ANSWERS["not cleaned up"])
    assert "belong to no instance" in of(look(live()), "containers")[-1].what
    assert of(look(live(made)), "containers")[-1].status == "ok"
