"""A house with accounts for every test here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .people import FillingStore, House


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FillingStore]:
    store = FillingStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def house(store: FillingStore, tmp_path: Path) -> House:
    return House(store, tmp_path)
