"""Each environment variable of the Docker runtime changes what a real manager does with a real Docker engine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from proven import proves

from llamaman.testing.docker_images import server_image as build_image
from llamaman.testing.docker_manager import DockerManager
from llamaman.testing.private_daemon import PrivateDaemon, why_not
from llamaman.testing.processes import free_ports

from .conftest import NewDockerManager

pytestmark = pytest.mark.real("docker")


def launched(manager: DockerManager) -> str:
    """The id of an instance that answers."""
    answer = manager.chat("tiny", max_tokens=2)
    assert answer.status == 200, answer.text
    (instance,) = manager.instances()
    return str(instance["id"])


@proves("LLAMA_NETWORK", "LLAMA_CONTAINER_PREFIX", "LLAMA_IMAGE", "DOCKER_HOST")
def test_names_and_image_of_containers(manager: DockerManager) -> None:
    # The fixture sets all four to values of this test's own: none is a default.
    inspected = manager.container_of(launched(manager))
    assert inspected["Name"].startswith(f"/{manager.env['LLAMA_CONTAINER_PREFIX']}")
    assert list(inspected["NetworkSettings"]["Networks"]) == [manager.env["LLAMA_NETWORK"]]
    assert inspected["Config"]["Image"].endswith(manager.env["LLAMA_IMAGE"])


@proves("GPU_TYPE")
@pytest.mark.parametrize(
    ("vendor", "tag"), [("cuda", "server-cuda"), ("rocm", "server-rocm"), ("", "server")]
)
def test_the_image_is_that_of_the_gpu_vendor(new_manager: NewDockerManager, vendor: str, tag: str) -> None:
    manager = new_manager(env={"GPU_TYPE": vendor, "LLAMA_IMAGE": ""})
    (docker,) = [each for each in manager.manage("GET", "/api/runtimes") if each["name"] == "docker"]
    assert docker["engines"][0]["name"] == f"ghcr.io/ggml-org/llama.cpp:{tag}"


@proves("LLAMA_HOST_ADDR")
def test_containers_are_published_on_the_address_at_which_they_are_reached(
    new_manager: NewDockerManager,
) -> None:
    manager = new_manager(env={"LLAMA_HOST_ADDR": "127.0.0.3"})
    ports = manager.container_of(launched(manager))["NetworkSettings"]["Ports"]
    assert ports["8080/tcp"][0]["HostIp"] == "127.0.0.3"


def test_a_model_that_cannot_be_reached_where_it_is_looked_for_has_the_documented_answer(
    new_manager: NewDockerManager,
) -> None:
    # Nothing is published on that address, as with a manager that mistakes where it runs.
    manager = new_manager(env={"LLAMA_HOST_ADDR": "192.0.2.1", "MODEL_LOAD_TIMEOUT": "2"})
    instance = manager.launch("tiny", wait=None, restart_policy="never")
    failed = manager.wait_status(instance["id"], "failed")
    assert (
        "The container is healthy but llamaman can't reach it. Deployment mode is auto-detected, but if it's wrong "
        "for your runtime, set LLAMAMAN_IN_DOCKER=false (bare-metal) or true (in Docker) explicitly."
    ) in failed["reason"]
    assert (
        "Check logs via the Logs button. Common causes: OOM, model path typo, corrupt GGUF, image not pulled."
    ) in failed["reason"]
    assert manager.containers() == []


@proves("LLAMAMAN_IN_DOCKER")
def test_a_manager_that_is_told_to_be_in_a_container_asks_for_what_it_cannot_see_there(
    new_manager: NewDockerManager,
) -> None:
    manager = new_manager(env={"LLAMAMAN_IN_DOCKER": "true"})
    instance = manager.launch("tiny", wait=None, restart_policy="never")
    failed = manager.wait_status(instance["id"], "failed", 60)
    assert "LlamaMan's container" in failed["reason"], failed
    assert not manager.containers()


@proves("HOST_MODELS_DIR")
def test_models_are_mounted_from_where_the_docker_host_has_them(
    new_manager: NewDockerManager, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a folder at a second place")
    manager = new_manager(start=False)
    elsewhere = tmp_path / "as-the-manager-sees-it"
    elsewhere.mkdir()
    subprocess.run(["mount", "--bind", str(manager.models), str(elsewhere)], check=True)
    try:
        manager.env |= {"MODELS_DIR": str(elsewhere), "HOST_MODELS_DIR": str(manager.models)}
        manager.start()
        (mount,) = manager.container_of(launched(manager))["Mounts"]
        assert mount["Source"] == str(manager.models / "tiny.gguf")
        manager.terminate()
    finally:
        subprocess.run(["umount", "-l", str(elsewhere)], check=True)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder as DOCKER_CERT_PATH wants it, with the daemon's own pair beside."""
    folder = tmp_path / "certificates"
    folder.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-nodes", "-newkey", "rsa:2048")
    openssl(*new, "-x509", "-keyout", "ca-key.pem", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test-ca")
    for name, purpose in (("server", "serverAuth"), ("client", "clientAuth")):
        (folder / "ext").write_text(f"extendedKeyUsage={purpose}\nsubjectAltName=IP:127.0.0.1\n")
        openssl(*new, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = (
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "ext",
        )
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    (folder / "client.pem").rename(folder / "cert.pem")
    (folder / "client-key.pem").rename(folder / "key.pem")
    return folder


@pytest.fixture
def encrypted(certificates: Path) -> Iterator[tuple[PrivateDaemon, str]]:
    """A Docker engine that also listens on TCP, for clients with a certificate; and its address there."""
    if reason := why_not():
        pytest.skip(reason)
    (port,) = free_ports(1)
    files = {"tlscacert": "ca.pem", "tlscert": "server.pem", "tlskey": "server-key.pem"}
    words = [f"--{name}={certificates / file}" for name, file in files.items()]
    with PrivateDaemon("--host", f"tcp://127.0.0.1:{port}", "--tlsverify", *words) as daemon:
        yield daemon, f"tcp://127.0.0.1:{port}"


@proves("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
def test_a_daemon_behind_tls_is_spoken_to_with_our_certificate(
    encrypted: tuple[PrivateDaemon, str], certificates: Path, new_manager: NewDockerManager
) -> None:
    engine, address = encrypted
    image = build_image(engine.host)
    manager = new_manager(
        host=engine.host,
        image=image,
        env={"DOCKER_HOST": address, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)},
    )
    launched(manager)
    manager.terminate()
    del manager.env["DOCKER_TLS_VERIFY"], manager.env["DOCKER_CERT_PATH"]
    manager.start()
    assert manager.chat("tiny").status == 503
