"""What tests of the Docker runtime's parts share. Whatever is made by a scratch name is removed after its test."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llamaman.runtimes.docker.daemon import Daemon, DaemonError


@dataclass(frozen=True)
class ScratchNames:
    """Names that no other test uses.

    :ivar prefix: for containers and images.
    :ivar network: of a network that does not exist yet.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def prefix(self) -> str:
        return f"lmt-{self.token}-"

    @property
    def network(self) -> str:
        return f"lmt-{self.token}"

    @property
    def labels(self) -> dict[str, str]:
        return {"llamaman.test": self.token}

    @property
    def filters(self) -> list[str]:
        return [f"{name}={value}" for name, value in self.labels.items()]

    def clean(self, daemon: Daemon) -> None:
        for found in daemon.containers([]):
            names = [name.lstrip("/") for name in found.get("Names") or ()]
            if found["Labels"].get("llamaman.test") == self.token or any(
                name.startswith(self.prefix) for name in names
            ):
                daemon.remove(found["Id"])
        for network in daemon.networks(self.network):
            daemon.remove_network(network["Id"])
        for image in daemon.images():
            for tag in image.get("RepoTags") or ():
                if tag.startswith(self.prefix):
                    with contextlib.suppress(DaemonError):
                        daemon.remove_image(tag)


@pytest.fixture
def daemon(docker_host: str) -> Iterator[Daemon]:
    daemon = Daemon(docker_host)
    yield daemon
    daemon.close()


@pytest.fixture
def scratch_names(docker_host: str) -> Iterator[ScratchNames]:
    names = ScratchNames()
    yield names
    daemon = Daemon(docker_host)
    names.clean(daemon)
    daemon.close()


@dataclass(frozen=True)
class Containers:
    """Makes small containers with llama-server in them."""

    daemon: Daemon
    names: ScratchNames
    image: str
    model: Path

    def body(self, *command: str, **host_config: Any) -> dict[str, Any]:
        return {
            "Image": self.image,
            "Cmd": list(command or ("--version",)),
            "Labels": self.names.labels,
            "HostConfig": host_config,
        }

    def serving(self, **host_config: Any) -> dict[str, Any]:
        """The body of one that goes on until it is ended, and serves on port 8080."""
        model = {"Type": "bind", "Source": str(self.model), "Target": "/m.gguf", "ReadOnly": True}
        flags = ("--model", "/m.gguf", "--port", "8080", "--threads", "1", "--ctx-size", "512")
        return self.body(*flags, Mounts=[model], **host_config)

    def shell(self, script: str, **host_config: Any) -> dict[str, Any]:
        """The body of one that runs a script with this machine's programs, whatever the image holds."""
        folders = [folder for folder in ("/bin", "/lib", "/lib64", "/usr") if Path(folder).exists()]
        host_config = {"NetworkMode": "none"} | host_config
        host_config["Binds"] = [
            *host_config.get("Binds", ()),
            *(f"{folder}:{folder}:ro" for folder in folders),
        ]
        return self.body(**host_config) | {"Entrypoint": ["/bin/sh", "-c", script], "Cmd": None}

    def create(self, name: str, body: dict[str, Any] | None = None) -> str:
        return self.daemon.create(self.names.prefix + name, body or self.body())

    def run(self, name: str, body: dict[str, Any] | None = None) -> str:
        container = self.create(name, body)
        self.daemon.start(container)
        return container

    def ended(self, name: str, body: dict[str, Any] | None = None) -> str:
        """One that has run to its end."""
        container = self.run(name, body)
        assert self.daemon.wait(container, 60) is not None
        return container


@pytest.fixture
def containers(
    daemon: Daemon, scratch_names: ScratchNames, server_image: str, tiny_model: Path
) -> Containers:
    return Containers(daemon, scratch_names, server_image, tiny_model)
