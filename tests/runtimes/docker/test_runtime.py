"""The Docker runtime with a real engine: what it starts it ends, what it did not make it never touches."""

from __future__ import annotations

import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llamaman.errors import LaunchError, RuntimeLost
from llamaman.records import ContainerSpec, Exit, Handle, LaunchPlan, LaunchRequest, Mount, SpecPatch
from llamaman.runtimes.causes import CONTAINER_CUT_OFF
from llamaman.runtimes.docker import events, labels
from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.network import NOWHERE
from llamaman.runtimes.docker.parts import Parts
from llamaman.runtimes.docker.runtime import DockerRuntime
from llamaman.testing.docker_manager import docker_disconnect
from llamaman.testing.processes import free_ports

pytestmark = pytest.mark.real("docker")
NODE, INSTALL, KEY = "node-a", "install-a", b"k" * 32
PROBE = "0123456789abcdef"


class Lab:
    """Runtimes of one node on one daemon, as a manager and its successors would make them."""

    def __init__(self, folder: Path, host: str, image: str, names: Any, model: Path) -> None:
        self.folder, self.host, self.image, self.names, self.model = folder, host, image, names, model
        self.made: list[DockerRuntime] = []
        self.patch = SpecPatch()
        self.seccomp: list[str] = []

    def runtime(self, **changes: Any) -> DockerRuntime:
        def ask(_request: LaunchRequest, _spec: ContainerSpec) -> SpecPatch:
            return self.patch

        fields: dict[str, Any] = {
            "host": self.host,
            "environ": os.environ,
            "node": NODE + self.names.token,
            "install": INSTALL,
            "key": KEY,
            "prefix": self.names.prefix,
            "network": self.names.network,
            "host_addr": None,
            "in_docker": False,
            "folders": (),
            "private": (),
            "logs_dir": self.folder / "logs",
            "state_dir": self.folder / "state",
            "image": self.image,
            "images_allowed": list,
            "seccomp_profiles": lambda: self.seccomp,
            "ask_plugins": ask,
        }
        runtime = DockerRuntime(Parts(**{**fields, **changes}))
        self.made.append(runtime)
        return runtime

    def plan(
        self, runtime: DockerRuntime, instance: str = PROBE, generation: int = 1, **changes: Any
    ) -> LaunchPlan:
        (engine,) = runtime.engines()
        fields: dict[str, Any] = {
            "instance_id": instance,
            "node": NODE + self.names.token,
            "install": INSTALL,
            "generation": generation,
            "engine": engine,
            "model_path": self.model,
            "alias": "tiny",
            "options": {"n_gpu_layers": 0},
            "flags": ("--threads", "1", "--ctx-size", "512", "--device", "none"),
            "env": {},
            "host": "",
            "port": 0,
            "log_path": self.folder / "logs" / f"{instance}.log",
            "config_hash": "c" * 32,
            "api_key": "engine-key",
        }
        return LaunchPlan(**{**fields, **changes})

    def all(self, daemon: Daemon) -> list[Mapping[str, Any]]:
        names = (name.lstrip("/") for each in daemon.containers([]) for name in each["Names"])
        return [
            inspected
            for name in names
            if name.startswith(self.names.prefix) and (inspected := daemon.inspect(name))
        ]


@pytest.fixture
def lab(
    tmp_path: Path, docker_host: str, server_image: str, scratch_names: Any, tiny_model: Path
) -> Iterator[Lab]:
    lab = Lab(tmp_path, docker_host, server_image, scratch_names, tiny_model)
    yield lab
    for runtime in lab.made:
        runtime.close()


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found


