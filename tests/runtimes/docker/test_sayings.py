"""A daemon's words as sentences. Whatever a real daemon can be made to say here, it says in these tests itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llamaman.runtimes.docker import sayings
from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone
from llamaman.runtimes.docker.faults import (
    BROKEN,
    DENIED,
    MISSING,
    NOT_A_SOCKET,
    REFUSED,
    TIMED_OUT,
    UNKNOWN_HOST,
)
from llamaman.runtimes.docker.image_names import parse
from llamaman.runtimes.docker.pull_errors import cannot_be_had
from llamaman.runtimes.docker.sayings import explain, lost, unreachable
from llamaman.testing.docker_images import build_image
from llamaman.testing.private_daemon import PrivateDaemon, why_not

real = pytest.mark.real("docker")


@pytest.fixture
def refused(containers: Any) -> Any:
    """What is said of a container that cannot be made or started."""

    def told(body: dict[str, Any], name: str = "a") -> str:
        with pytest.raises(DaemonError) as error:
            containers.run(name, body)
        saying = explain(error.value, body["Image"])
        assert not saying.startswith("Docker API error"), error.value.text
        return saying

    return told


# --- the documented answers, word for word -------------------------------------------------------------


@real
def test_an_image_that_is_not_here(refused: Any) -> None:
    assert refused({"Image": "llamaman-test/none:at-all"}) == (
        "Docker image not found: 'llamaman-test/none:at-all'. Pull the matching image: "
        "docker pull ghcr.io/ggml-org/llama.cpp:server-cuda (NVIDIA), server-rocm (AMD), server-sycl (Intel Arc), "
        "or server (CPU)."
    )


NO_PASSTHROUGH = (
    "Set GPU Layers to 0 to launch CPU-only with no GPU device attached, or fix the GPU runtime "
    "(e.g. install the NVIDIA Container Toolkit)."
)


@real
@pytest.mark.parametrize(
    "asked",
    [
        {"DeviceRequests": [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]},
        {"DeviceRequests": [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]},
        {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]},
        {"Runtime": "nvidia"},
    ],
)
def test_a_gpu_that_docker_cannot_give(refused: Any, containers: Any, asked: dict[str, Any]) -> None:
    runtimes = containers.daemon.info()["Runtimes"]
    if "nvidia" in runtimes:
        pytest.skip("this machine has the NVIDIA runtime")
    assert refused(containers.body(**asked)).endswith(NO_PASSTHROUGH)


@real
@pytest.mark.parametrize(
    ("device", "documented"),
    [
        (
            "/dev/kfd",
            "Ensure /dev/kfd and /dev/dri exist on the host and your user is in the video/render groups.",
        ),
        ("/dev/dri/renderD128", "Ensure /dev/dri is accessible and your user is in the video/render groups."),
    ],
)
def test_a_gpu_whose_device_is_missing(refused: Any, containers: Any, device: str, documented: str) -> None:
    if Path(device).exists():
        pytest.skip("this machine has that GPU")
    entry = {"PathOnHost": device, "PathInContainer": device, "CgroupPermissions": "rwm"}
    said = refused(containers.body(Devices=[entry]))
    assert documented in said
    assert said.endswith(NO_PASSTHROUGH)


@pytest.mark.parametrize(
    "words",
    [
        "OCI runtime create failed: nvidia-container-cli: initialization error: nvml error: driver not loaded",
        "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8",
    ],
)
def test_a_broken_nvidia_toolkit(words: str) -> None:
    documented = (
        "Ensure the NVIDIA Container Toolkit is installed and docker run --gpus all works on the host."
    )
    assert documented in explain(DaemonError(500, words), "x")


def test_cdi_words_of_newer_engines() -> None:
    words = "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all"
    assert explain(DaemonError(500, words), "x").endswith(NO_PASSTHROUGH)


@real
def test_a_port_that_is_taken_by_a_container_or_a_program(refused: Any, containers: Any) -> None:
    def publishing(port: int) -> dict[str, Any]:
        bindings = {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}
        body = containers.shell("sleep 60", NetworkMode="bridge", PortBindings=bindings)
        return {**body, "ExposedPorts": {"8080/tcp": {}}}

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        documented = (
            f"Port conflict: another program on the Docker host uses 127.0.0.1:{port}. "
            "The form auto-suggests an unused port; adjust if needed."
        )
        assert refused(publishing(port), "a") == documented
    containers.run("b", publishing(port))
    assert refused(publishing(port), "c") == documented


def test_an_unreachable_daemon_says_to_mount_its_socket(tmp_path: Path) -> None:
    documented = (
        "Ensure /var/run/docker.sock is mounted into the LlamaMan container "
        "(it is by default in docker-compose.yml)."
    )
    for reason in (MISSING, NOT_A_SOCKET):
        said = unreachable(reason)
        assert said.startswith("Docker API error: ")
        assert documented in said


def test_anything_else_is_told_in_the_daemons_words() -> None:
    assert explain(DaemonError(500, "something\nnew"), "x") == "Docker API error: something new"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            'mounting "/srv/my models/x.gguf" to rootfs at "/models/x.gguf" caused: not a directory',
            'mounting "x.gguf" to rootfs at "x.gguf" caused: not a directory',
        ),
        ("open /var/lib/docker/overlay2/0a/merged: strange", "open merged: strange"),
        ("failed on 'C:/x' and (/a/b) and /", "failed on 'C:/x' and (b) and /"),
        ("Get https://10.0.0.5:5000/v2/?a=b: strange", "Get (an address): strange"),
        ('Get "http://user:pw@registry.local/v2/": strange', 'Get "(an address)": strange'),
        ("dial tcp 10.0.0.5:2376: strange", "dial tcp (an address): strange"),
        ("lookup of [fd00::1]:53 on 192.168.1.1: strange", "lookup of (an address) on (an address): strange"),
        (
            "version 1.2.3 of ghcr.io/ggml-org/llama.cpp:server",
            "version 1.2.3 of ghcr.io/ggml-org/llama.cpp:server",
        ),
    ],
)
def test_the_daemons_words_tell_those_who_may_launch_no_places(words: str, shown: str) -> None:
    assert explain(DaemonError(500, words), "x") == f"Docker API error: {shown}"
    told = cannot_be_had(parse("a/b:c"), words)
    assert told.message.endswith(f"Docker: {shown}")
    assert told.detail == f"Docker: {words}", "those who may manage see it all"


# --- further causes ------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"Memory": 1 << 20}, "Docker allows no less than 6MB"),
        ({"Memory": 1 << 28, "MemorySwap": 1 << 27}, "memory and swap"),
        ({"NanoCpus": 10**13}, "use fewer CPU threads"),
        ({"NetworkMode": "lmt-not-there"}, "the Docker network 'lmt-not-there' was removed"),
        ({"Mounts": [{"Type": "bind", "Source": "/not/there.gguf", "Target": "/m"}]}, "HOST_MODELS_DIR"),
        ({"GroupAdd": ["render-none"]}, "'render-none'"),
        ({"SecurityOpt": ["seccomp={"]}, "seccomp"),
        ({"Ulimits": [{"Name": "none", "Soft": 0, "Hard": 0}]}, "ulimits"),
        (
            {"Devices": [{"PathOnHost": "/dev/none", "PathInContainer": "/dev/none"}]},
            "no device /dev/none",
        ),
    ],
)
def test_each_refusal_of_a_real_daemon_names_what_to_change(
    refused: Any, containers: Any, asked: dict[str, Any], part: str
) -> None:
    said = refused(containers.body(**asked))
    assert part in said
    assert "/not/there" not in said, "everybody who may launch reads this: no paths of the host"


@real
def test_a_name_that_is_taken(refused: Any, containers: Any, scratch_names: Any) -> None:
    containers.create("a")
    said = refused(containers.body(), "a")
    assert f"'{scratch_names.prefix}a'" in said
    assert "LLAMA_CONTAINER_PREFIX" in said


@real
def test_an_image_without_its_program_or_account(refused: Any, containers: Any) -> None:
    said = refused(containers.body() | {"Entrypoint": ["/app/none"]}, "a")
    assert "no program /app/none" in said
    assert "no account" in refused(containers.body() | {"User": "somebody"}, "b")


@real
def test_a_full_disk_and_a_missing_init(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    try:
        with PrivateDaemon("--data-root", str(disk), "--init-path", "/not/there/docker-init") as private:
            daemon = Daemon(private.host)
            build_image(private.host, "lmt-x:x", 'FROM scratch\nCMD ["/x"]\n')

            def told(host_config: dict[str, Any]) -> str:
                body = {"Image": "lmt-x:x", "HostConfig": {"NetworkMode": "none"} | host_config}
                with pytest.raises(DaemonError) as error:
                    daemon.start(daemon.create("", body))
                return explain(error.value, "lmt-x:x")

            assert "docker-init" in told({"Init": True})
            with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as fill:
                while True:
                    fill.write(b"x" * 4096)
            full = told({})
            assert "no space left on device" in full
            assert "docker system df" in full
            assert str(disk) not in full
            (disk / "fill").unlink()
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ('exec: "docker-init": executable file not found in $PATH', "docker-init"),
        ("could not find an available, non-overlapping IPv4 address pool", "default-address-pools"),
        ("all predefined address pools have been fully subnetted", "default-address-pools"),
        ("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler", "kernel"),
        ("exec /app/llama-server: exec format error", "another kind of processor"),
        ("mounts denied: The path /models is not shared from the host", "File sharing"),
        ("<h1>403 Forbidden</h1> Request forbidden by administrative rules.", "proxy"),
        ("client version 1.24 is too old. Minimum supported API version is 1.44", "update"),
        ("network lm-net is ambiguous (2 matches found on name)", "'lm-net'"),
    ],
)
def test_words_that_cannot_be_provoked_here(words: str, part: str) -> None:
    said = explain(DaemonError(500, words), "some/image:x")
    assert part in said
    assert not said.startswith("Docker API error")


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        (MISSING, "systemctl start docker"),
        (DENIED, "usermod -aG docker"),
        (DENIED, "group_add"),
        (REFUSED, "not running"),
        (TIMED_OUT, "hangs"),
        (BROKEN, "tries again"),
        (UNKNOWN_HOST, "DOCKER_HOST"),
        ("TLS fails: x", "TLS fails: x."),
    ],
)
def test_each_reason_of_an_unreachable_daemon_has_its_cure(reason: str, cure: str) -> None:
    said = unreachable(reason)
    assert said.startswith(f"Docker API error: Docker cannot be reached: {reason}.")
    assert cure in said


def test_a_registrys_words_command_no_terminal() -> None:
    assert DaemonError(500, "a\x1b[2J\u202eb\r\nc").text == "a\\x1b[2J\\u202eb c"


def test_where_the_daemon_is_only_those_who_may_manage_are_told() -> None:
    error = lost("tcp://10.0.0.2:2376", DaemonGone(REFUSED))
    assert "10.0.0.2" not in error.message
    assert error.detail == "tcp://10.0.0.2:2376"


def test_every_reason_has_a_cure() -> None:
    from llamaman.runtimes.docker import faults

    reasons = {value for name, value in vars(faults).items() if name.isupper() and not name.startswith("_")}
    assert reasons == set(sayings._CURES)
    assert DaemonGone(MISSING).reason in reasons
