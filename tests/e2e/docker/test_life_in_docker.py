"""The life of a model in a container, and everything that can end it: the right state, reason, nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamaman.testing import processes
from llamaman.testing.docker_manager import DockerManager, docker_disconnect, docker_stop
from llamaman.testing.manager import ENDLESS, FOR_EVER, ManagerError
from llamaman.testing.wire import refuses

from .conftest import NewDockerManager

pytestmark = pytest.mark.real("docker")
GONE = ("stopped", "sleeping", "failed")
#: Holds the one loop of an engine, and one thread, for minutes.
EXPANDING = {"grammar": "root ::= " + "[ -~]? " * 6000}


def chats(manager: DockerManager) -> bool:
    answer = manager.chat("tiny", max_tokens=3)
    assert answer.status == 200, answer.text
    return bool(answer.json()["choices"])


def no_containers(manager: DockerManager) -> bool:
    return not manager.containers()


def test_a_request_starts_a_container_and_is_answered_by_it(manager: DockerManager) -> None:
    assert chats(manager)
    (instance,) = manager.instances()
    assert instance["status"] == "healthy"
    assert instance["runtime"] == "docker"
    inspected = manager.container_of(instance["id"])
    assert inspected["Name"] == f"/{instance['container_name']}" == f"/{manager.prefix}{instance['id'][:8]}"
    assert inspected["Id"] == instance["container_id"]
    assert inspected["Image"] == instance["engine_digest"]
    assert list(inspected["NetworkSettings"]["Networks"]) == [manager.network]
    (network,) = manager.docker.networks(manager.network)
    assert network["Internal"] is True, "a hijacked engine has no way out"


def test_a_container_has_the_walls_that_were_promised(manager: DockerManager) -> None:
    instance = manager.launch("tiny", threads=1, memory_limit="600m", n_gpu_layers=0)
    inspected = manager.container_of(instance["id"])
    host, config = inspected["HostConfig"], inspected["Config"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["Privileged"] is False
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] is True
    assert host["PidsLimit"] == 2048
    assert host["Memory"] == host["MemorySwap"] == 600 << 20
    assert host["NanoCpus"] == 1_000_000_000
    assert host["OomScoreAdj"] == 500
    assert host["Dns"] == ["127.0.0.1"]
    assert host["Ulimits"] == [{"Name": "core", "Hard": 0, "Soft": 0}]
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert host["Init"] is True
    assert set(host["Tmpfs"]) == {"/tmp"}
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert not host["PortBindings"]
    assert config["User"].split(":")[0] not in ("", "0", "root")
    (mount,) = inspected["Mounts"]
    assert (mount["Type"], mount["RW"], mount["Source"]) == ("bind", False, str(manager.models / "tiny.gguf"))
    assert mount["Destination"].startswith("/models/")
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert str(manager.models) not in json.dumps(config["Cmd"])
    assert "NVIDIA_VISIBLE_DEVICES=void" in config["Env"], "a default runtime must not attach every GPU"


def test_a_blank_memory_limit_is_a_ceiling_below_the_machine(manager: DockerManager) -> None:
    instance = manager.launch("tiny")
    total = int(manager.docker.info()["MemTotal"])
    memory = manager.container_of(instance["id"])["HostConfig"]["Memory"]
    assert memory == pytest.approx(total - max(2 << 30, total // 10), rel=0.01)


def test_the_container_s_output_is_the_instance_s_log(manager: DockerManager) -> None:
    instance = manager.launch("tiny")
    lines = manager.manage("GET", f"/api/instances/{instance['id']}/logs")["lines"]
    assert "=== LlamaMan starts" in lines[0]
    assert any("listening" in line for line in lines), lines


def test_what_a_container_uses_is_told_against_its_own_limits(manager: DockerManager) -> None:
    instance = manager.launch("tiny", threads=1, memory_limit="600m")

    def used() -> dict[str, Any] | None:
        found = manager.manage("GET", "/api/instances/container-stats")
        assert set(found) <= {instance["id"]}
        use = found.get(instance["id"])
        return use if use and use["cpu_pct"] is not None and use["mem_used_mb"] else None

    use = manager.until(used, "two samples of the container to have been taken")
    assert (use["num_cpus"], use["cpu_quota"], use["mem_limit_mb"]) == (1, 1, 600)
    assert 0 < use["mem_used_mb"] < 600
    assert use["cpu_pct"] >= 0
    manager.stop(instance["id"])
    assert manager.manage("GET", "/api/instances/container-stats") == {}


def test_sleep_and_wake_keep_id_and_port_and_make_a_new_container(manager: DockerManager) -> None:
    first = manager.launch("tiny", idle_timeout_min=0.01)
    manager.wait_status(first["id"], "sleeping")
    assert no_containers(manager)
    assert chats(manager)
    (woken,) = manager.instances()
    assert (woken["id"], woken["port"]) == (first["id"], first["port"])
    assert woken["container_id"] != first["container_id"]


def test_stop_removes_the_container_and_keeps_the_record(manager: DockerManager) -> None:
    instance = manager.launch("tiny")
    manager.stop(instance["id"])
    assert no_containers(manager)
    assert manager.instance(instance["id"])["status"] == "stopped"
    assert refuses(instance["port"])


def _docker_kill(manager: DockerManager, container_id: str) -> None:
    manager.docker.kill(container_id, "SIGKILL")


def _docker_rm(manager: DockerManager, container_id: str) -> None:
    manager.docker.remove(container_id)


def _docker_stop(manager: DockerManager, container_id: str) -> None:
    docker_stop(manager.env["DOCKER_HOST"], container_id, 5)


def _docker_network_rm(manager: DockerManager, container_id: str) -> None:
    """Docker removes no network that is in use: whoever wants to takes its containers off first."""
    docker_disconnect(manager.env["DOCKER_HOST"], manager.network, container_id)
    manager.docker.remove_network(manager.network)


def _crash(manager: DockerManager, container_id: str) -> None:
    """The engine itself, which is the child of the container's init."""
    inspected = manager.docker.inspect(container_id)
    assert inspected
    init = inspected["State"]["Pid"]
    (engine,) = [pid for pid in processes.pids() if processes.parent(pid) == init]
    os.kill(engine, signal.SIGSEGV)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (_docker_kill, "somebody killed its container (docker kill)"),
        (_docker_rm, "somebody removed its container (docker rm)"),
        (_docker_stop, "somebody stopped its container (docker stop)"),
        (_crash, "it crashed (SIGSEGV)"),
        (_docker_network_rm, "its container was taken off its Docker network (docker network disconnect)"),
    ],
)
def test_an_end_behind_our_back_is_named_and_the_model_comes_back(
    manager: DockerManager, end: Callable[[DockerManager, str], None], reason: str
) -> None:
    instance = manager.launch("tiny", restart_policy="never")
    end(manager, instance["container_id"])
    failed = manager.wait_status(instance["id"], "failed")
    assert reason in failed["reason"]
    manager.until(lambda: no_containers(manager), "nothing to be left behind")
    assert manager.manage("POST", f"/api/instances/{instance['id']}/restart", {})
    manager.wait_status(instance["id"], "healthy")
    assert chats(manager)


