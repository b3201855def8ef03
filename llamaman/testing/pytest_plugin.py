"""Fixtures for tests with real engines; registered with pytest by the ``llamaman`` distribution.

For our tests and those of plugins. Imported at every pytest start where LlamaMan is installed, so everything
heavy is imported inside the fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llamaman.records import Engine
    from llamaman.runtimes.process import ProcessRuntime
    from llamaman.testing.engines import TestEngine


def pytest_configure(config: pytest.Config) -> None:
    """Declare our marker for projects that do not."""
    config.addinivalue_line("markers", "real: needs a real part (engine, database, browser)")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that a real engine loads in milliseconds; it never ends an answer by itself."""
    from llamaman.testing import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with which long answers and long prompts take seconds."""
    from llamaman.testing import write_slow_model

    return write_slow_model(tmp_path_factory.mktemp("slow-models") / "slow.gguf")


@pytest.fixture(
    params=[
        pytest.param("llama-server", marks=pytest.mark.real("llama-server")),
        pytest.param("embedded", marks=pytest.mark.real("embedded engine")),
    ]
)
def real_engine(request: pytest.FixtureRequest) -> TestEngine:
    """Each real engine in turn; skips with what to do when it is missing."""
    from llamaman.testing.engines import available_engines

    engine = next(engine for engine in available_engines() if engine.name == request.param)
    if engine.missing:
        pytest.skip(engine.missing)
    return engine


@pytest.fixture
def process_runtime(real_engine: TestEngine, tmp_path: Path) -> Iterator[ProcessRuntime]:
    """A process runtime that offers each real engine in turn, closed after the test.

    What a test starts it also stops.
    """
    from llamaman.runtimes.process import ProcessRuntime

    runtime = ProcessRuntime(
        binary=real_engine.binary,
        embedded=real_engine.name == "embedded",
        state_dir=tmp_path / "runtime-state",
    )
    yield runtime
    runtime.close()


@pytest.fixture
def engine(process_runtime: ProcessRuntime, real_engine: TestEngine) -> Engine:
    """Each real engine in turn, as the runtime of ``process_runtime`` offers it."""
    return next(engine for engine in process_runtime.engines() if engine.name == real_engine.name)


@pytest.fixture(scope="session")
def docker_host() -> str:
    """Where a real Docker engine answers, as in DOCKER_HOST; for tests marked ``real("docker")``."""
    import os

    from llamaman.runtimes.docker.daemon import Daemon, DaemonError, DaemonGone

    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    daemon = Daemon(host, timeout_s=10)
    try:
        daemon.version()
    except (DaemonGone, DaemonError) as error:
        pytest.skip(f"no Docker engine answers at {daemon.address} ({error}): start one, or set DOCKER_HOST")
    finally:
        daemon.close()
    return host


@pytest.fixture(scope="session")
def server_image(docker_host: str) -> str:
    """The name of an image with a real llama-server that the engine at ``docker_host`` has."""
    from llamaman.testing.docker_images import NoImage
    from llamaman.testing.docker_images import server_image as build

    try:
        return build(docker_host)
    except NoImage as error:
        pytest.skip(str(error))
