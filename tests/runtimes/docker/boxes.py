"""Containers that run shell scripts, for tests of what happens to a container whatever is in it.

The programs are this machine's, mounted read-only into an image that needs to hold nothing: so there is nothing
to fetch, and a container starts in a quarter of a second.
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Any

from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone

SERVER = "/app/llama-server"
_PROGRAMS = [folder for folder in ("/bin", "/lib", "/lib64", "/usr") if Path(folder).exists()]


class Boxes:
    """The containers of one test, with a label of their own; all removed at its end."""

    def __init__(self, daemon: Daemon, image: str) -> None:
        self.daemon = daemon
        self.image = image
        self.label = f"llamaman-test.boxes={uuid.uuid4().hex}"
        self.ids: list[str] = []

    def create(self, script: str, **host_config: Any) -> str:
        """A container with this script for ``/bin/sh``, not started."""
        return self._create(
            {
                "Entrypoint": ["/bin/sh", "-c", script],
                "HostConfig": {
                    "Binds": [f"{folder}:{folder}:ro" for folder in _PROGRAMS],
                    "NetworkMode": "none",
                }
                | host_config,
            }
        )

    def run(self, script: str, **host_config: Any) -> str:
        """The same, started."""
        container_id = self.create(script, **host_config)
        self.daemon.start(container_id)
        return container_id

    def serve(self, model: Path, *flags: str, **host_config: Any) -> str:
        """A started container with the image's llama-server."""
        container_id = self._create(
            {
                "Cmd": ["--model", "/models/model.gguf", "--threads", "1", *flags],
                "HostConfig": {"Binds": [f"{model}:/models/model.gguf:ro"], "NetworkMode": "none"}
                | host_config,
            }
        )
        self.daemon.start(container_id)
        return container_id

    def remove_all(self) -> None:
        """What is left of them."""
        for container_id in self.ids:
            with contextlib.suppress(DaemonError, DaemonGone):
                self.daemon.remove(container_id)

    def _create(self, body: dict[str, Any]) -> str:
        name, _, value = self.label.partition("=")
        body |= {"Image": self.image, "Labels": {name: value}}
        container_id = self.daemon.create(f"llamaman-test-{uuid.uuid4().hex[:12]}", body)
        self.ids.append(container_id)
        return container_id