def test_what_died_by_itself_is_started_again_if_it_shall(manager: DockerManager) -> None:
    instance = manager.launch("tiny", restart_policy="on-failure")
    _crash(manager, instance["container_id"])

    def back() -> bool:
        now = manager.instance(instance["id"])
        return bool(now["status"] == "healthy" and now["container_id"] != instance["container_id"])

    manager.until(back, "the crashed instance to be back", 30)
    assert manager.instance(instance["id"])["stats"]["crash_count"] == 1
    assert len(manager.containers()) == 1


def test_a_container_that_a_request_holds_fast_is_replaced_and_one_that_somebody_paused_blames_nobody(
    manager: DockerManager,
) -> None:
    """Of a container's threads nothing can be seen, only what the daemon tells of all together."""
    manager.setting(**{"instances.frozen_after_s": 2})
    instance = manager.launch("tiny", threads=1, n_gpu_layers=0, **ENDLESS)
    with manager.ask("tiny", stream=True, max_tokens=FOR_EVER) as request:
        events = request.events()
        next(events)
        path = f"/containers/{instance['container_id']}/pause"
        manager.docker._connection.call("POST", path)
        *_, last = events
    assert json.loads(last)["error"]["message"] == "the engine was frozen for 2 s and was ended"
    manager.until(lambda: chats(manager), "the next container")
    assert manager.chat("tiny", **EXPANDING).error == "the engine was frozen for 2 s and was ended"
    said = [event["kind"] for event in manager.manage("GET", "/api/events?topic=instances")]
    assert said.count("frozen_by_request") == 1, "by the second one"
    manager.until(lambda: len(manager.containers()) == 1, "what was frozen to be gone")


def test_a_model_that_does_not_fit_is_killed_for_memory_and_says_so(
    new_manager: NewDockerManager, slow_model: Path
) -> None:
    manager = new_manager()
    (manager.models / "slow.gguf").write_bytes(slow_model.read_bytes())
    manager.manage("POST", "/api/models/rescan")
    instance = manager.launch(
        "slow", wait=None, memory_limit="24m", load_mode="none", restart_policy="never", ctx_size=65536
    )
    failed = manager.wait_status(instance["id"], "failed")
    assert "memory" in failed["reason"], failed
    assert failed["exit"]["oom"] is True
    manager.until(lambda: no_containers(manager), "nothing to be left behind")