def healthy(handle: Handle) -> bool:
    url = f"http://{handle.address.host}:{handle.address.port}/health"
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def test_what_is_started_answers_and_what_is_stopped_is_gone(lab: Lab, daemon: Daemon) -> None:
    runtime = lab.runtime()
    plan = lab.plan(runtime)
    handle = runtime.start(plan)
    until(lambda: healthy(handle))
    assert runtime.inspect(handle) is None
    assert handle.address.host in runtime.peers()
    exit_ = runtime.stop(handle, 5)
    assert exit_.code == 0, exit_
    assert lab.all(daemon) == []
    assert runtime.peers() == frozenset()
    log = plan.log_path.read_text()
    assert log.startswith("=== LlamaMan starts")
    assert "listening" in log


def test_an_end_is_told_once_and_the_container_is_removed_before(lab: Lab, daemon: Daemon) -> None:
    runtime = lab.runtime()
    handle = runtime.start(lab.plan(runtime))
    told: list[tuple[Exit, int]] = []
    runtime.watch(handle, lambda exit_: told.append((exit_, len(lab.all(daemon)))))
    until(lambda: healthy(handle))
    daemon.kill(handle.container_id or "", "SIGKILL")
    until(lambda: told)
    ((exit_, left),) = told
    assert (exit_.code, left) == (137, 0)
    assert exit_.oom is not True
    assert "docker kill" in (exit_.cause or "")
    time.sleep(0.3)  # a second call would come now
    assert len(told) == 1


def test_a_start_that_fails_leaves_nothing(lab: Lab, daemon: Daemon) -> None:
    runtime = lab.runtime()
    lab.patch = SpecPatch(device_requests=({"Count": -1, "Capabilities": [["gpu"]]},))
    with pytest.raises(LaunchError, match="GPU"):
        runtime.start(lab.plan(runtime, options={"n_gpu_layers": -1}))
    assert lab.all(daemon) == []


