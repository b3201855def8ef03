"""What LlamaMan registers through its own hooks, so that the path plugins take is walked every day."""

from __future__ import annotations

from collections.abc import Sequence

from llamaman.core.config import Config
from llamaman.hookspecs import hookimpl
from llamaman.runtime import Runtime


class BuiltIn:
    """The kernel's own plugin: the process runtime."""

    def __init__(self, config: Config) -> None:
        self._config = config

    @hookimpl
    def runtime_register(self) -> Sequence[Runtime]:
        """Engines as processes of this machine."""
        from llamaman.runtimes.process import ProcessRuntime

        return (
            ProcessRuntime(
                binary=self._config.llama_server_bin,
                embedded=True,
                state_dir=self._config.data_dir / "runtime",
                user=self._config.llama_server_user,
            ),
        )