def test_a_missing_image_that_cannot_be_pulled_says_what_to_pull(new_manager: NewDockerManager) -> None:
    missing = "127.0.0.1:9/llamaman-test/absent:server"
    manager = new_manager(image=missing)
    instance = manager.launch("tiny", wait=None)
    failed = manager.wait_status(instance["id"], "failed")
    assert "Docker image not found" in failed["reason"]
    assert f"docker pull {missing}" in failed["reason"]
    answer = manager.chat("tiny")
    assert answer.status == 503
    assert "Docker image not found" in answer.error
    assert no_containers(manager)


def test_an_image_that_is_not_allowed_is_refused_before_anything_happens(manager: DockerManager) -> None:
    with pytest.raises(ManagerError, match=r"images\.allowed"):
        manager.launch("tiny", wait=None, engine="docker.io/somebody/miner:latest")
    assert manager.instances() == []
    assert no_containers(manager)


def test_a_taken_container_name_of_somebody_else_is_left_alone(
    manager: DockerManager, server_image: str
) -> None:
    instance = manager.launch("tiny")
    manager.stop(instance["id"])
    theirs = manager.docker.create(
        instance["container_name"] or f"{manager.prefix}{instance['id'][:8]}", {"Image": server_image}
    )
    try:
        manager.manage("POST", f"/api/instances/{instance['id']}/restart", {})
        failed = manager.wait_status(instance["id"], "failed")
        assert "exists already" in failed["reason"]
        assert manager.docker.inspect(theirs) is not None
    finally:
        manager.docker.remove(theirs)


def test_a_taken_public_port_is_refused_before_a_container_is_made(manager: DockerManager) -> None:
    port = manager.public_ports[0]
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ManagerError, match=str(port)):
        manager.launch("tiny", wait=None, port=port)
    assert no_containers(manager)


def test_a_removed_network_is_made_again(manager: DockerManager) -> None:
    first = manager.launch("tiny")
    manager.stop(first["id"])
    manager.docker.remove_network(manager.network)
    assert chats(manager)
    assert len(manager.docker.networks(manager.network)) == 1


def test_containers_are_reached_by_a_loopback_port_where_that_is_wanted(
    new_manager: NewDockerManager,
) -> None:
    manager = new_manager(env={"LLAMA_HOST_ADDR": "127.0.0.1"})
    assert chats(manager)
    (instance,) = manager.instances()
    (binding,) = manager.container_of(instance["id"])["NetworkSettings"]["Ports"]["8080/tcp"]
    assert binding["HostIp"] == "127.0.0.1"
    assert int(binding["HostPort"]) in manager.internal_ports
    manager.stop(instance["id"])
    assert not processes.listening(manager.internal_ports)


def test_a_full_disk_for_logs_does_not_end_a_running_model(
    new_manager: NewDockerManager, full_after: Callable[[int], Path]
) -> None:
    folder = full_after(256 << 10)
    manager = new_manager(env={"LOGS_DIR": str(folder)})
    instance = manager.launch("tiny")
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * 4096)
            except OSError:
                break
    for _ in range(5):
        assert chats(manager)
    manager.stop(instance["id"])
    assert manager.instance(instance["id"])["status"] == "stopped"
    assert chats(manager), "a full log folder is no reason not to start"
    (now,) = manager.instances()
    assert (now["id"], now["status"]) == (instance["id"], "healthy")
    filler.unlink()
    log = folder / f"{instance['id']}.log"

    def goes_on() -> bool:
        """The log says how much it lacks, and has lines of what came after."""
        assert chats(manager)
        lost = re.search(
            r"\[\.\.\. \d+ lines? w(?:as|ere) lost here: the disk is full \.\.\.\]\n.", log.read_text()
        )
        return lost is not None

    manager.until(goes_on, "the log to go on after what was lost")
    manager.stop(instance["id"])
    assert manager.manage("GET", f"/api/instances/{instance['id']}/logs")["lines"]


def test_what_a_launch_could_not_have_is_said_on_its_card(manager: DockerManager) -> None:
    instance = manager.launch("tiny", memory_limit="900g")
    (note,) = [each for each in instance["notes"] if "memory_limit" in each]
    assert "900.0 GiB" in note
    manager.kill()
    manager.start()
    manager.wait_status(instance["id"], "healthy")
    total = int(manager.docker.info()["MemTotal"])
    assert manager.container_of(instance["id"])["HostConfig"]["Memory"] < total
