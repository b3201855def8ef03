"""A recording relay in front of a Docker socket: which calls are made, and when.

For tests of what LlamaMan asks of a Docker daemon (the list that a socket proxy must allow) and for benchmarks
that need the moment of a call. Bytes pass unchanged in both directions, so a daemon behind it is a real one.
"""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from llamaman.testing.relay import Relay

_VERSION = re.compile(r"^/v[0-9.]+(?=/)")
_ID = re.compile(
    r"(?<=/containers/)(?!create|json)[^/]+|(?<=/networks/)(?!create)[^/]+|(?<=/images/)(?!create|json).+?(?=/json$|$)"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``path`` has no version and no query; ``at`` is ``time.perf_counter()``."""

    method: str
    path: str
    at: float

    @property
    def shape(self) -> str:
        """The call without its object: ``POST /containers/{}/start``."""
        return f"{self.method} {_ID.sub('{}', self.path)}"


class DockerRelay:
    """``with DockerRelay(docker_host) as relay``: give ``relay.host`` to whoever is to be watched."""

    def __init__(self, docker_host: str) -> None:
        self._upstream = docker_host.removeprefix("unix://")
        self._folder = Path(tempfile.mkdtemp(prefix="llamaman-relay-"))
        self._path = self._folder / "docker.sock"
        self._relay: Relay | None = None
        self.calls: list[Call] = []

    @property
    def host(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self._path}"

    def __enter__(self) -> DockerRelay:
        self._relay = Relay(self._upstream, self._path, on_request=self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relay is not None:
            self._relay.cut()
        self._path.unlink(missing_ok=True)
        self._folder.rmdir()

    def _note(self, method: str, path: str) -> None:
        plain = _VERSION.sub("", path.partition("?")[0])
        self.calls.append(Call(method, plain, time.perf_counter()))
