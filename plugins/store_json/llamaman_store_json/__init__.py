"""Storage driver ``json``: every collection in a file of DATA_DIR, safe against crashes and full disks.

Chosen by ``LLAMAMAN_STORAGE=json``, and by default while DATABASE_URL is not set.
"""

from __future__ import annotations

from llamaman import StorageConfig, Store, hookimpl
from llamaman_store_json.store import JsonStore

__all__ = ["JsonStore", "storage"]


@hookimpl
def storage(config: StorageConfig) -> Store:
    """Open the store in DATA_DIR."""
    return JsonStore(config.data_dir)
