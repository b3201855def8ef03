"""The driver keeps the contract that every storage driver keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamaman.testing.store_contract import OpenStore, StoreContract
from llamaman_store_json import JsonStore


class TestJsonStore(StoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: JsonStore(tmp_path)
