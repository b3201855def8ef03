"""Which addresses count as an engine's: all from which its container can call, of a real one."""

from __future__ import annotations

import ipaddress
from typing import Any

import docker
import docker.types
import pytest

from llamaman.runtimes.docker.peers import Peers, addresses

pytestmark = pytest.mark.real("docker")


def test_every_address_that_a_container_has_counts(
    containers: Any, docker_host: str, scratch_names: Any
) -> None:
    client = docker.DockerClient(docker_host)
    pool = docker.types.IPAMPool(subnet=f"fd00:{scratch_names.token[:4]}::/64")
    client.networks.create(
        scratch_names.network,
        internal=True,
        enable_ipv6=True,
        ipam=docker.types.IPAMConfig(pool_configs=[pool]),
    )
    client.close()
    # The kernel finds out first whether an address is taken.
    script = "n=0; while [ $n -lt 3 ]; do sleep 0.1; n=$(grep -c . /proc/net/if_inet6); done; sleep 60"
    engine = containers.run("a", containers.shell(script, NetworkMode=scratch_names.network))
    inspected = containers.daemon.inspect(engine)
    with open(f"/proc/{inspected['State']['Pid']}/net/if_inet6") as file:
        lines = [line.split() for line in file]
    own = {str(ipaddress.IPv6Address(int(line[0], 16))) for line in lines if line[5] != "lo"}
    assert {address[:4] for address in own} == {"fd00", "fe80"}
    ipv4 = inspected["NetworkSettings"]["Networks"][scratch_names.network]["IPAddress"]
    assert addresses(inspected) == own | {ipv4}


def test_a_container_that_was_found_counts_at_once_and_until_it_is_gone() -> None:
    def at(address: str) -> dict[str, Any]:
        return {"NetworkSettings": {"Networks": {"n": {"IPAddress": address}}}}

    peers = Peers()
    peers.found({"a": at("172.18.0.2"), "b": at("172.18.0.3")})
    assert peers.all() == {"172.18.0.2", "172.18.0.3"}
    peers.watched("a")
    peers.remove("b")
    assert peers.all() == {"172.18.0.2"}
    peers.found({})
    assert peers.all() == {"172.18.0.2"}, "its end will be heard of"
    peers.remove("a")
    assert peers.all() == frozenset()
