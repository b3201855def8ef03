"""A running manager with models that say something, for clients that people use, unmodified.

Guarantees: one manager and one engine per test file, real both; every model answers within milliseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from foreign_env import ForeignClient, client_folder
from scripted_model import write_scripted_model

from llamaman.testing import write_slow_model, write_tiny_model
from llamaman.testing.engines import available_engines
from llamaman.testing.manager import ENDLESS, Manager


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """A manager with the chat models ``words``, ``thinker``, ``other`` and ``slow`` and the embedding model ``embed``.

    ``words`` calls tools, ``thinker`` thinks; both end their answers. ``slow`` does not, not even where its
    context is full.
    """
    engine = next((each for each in available_engines() if not each.missing), None)
    if engine is None:
        pytest.skip("no engine: install xllamacpp, or set LLAMA_SERVER_BIN")
    manager = Manager(tmp_path_factory.mktemp("clients"), binary=engine.binary)
    write_scripted_model(manager.models / "words.gguf")
    write_scripted_model(manager.models / "thinker.gguf", thinks=True)
    write_tiny_model(manager.models / "other.gguf", ends=True)
    write_tiny_model(manager.models / "embed.gguf", embedding=True)
    write_slow_model(manager.models / "slow.gguf")
    with manager:
        for model in ("words", "thinker", "other"):
            manager.preset(model)
        manager.preset("slow", **ENDLESS)
        manager.preset("embed", embedding_model=True)
        manager.setting(inference={"cold_starts_per_minute": 0})  # one key for all of the tests
        yield manager
        manager.terminate()
        left = manager.engines()
    assert not left, "a manager that ends leaves no engine running"
    assert "Traceback" not in manager.output(), manager.output()[-4000:]


@pytest.fixture
def open_site(site: Manager) -> Iterator[Manager]:
    """The same manager while it asks nobody for a key."""
    site.setting(require_auth=False)
    yield site
    site.setting(require_auth=True)


@pytest.fixture(scope="module")
def url(site: Manager) -> str:
    """Where clients find it."""
    return f"http://127.0.0.1:{site.proxy_port}"


@pytest.fixture(scope="session")
def foreign_clients() -> Path:
    """The folder with the clients that have an environment of their own; made when it is missing."""
    return client_folder()


@pytest.fixture(scope="module")
def litellm(foreign_clients: Path, site: Manager, url: str) -> Iterator[ForeignClient]:
    """The litellm package in a process of its own."""
    with ForeignClient.python(foreign_clients, "litellm_calls", url, site.inference_key) as client:
        yield client


@pytest.fixture(scope="module")
def langchain(foreign_clients: Path, site: Manager, url: str) -> Iterator[ForeignClient]:
    """The langchain-ollama package in a process of its own."""
    with ForeignClient.python(foreign_clients, "langchain_calls", url, site.inference_key) as client:
        yield client


@pytest.fixture(scope="module")
def ollama_js(foreign_clients: Path, site: Manager, url: str) -> Iterator[ForeignClient]:
    """The npm package ollama in a Node process."""
    with ForeignClient.node(foreign_clients, "ollama_calls", url, site.inference_key) as client:
        yield client
