"""Real managers whose engines are containers. Each ends clean: no container, no network, no traceback."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llamaman.testing.docker_manager import DockerManager

NewDockerManager = Callable[..., DockerManager]


def end(manager: DockerManager) -> None:
    """End a manager in order, and see that it was in order."""
    left: list[Any] = []
    if manager.is_alive:
        manager.terminate()
        left = [each["Names"] for each in manager.containers()]
    manager.close()
    assert not left, f"a manager that ends leaves no container: {left}"
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture
def new_manager(
    tmp_path: Path, tiny_model: Path, docker_host: str, server_image: str
) -> Iterator[NewDockerManager]:
    """Makes managers for this test alone, with ``tiny.gguf`` among their models, and starts them."""
    with ExitStack() as stack:

        def make(*, start: bool = True, host: str = docker_host, **options: Any) -> DockerManager:
            folder = tmp_path / secrets.token_hex(4)
            manager = DockerManager(folder, host=host, image=options.pop("image", server_image), **options)
            shutil.copy(tiny_model, manager.models / "tiny.gguf")
            stack.callback(end, manager)
            if start:
                manager.start()
            return manager

        yield make


@pytest.fixture
def full_after(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a folder on a disk of its own that is full after so many bytes."""
    with ExitStack() as stack:

        def make(size: int) -> Path:
            if os.geteuid() != 0:
                pytest.skip("only root can mount a small disk")
            folder = tmp_path / f"disk-{secrets.token_hex(4)}"
            folder.mkdir(mode=0o700)
            options = f"size={size},mode=700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield make


@pytest.fixture
def manager(new_manager: NewDockerManager) -> DockerManager:
    """A running manager."""
    return new_manager()
