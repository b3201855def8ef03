"""The walls around a model's container hold: nothing gets out of it, and a thousand connections do not end it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bombs import below

from llamaman.testing.docker_images import build_image
from llamaman.testing.docker_manager import DockerManager
from llamaman.testing.wire import call, lan_address

from .conftest import NewDockerManager
from .inside import Heard, Wish, from_inside
from .outside import Outside

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.real("docker")

#: By the route that newer engines do not give, or by the firewall of older ones.
NO_WAY = {"ENETUNREACH", "EHOSTUNREACH", "TimeoutError"}
CONNECTIONS = 1000
HALF_A_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"


def gateway(manager: DockerManager) -> str:
    """The host's own address on the engines' network."""
    (network,) = manager.docker.networks(manager.network)
    return str(network["IPAM"]["Config"][0]["Gateway"])


@pytest.fixture
def outside() -> Iterator[Outside]:
    """Somewhere that no container of ours may reach."""
    with Outside() as outside:
        yield outside


@pytest.fixture
def open_manager(new_manager: NewDockerManager) -> DockerManager:
    """A manager that listens on every address of this machine, as in a container."""
    return new_manager(env={"LLAMAMAN_HOST": "0.0.0.0"})


def test_from_a_model_s_container_every_port_of_the_manager_is_closed_whatever_key_it_has(
    open_manager: DockerManager,
) -> None:
    manager = open_manager
    instance = manager.launch("tiny")
    host = gateway(manager)
    key = manager.key("admin").secret
    wishes = [
        *(Wish(host, manager.port, path) for path in ("/health", "/login", "/", "/api/instances")),
        Wish(host, manager.port, "/api/instances", key),
        Wish(host, manager.proxy_port, "/health"),
        Wish(host, manager.proxy_port, "/v1/models", manager.inference_key),
        Wish(host, instance["port"], "/health"),
        Wish(host, instance["port"], "/v1/models", manager.inference_key),
    ]
    for wish in wishes:
        seen = call((host, wish.port), "GET", wish.path, key=wish.key)
        assert seen.status in (200, 302, 303, 401), f"from the host {wish} is answered: {seen.text}"

    if elsewhere := lan_address():  # where older engines have a route to it
        wishes += [Wish(elsewhere, manager.port, "/health"), Wish(elsewhere, manager.proxy_port, "/health")]

    def refused() -> None:
        heard = from_inside(manager.container_of(instance["id"]), *wishes)
        for wish, each in zip(wishes, heard, strict=True):
            if wish.host == host or each.error not in NO_WAY:
                assert each.status == 403, (wish, each)
                assert "a model's container may not call LlamaMan" in each.body

    refused()
    manager.kill()
    manager.start()
    assert manager.instance(instance["id"])["container_id"] == instance["container_id"], "it was adopted"
    refused()


def test_from_a_model_s_container_nothing_gets_out(new_manager: NewDockerManager, outside: Outside) -> None:
    def tries(manager: DockerManager) -> Heard:
        instance = manager.launch("tiny")
        wish = Wish(outside.address, 80, seconds=1.5)
        (heard,) = from_inside(manager.container_of(instance["id"]), wish)
        return heard

    # Where its ports are published the network is an ordinary one: what would get out is seen.
    assert tries(new_manager(env={"LLAMA_HOST_ADDR": "127.0.0.1"})).status is None
    assert outside.packets() > 0
    assert tries(new_manager()).error in NO_WAY
    assert outside.packets() == 0


@pytest.fixture
def client(docker_host: str) -> Iterator[DockerClient]:
    """For what LlamaMan itself never does: run any image."""
    import docker

    client = docker.DockerClient(base_url=docker_host)
    yield client
    client.close()


@pytest.fixture
def busybox(docker_host: str, client: DockerClient) -> Iterator[str]:
    """An image with nothing but a shell and its tools."""
    program = shutil.which("busybox")
    if program is None or subprocess.run(["ldd", program], capture_output=True, check=False).returncode == 0:
        pytest.skip("install busybox-static to run this test")
    tag = f"llamaman-test/busybox:{secrets.token_hex(6)}"
    build_image(docker_host, tag, "FROM scratch\nCOPY busybox /bin/busybox\n", {"busybox": Path(program)})
    yield tag
    client.images.remove(tag)


def test_a_stranger_on_the_engines_network_gets_no_further_and_is_answered_like_any_client(
    open_manager: DockerManager, client: DockerClient, busybox: str, outside: Outside
) -> None:
    """It is none of our containers, so that it needs a key like everybody: somebody's own client may be there."""
    manager = open_manager
    manager.launch("tiny")
    host = gateway(manager)
    stranger = client.containers.create(busybox, ["/bin/busybox", "sleep", "600"], network=manager.network)
    try:
        stranger.start()
        stranger.reload()
        models, instances = "/v1/models", "/api/instances"
        way_out, *answers = from_inside(
            stranger.attrs,
            Wish(outside.address, 80, seconds=1.5),
            Wish(host, manager.port, "/health"),
            Wish(host, manager.port, instances),
            Wish(host, manager.proxy_port, models),
            Wish(host, manager.proxy_port, models, manager.inference_key),
        )
    finally:
        stranger.remove(force=True)
    assert way_out.error in NO_WAY
    assert outside.packets() == 0
    assert [each.status for each in answers] == [200, 401, 401, 200]
    assert '"tiny"' in answers[-1].body


def healthy(where: tuple[str, int]) -> bool:
    try:
        return call(where, "GET", "/health", seconds=10).status == 200
    except OSError:
        return False


def test_a_thousand_connections_to_a_real_engine_do_not_end_it(manager: DockerManager) -> None:
    instance = manager.launch("tiny")
    container = manager.container_of(instance["id"])
    where = (str(container["NetworkSettings"]["Networks"][manager.network]["IPAddress"]), 8080)

    family = below(container["State"]["Pid"])
    most = 0
    with ExitStack() as held:
        for number in range(CONNECTIONS):
            connection = held.enter_context(socket.create_connection(where, timeout=10))
            connection.sendall(HALF_A_REQUEST)
            if number % 20 == 0:
                most = max(most, sum(len(os.listdir(f"/proc/{pid}/task")) for pid in family))
    print(f"{most} tasks")
    assert most > 200, "each connection is served by a thread: 64 of them were the end at 141 connections"
    assert manager.until(lambda: healthy(where), "/health to answer")
    now = manager.container_of(instance["id"])
    assert (now["Id"], now["State"]["StartedAt"]) == (container["Id"], container["State"]["StartedAt"])
    assert manager.chat("tiny").status == 200
    assert manager.instance(instance["id"])["generation"] == instance["generation"]
