"""What LlamaMan registers through its own hooks, so that the path plugins take is walked every day."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamaman.core.config import Config
from llamaman.hookspecs import hookimpl
from llamaman.runtime import Runtime


class BuiltIn:
    """The kernel's own plugin: the Docker runtime, where Docker could be, and the process runtime.

    :param docker: makes the Docker runtime, or None where there can be no Docker.
    """

    def __init__(self, config: Config, docker: Callable[[], Runtime | None]) -> None:
        self._config = config
        self._docker = docker

    @hookimpl
    def runtime_register(self) -> Sequence[Runtime]:
        """Engines as containers beside us, and as processes of this machine."""
        from llamaman.runtimes.process import ProcessRuntime

        process = ProcessRuntime(
            binary=self._config.llama_server_bin,
            embedded=True,
            state_dir=self._config.data_dir / "runtime",
            user=self._config.llama_server_user,
        )
        docker = self._docker()
        return (docker, process) if docker else (process,)
