"""A LlamaMan of its own for a run, with the stand-in as its engine.

Read by :mod:`benchmarks.columns`, :mod:`benchmarks.startup` and :mod:`benchmarks.cycles`. The process and its
folders are those of :mod:`llamaman.testing.manager`; what is here is what only benchmarks do with them.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import standin
from llamaman.testing import processes
from llamaman.testing.manager import CHAT, Manager, ManagerError, unavailable
from llamaman.testing.wire import call

__all__ = [
    "CHAT",
    "MODEL",
    "Manager",
    "ManagerError",
    "launch",
    "prepare",
    "start",
    "stop_and_remove",
    "unavailable",
]

MODEL = "bench"
CTX_SIZE = 4096


def prepare(folder: Path) -> Manager:
    """A manager with the stand-in and one model; starts nothing."""
    from llamaman.testing import write_tiny_model

    folder.mkdir(parents=True)
    manager = Manager(folder, binary=standin.write_wrapper(folder / "llama-server"))
    write_tiny_model(manager.models / f"{MODEL}.gguf")
    return manager


def start(manager: Manager) -> None:
    """Start it and wait until /health answers, which is before management does.

    :raises processes.NotReady: it does not come up.
    """
    manager.spawn()
    processes.wait_until(lambda: healthy(manager), "llamaman serve", manager.running, manager.log)


def healthy(manager: Manager) -> bool:
    """Whether /health of the management port answers 200."""
    try:
        return call(manager.port, "GET", "/health", seconds=5).status == 200
    except OSError:
        return False


def launch(manager: Manager, parallel: int) -> str:
    """Launch the model and wait until it is healthy; its instance id."""
    return str(manager.launch(MODEL, ctx_size=CTX_SIZE, threads=None, parallel=parallel)["id"])


def stop_and_remove(manager: Manager, instance: str) -> None:
    """Stop an instance and forget its record."""
    manager.stop(instance)
    manager.remove(instance)
