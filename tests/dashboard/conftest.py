"""One running manager for the tests that change nothing, a fresh one for those that do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browser_site import Site
from management_door import Manager, running_manager


@pytest.fixture(scope="session")
def shared_manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """Only read from this one."""
    with running_manager(tmp_path_factory.mktemp("m")) as manager:
        yield manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with running_manager(tmp_path) as manager:
        yield manager


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An app without a door, and nobody set up."""
    site = Site(tmp_path)
    yield site
    site.close()
