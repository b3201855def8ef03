"""A real manager whose engines are containers of a real Docker engine, with everything of its own.

For end-to-end tests and benchmarks. Node, network and the prefix of container names are unique, so that managers
of several tests share one Docker engine without meeting; closing one removes every container and the network.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamaman.runtimes.docker.daemon import Daemon
from llamaman.runtimes.docker.labels import INSTANCE, NODE
from llamaman.testing.manager import Manager


class DockerManager(Manager):
    """One manager with the Docker runtime; made stopped.

    :param host: DOCKER_HOST of a running engine.
    :param image: an image with llama-server that this engine has.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str,
        image: str,
        env: Mapping[str, str] | None = None,
        instance_ports: int = 8,
    ) -> None:
        unique = f"lmt-{secrets.token_hex(4)}"
        self.docker = Daemon(host)
        self.network = unique
        self.prefix = f"{unique}-"
        own = {
            "LLAMAMAN_RUNTIME": "docker",
            "DOCKER_HOST": host,
            "LLAMA_IMAGE": image,
            "LLAMA_NETWORK": self.network,
            "LLAMA_CONTAINER_PREFIX": self.prefix,
            "LLAMAMAN_IN_DOCKER": "false",
        }
        super().__init__(folder, env={**own, **(env or {})}, instance_ports=instance_ports)

    def containers(self) -> list[Mapping[str, Any]]:
        """Summaries of every container of this manager's node, whatever its state."""
        return self.docker.containers([f"{NODE}={self.node}"])

    def container_of(self, instance_id: str) -> Mapping[str, Any]:
        """What Docker knows of an instance's container.

        :raises LookupError: there is not exactly one.
        """
        found = [each for each in self.containers() if each["Labels"][INSTANCE] == instance_id]
        if len(found) != 1:
            raise LookupError(f"instance {instance_id} has {len(found)} containers")
        inspected = self.docker.inspect(found[0]["Id"])
        if inspected is None:
            raise LookupError(f"the container of instance {instance_id} has just been removed")
        return inspected

    def close(self) -> None:
        """End the manager, and whatever it left in Docker."""
        super().close()
        for each in self.containers():
            self.docker.remove(each["Id"])
        self.docker.remove_network(self.network)
        self.docker.close()


def docker_stop(host: str, container_id: str, grace_s: int) -> None:
    """What an administrator's ``docker stop`` does. LlamaMan itself never makes this call.

    :param grace_s: seconds until SIGKILL.
    """
    import docker

    client = docker.APIClient(base_url=host)
    try:
        client.stop(container_id, timeout=grace_s)
    finally:
        client.close()


def docker_disconnect(host: str, network: str, container_id: str) -> None:
    """What an administrator's ``docker network disconnect -f`` does. LlamaMan itself never makes this call."""
    import docker

    client = docker.APIClient(base_url=host)
    try:
        client.disconnect_container_from_network(container_id, network, force=True)
    finally:
        client.close()
