"""The manager in a container of a real Docker engine, its engines as containers beside it.

For end-to-end tests of the image. It is asked as :class:`Manager` is, its admin socket included, whose folder is
mounted. Guarantees that names, networks and ports are its own, and that closing it removes whatever it made.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamaman.testing.manager import Manager
from llamaman.testing.manager_image import connect
from llamaman.testing.processes import NotReady

if TYPE_CHECKING:
    from docker.models.containers import Container

#: What the image's own defaults must not be set to by a test: they are what is tested.
_OF_THE_IMAGE = {"PATH", "HOME", "XDG_RUNTIME_DIR", "DATA_DIR", "MODELS_DIR", "LOGS_DIR", "LLAMA_SERVER_BIN"}
_OF_THE_IMAGE |= {"LLAMAMAN_HOST", "LLAMAMAN_PORT", "LLAMAMAN_PROXY_PORT", "LLAMAMAN_RUNTIME"}


class ManagerContainer(Manager):
    """One manager in a container; made without one. ``with ManagerContainer(...) as manager:`` as for Manager.

    Models lie in :attr:`host_models`; :attr:`models` is the path that the manager knows.

    :param host: DOCKER_HOST of the engine that runs the manager and, through its mounted socket, what it launches.
    :param image: the manager's image.
    :param socket: what is mounted in place of that engine's own socket, such as a relay's.
    :param llama_image: what the manager launches; None leaves its default.
    :param health_interval_s: seconds between Docker's own checks; None leaves the image's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str,
        image: str,
        socket: Path | None = None,
        llama_image: str | None = None,
        env: Mapping[str, str] | None = None,
        instance_ports: int = 8,
        health_interval_s: float | None = None,
    ) -> None:
        self.name = f"lmc-{secrets.token_hex(4)}"
        self.network = f"{self.name}-engines"
        self.prefix = f"{self.name}-e-"
        self.client_network = f"{self.name}-clients"
        own = {
            "LLAMA_NETWORK": self.network,
            "LLAMA_CONTAINER_PREFIX": self.prefix,
            **({"LLAMA_IMAGE": llama_image} if llama_image else {}),
        }
        super().__init__(folder, env={**own, **(env or {})}, instance_ports=instance_ports)
        self.host = host
        self.client = connect(host)
        self.image = image
        self._given_socket = socket
        self.host_models, self.models = self.models, Path("/models")
        self._given = set(env or {})
        self._health_interval_s = health_interval_s
        self._container: Container | None = None

    # --- its container -----------------------------------------------------------------------------------

    @property
    def container(self) -> Container:
        """Its container, as Docker shows it now.

        :raises NotReady: it was never started.
        """
        if self._container is None:
            raise NotReady("the manager's container was not started")
        self._container.reload()
        return self._container

    def spawn(self) -> None:
        """Run the image and return at once; a container from before is removed first."""
        self._remove_container()
        if not self.client.networks.list(names=[f"^{self.client_network}$"]):
            self.client.networks.create(self.client_network, check_duplicate=True)
        self._container = self.client.containers.run(self.image, **self._options())

    def _options(self) -> dict[str, Any]:
        from docker.types import Mount

        runtime_dir = self._runtime_dir / "llamaman"
        runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket = self._socket()
        mounted = {
            self.host_models: "/models",
            self.data: "/data",
            self.logs: "/tmp/llama-logs",
            runtime_dir: "/run/llamaman",
            socket: "/var/run/docker.sock",
        }
        published = {5000: self.port, 42069: self.proxy_port, **{port: port for port in self.public_ports}}
        options: dict[str, Any] = {
            "name": self.name,
            "detach": True,
            "init": True,
            "network": self.client_network,
            "mounts": [Mount(target, str(source), type="bind") for source, target in mounted.items()],
            "ports": {f"{inside}/tcp": ("127.0.0.1", outside) for inside, outside in published.items()},
            "environment": {
                n: text for n, text in self.env.items() if n not in _OF_THE_IMAGE or n in self._given
            },
        }
        if os.geteuid() != 0:  # then the folders are ours, and the socket is its group's
            options |= {"user": f"{os.geteuid()}:{os.getegid()}", "group_add": [socket.stat().st_gid]}
        if self._health_interval_s is not None:
            options["healthcheck"] = {"interval": int(self._health_interval_s * 1e9)}
        return options

    def _socket(self) -> Path:
        path = self._given_socket or Path(self.host.removeprefix("unix://"))
        if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
            raise NotReady(f"{path} is no unix socket of this machine: it cannot be mounted")
        return path

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait until management answers through Flask.

        :raises NotReady: the container ends, or it is not ready in time.
        """
        deadline = time.monotonic() + seconds
        while not self._answers():
            status = self.container.status
            if status not in ("created", "running") or time.monotonic() > deadline:
                raise NotReady(f"the manager's container is {status}; it said:\n{self.output()[-2000:]}")
            time.sleep(0.02)

    @property
    def is_alive(self) -> bool:
        """Whether its container runs."""
        return self._container is not None and self.container.status == "running"

    def kill(self) -> None:
        """SIGKILL to the manager; its engines go on."""
        self.container.kill()
        self.container.wait()

    def terminate(self, seconds: float = 30) -> int:
        """``docker stop``; returns its exit status."""
        self.container.stop(timeout=int(seconds))
        return int(self.container.wait()["StatusCode"])

    def replace(self, *, kill: bool = True) -> None:
        """Another container in its place, with the same folders, as after an update.

        :param kill: remove the old one by force, so that it cannot stop its engines first.
        """
        if not kill and self.is_alive:
            self.terminate()
        self.start()

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command in its container: exit status and what it printed."""
        done = self.container.exec_run(list(command))
        return int(done.exit_code), bytes(done.output).decode(errors="replace")

    def output(self) -> str:
        """What the manager wrote so far, in all its containers."""
        now = bytes(self._container.logs()).decode(errors="replace") if self._container else ""
        return super().output() + now

    # --- its engines -------------------------------------------------------------------------------------

    def containers(self) -> list[Container]:
        """Its engines' containers, whatever their state."""
        found = self.client.containers.list(
            all=True, ignore_removed=True, filters={"name": f"^/{self.prefix}"}
        )
        return list(found)

    # --- the end -----------------------------------------------------------------------------------------

    def _remove_container(self) -> None:
        if self._container is None:
            return
        with self.log.open("ab") as log:
            log.write(self._container.logs())
        self._container.remove(force=True)
        self._container = None

    def close(self) -> None:
        """Remove the manager, its engines and their networks."""
        from docker.errors import NotFound

        if self.is_alive:
            self.terminate()
        self._remove_container()
        for each in self.containers():
            with contextlib.suppress(NotFound):
                each.remove(force=True)
        for name in (self.client_network, self.network):
            for network in self.client.networks.list(names=[f"^{name}$"]):
                network.remove()
        self.client.close()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)