@pytest.mark.parametrize(
    ("patch", "named"),
    [
        (SpecPatch(env={"LD_PRELOAD": "/models/x.so"}), "LD_PRELOAD"),
        (SpecPatch(env={"LLAMA_ARG_TOOLS": "all"}), "LLAMA_ARG_TOOLS"),
        (SpecPatch(devices=("/dev/mem",)), "/dev/mem"),
        (SpecPatch(mounts=(Mount("/var/run/docker.sock", "/s"),)), "Mounts"),
        (SpecPatch(host_config={"Privileged": True}), "Privileged"),
        (SpecPatch(host_config={"PidMode": "host"}), "PidMode"),
        (SpecPatch(host_config={"NetworkMode": "host"}), "NetworkMode"),
        (SpecPatch(host_config={"CapAdd": ["SYS_ADMIN"]}), "CapAdd"),
        (SpecPatch(host_config={"RestartPolicy": {"Name": "always"}}), "RestartPolicy"),
        (SpecPatch(image="evil:latest"), "Image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plugin_that_asks_for_what_is_forbidden_ends_the_launch_and_no_container_is_made(
    lab: Lab, daemon: Daemon, patch: SpecPatch, named: str
) -> None:
    runtime = lab.runtime()
    lab.patch = patch
    with pytest.raises(LaunchError, match=named):
        runtime.start(lab.plan(runtime, options={"n_gpu_layers": -1}))
    assert lab.all(daemon) == []


def test_a_filter_of_system_calls_is_what_an_administrator_allowed_or_docker_s_own(
    lab: Lab, daemon: Daemon
) -> None:
    runtime = lab.runtime()
    lab.patch = SpecPatch(host_config={"SecurityOpt": ["no-new-privileges", "seccomp=unconfined"]})
    with pytest.raises(LaunchError, match="SecurityOpt"):
        runtime.start(lab.plan(runtime))
    lab.seccomp = ["unconfined"]
    handle = runtime.start(lab.plan(runtime))
    (made,) = lab.all(daemon)
    assert made["HostConfig"]["SecurityOpt"] == ["no-new-privileges", "seccomp=unconfined"]
    runtime.stop(handle, 2)


def test_the_next_manager_finds_what_runs_and_removes_what_never_ran(lab: Lab, daemon: Daemon) -> None:
    first = lab.runtime()
    plan = lab.plan(first)
    handle = first.start(plan)
    until(lambda: healthy(handle))
    first.close()
    never_ran = lab.plan(first, "fedcba9876543210")
    image = daemon.image(lab.image)
    assert image
    created = daemon.create(
        f"{lab.names.prefix}fedcba98",
        {"Image": lab.image, "Labels": labels.labels(never_ran, image["Id"], KEY)},
    )
    second = lab.runtime()
    (found,) = second.find(plan.node, INSTALL)
    assert (found.instance_id, found.generation, found.container_id, found.address) == (
        handle.instance_id, handle.generation, handle.container_id, handle.address,
    )  # fmt: skip
    assert daemon.inspect(created) is None
    second.watch(found, lambda _: None)
    assert handle.address.host in second.peers()
    second.stop(found, 5)
    assert lab.all(daemon) == []
    assert second.find(plan.node, INSTALL) == []


def test_what_has_no_proof_is_foreign_whatever_its_labels_say(lab: Lab, daemon: Daemon) -> None:
    runtime = lab.runtime()
    plan = lab.plan(runtime)
    image = daemon.image(lab.image)
    assert image
    genuine = labels.labels(plan, image["Id"], KEY)
    spoofs = {
        "other-generation": {**genuine, labels.GENERATION: "2"},
        "other-instance": {**genuine, labels.INSTANCE: "f" * 16},
        "no-proof": {name: value for name, value in genuine.items() if name != labels.PROOF},
        "other-key": labels.labels(plan, image["Id"], b"x" * 32),
        "other-image": labels.labels(plan, "sha256:" + "0" * 64, KEY),
    }
    command = ["--model", "/none", "--port", "8080"]
    for name, spoofed in spoofs.items():
        body = {"Image": lab.image, "Labels": spoofed, "Cmd": command}
        daemon.create(f"{lab.names.prefix}{name}", body)
    assert runtime.find(plan.node, INSTALL) == []
    assert len(lab.all(daemon)) == len(spoofs), "none was stopped or removed"
    notes = "\n".join(runtime.notes())
    for name in spoofs:
        assert f"{lab.names.prefix}{name}" in notes


def test_one_engine_that_was_taken_off_the_network_hides_no_other(lab: Lab, daemon: Daemon) -> None:
    runtime = lab.runtime()
    handle, other = runtime.start(lab.plan(runtime)), runtime.start(lab.plan(runtime, "fedcba9876543210"))
    docker_disconnect(lab.host, lab.names.network, handle.container_id or "")
    found = {each.container_id: each.address for each in runtime.find(NODE + lab.names.token, INSTALL)}
    assert found == {handle.container_id: NOWHERE, other.container_id: other.address}
    for each in (handle, other):
        runtime.stop(each, 5)


def test_an_engine_that_is_taken_off_the_network_has_ended_and_is_removed(
    lab: Lab, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address is another's by now, or leads out of this machine: prompts and the key would go there."""
    monkeypatch.setattr(events, "_PING_EVERY_S", 600.0)  # it is told, not found out
    runtime = lab.runtime()
    handle = runtime.start(lab.plan(runtime))
    other = runtime.start(lab.plan(runtime, "fedcba9876543210"))
    told: list[tuple[Exit, list[str]]] = []
    told_of_other: list[Exit] = []
    runtime.watch(handle, lambda exit_: told.append((exit_, [each["Id"] for each in lab.all(daemon)])))
    runtime.watch(other, told_of_other.append)
    until(lambda: healthy(handle))
    docker_disconnect(lab.host, lab.names.network, handle.container_id or "")
    until(lambda: told)
    ((exit_, left),) = told
    assert exit_.cause == CONTAINER_CUT_OFF
    assert left == [other.container_id], "it is gone before anybody is told"
    assert told_of_other == []
    runtime.stop(other, 5)


def test_who_begins_to_watch_an_engine_that_was_taken_off_the_network_is_told(
    lab: Lab, daemon: Daemon
) -> None:
    first = lab.runtime()
    handle = first.start(lab.plan(first))
    first.close()
    docker_disconnect(lab.host, lab.names.network, handle.container_id or "")
    second = lab.runtime()
    (found,) = second.find(NODE + lab.names.token, INSTALL)
    told: list[Exit] = []
    second.watch(found, told.append)
    until(lambda: told)
    assert told[0].cause == CONTAINER_CUT_OFF
    assert lab.all(daemon) == []


def test_a_manager_outside_containers_is_never_told_that_its_own_left_the_network(
    lab: Lab, daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    """What becomes of the network itself is told, too, and the new network of its first engine is such news."""
    runtime = lab.runtime()
    handle = runtime.start(lab.plan(runtime))
    told: list[Exit] = []
    runtime.watch(handle, told.append)
    daemon.kill(handle.container_id or "")
    until(lambda: told)  # and with it all that came before
    assert "was taken off" not in caplog.text


def test_another_node_s_container_is_not_ours(lab: Lab, daemon: Daemon) -> None:
    mine, theirs = lab.runtime(), lab.runtime(node="node-b" + lab.names.token)
    handle = theirs.start(lab.plan(theirs, node="node-b" + lab.names.token))
    assert mine.find(NODE + lab.names.token, INSTALL) == []
    theirs.stop(handle, 2)


def test_a_container_left_by_a_killed_manager_does_not_block_its_name(lab: Lab, daemon: Daemon) -> None:
    runtime = lab.runtime()
    image = daemon.image(lab.image)
    assert image
    body = {"Image": lab.image, "Labels": labels.labels(lab.plan(runtime), image["Id"], KEY)}
    daemon.create(labels.container_name(lab.names.prefix, PROBE), body)
    handle = runtime.start(lab.plan(runtime, generation=2))
    until(lambda: healthy(handle))
    runtime.stop(handle, 5)


def test_the_engine_of_an_instance_that_would_be_named_alike_is_left_running(lab: Lab) -> None:
    runtime = lab.runtime()
    handle = runtime.start(lab.plan(runtime))
    with pytest.raises(LaunchError, match="of another instance"):
        runtime.start(lab.plan(runtime, PROBE[:8] + "f" * 8))
    assert runtime.inspect(handle) is None
    runtime.stop(handle, 5)


def test_without_a_daemon_everything_says_so_and_to_managers_where_it_was_looked_for(
    lab: Lab, tmp_path: Path
) -> None:
    runtime = lab.runtime(host=f"unix://{tmp_path}/none.sock")
    heard = threading.Event()
    runtime.on_reach(lambda reason: heard.set() if reason else None)
    assert [engine.digest for engine in runtime.engines()] == [None]
    for ask in (
        lambda: runtime.find(NODE, INSTALL),
        lambda: runtime.start(lab.plan(runtime)),
        lambda: runtime.stop(Handle(PROBE, 1, None, None, _nowhere(), "0" * 64), 1),
    ):
        with pytest.raises(RuntimeLost, match="no such socket") as caught:
            ask()
        assert "none.sock" not in caught.value.message
        assert caught.value.detail == f"{tmp_path}/none.sock"
    assert "no such socket" in until(runtime.lost)


def test_a_published_port_is_on_loopback_alone(lab: Lab, daemon: Daemon) -> None:
    runtime = lab.runtime(host_addr="127.0.0.1")
    assert runtime.fetch(runtime.engines()[0], print) is None
    assert runtime.needs_port()
    (port,) = free_ports(1)
    handle = runtime.start(lab.plan(runtime, port=port))
    assert (handle.address.host, handle.address.port) == ("127.0.0.1", port)
    until(lambda: healthy(handle))
    (network,) = daemon.networks(lab.names.network)
    assert network["Internal"] is False
    assert runtime.find(NODE + lab.names.token, INSTALL)[0].address == handle.address
    runtime.stop(handle, 5)


def _nowhere() -> Any:
    from llamaman.records import Address

    return Address("127.0.0.1", 9)
