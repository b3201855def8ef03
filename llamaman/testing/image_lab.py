"""A real registry, and images that no other test knows.

For tests of pulls. dockerd takes registries on 127.0.0.0/8 without TLS, so that nothing has to be configured.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaman.testing.processes import free_ports

REGISTRY = shutil.which("docker-registry")


def until(holds: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """The first truthy value of ``holds``."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


def free_port() -> int:
    """A port on which nobody listens."""
    return free_ports(1)[0]


@contextlib.contextmanager
def registry(folder: Path, *, accounts: str = "") -> Iterator[str]:
    """Run one on a free port of 127.0.0.1; yields ``host:port``.

    :param accounts: the text of an htpasswd file; without it everybody may pull and push.
    """
    assert REGISTRY, "docker-registry is not installed"
    folder.mkdir()
    port = free_port()
    auth = ""
    if accounts:
        (folder / "htpasswd").write_text(accounts)
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\n{auth}"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'store'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([REGISTRY, "serve", str(config)], stdout=log, stderr=log)
        try:
            until(lambda: _answers(port), (folder / "log").read_text())
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass
class Lab:
    """Makes images on one Docker engine and removes them all.

    :ivar client: the SDK's client, for what LlamaMan itself never does: build, tag, push.
    """

    client: Any
    names: list[str] = field(default_factory=list)

    def unique(self, registry: str = "") -> str:
        """A repository that nobody else uses."""
        return f"{registry}{'/' if registry else ''}llamaman-test/{secrets.token_hex(6)}"

    def build(self, name: str, dockerfile: str, *, random_bytes: int = 0) -> str:
        """Build an image; its context has ``payload`` (random bytes) and ``link.tar`` (/start -> the server)."""
        files = {
            "Dockerfile": dockerfile.encode(),
            "payload": secrets.token_bytes(random_bytes),
            "link.tar": _tar({}, links={"start": "/app/llama-server"}),
        }
        self.names.append(name)
        self.client.images.build(
            fileobj=io.BytesIO(_tar(files)), custom_context=True, tag=name, rm=True, forcerm=True
        )
        return name

    def tag(self, image: str, name: str) -> str:
        self.client.images.get(image).tag(name)
        self.names.append(name)
        return name

    def push(self, name: str) -> None:
        for event in self.client.api.push(name, stream=True, decode=True):
            assert "error" not in event, event

    def remove(self, *names: str) -> None:
        for name in names:
            self.names.append(name)
            self._remove(name)

    def close(self) -> None:
        for name in dict.fromkeys(self.names):
            self._remove(name)
        self.client.close()

    def _remove(self, name: str) -> None:
        import docker.errors

        with contextlib.suppress(docker.errors.ImageNotFound):
            self.client.images.remove(name)


def _tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return made.getvalue()
