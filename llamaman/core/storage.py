"""Which storage driver, and opening it: the only module that imports stevedore, and it does so when asked.

stevedore answers "which one" (group ``llamaman.storage``, exactly one name, only that one imported); pluggy
answers "call it". A driver is never replaced by another: an empty store in the place of the real one is how
data is lost.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any, Literal

from llamaman.core.hooks import Hooks
from llamaman.core.store import Store
from llamaman.errors import ConfigError, PluginError
from llamaman.records import PluginRecord, StorageConfig

GROUP = "llamaman.storage"

#: The distribution that brings a first-party driver, for the message when it is missing.
_DISTRIBUTIONS = {"json": "llamaman-store-json", "sql": "llamaman-store-sql"}


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """An open store, and the record of the plugin that drives it."""

    store: Store
    record: PluginRecord


def driver_name(choice: Literal["auto", "json", "sql"] | str, database_url: str | None) -> str:
    """Return the driver that LLAMAMAN_STORAGE and DATABASE_URL ask for.

    :raises ConfigError: they contradict each other.
    """
    if choice == "auto":
        return "sql" if database_url else "json"
    if choice == "json" and database_url:
        raise ConfigError(
            "LLAMAMAN_STORAGE is 'json', but DATABASE_URL is set: unset DATABASE_URL to keep files in DATA_DIR, "
            "or set LLAMAMAN_STORAGE=sql"
        )
    if choice == "sql" and not database_url:
        raise ConfigError(
            "LLAMAMAN_STORAGE is 'sql', but DATABASE_URL is not set: set it to the database's URL"
        )
    return choice


def load_driver(name: str, hooks: Hooks) -> PluginRecord:
    """Import the driver ``name`` and register it as ``store_<name>``.

    :raises ConfigError: it is not installed, installed twice, or cannot be imported.
    """
    dist = _distribution(name)
    driver = _driver(name)
    plugin = f"store_{name}"
    try:
        found = hooks.register(plugin, driver, storage=True)
    except PluginError as error:
        raise ConfigError(f"storage driver '{name}' cannot be used: {error.reason}") from error
    if "storage" not in found:
        hooks.unregister(plugin)
        raise ConfigError(f"storage driver '{name}' cannot be used: it does not implement the hook 'storage'")
    return PluginRecord(
        plugin, dist.name if dist else None, dist.version if dist else None, "active", hooks=found
    )


def open_store(choice: str, config: StorageConfig, hooks: Hooks) -> OpenedStore:
    """Choose, load and open the store.

    :raises ConfigError: see :func:`driver_name` and :func:`load_driver`.
    :raises StoreCorrupt: what is stored cannot be trusted. Other errors of the driver pass too.
    """
    record = load_driver(driver_name(choice, config.database_url), hooks)
    return OpenedStore(hooks.storage(config), record)


def _driver(name: str) -> Any:
    from stevedore.driver import DriverManager
    from stevedore.exception import NoMatches

    failures: list[BaseException] = []
    try:
        manager: Any = DriverManager(
            GROUP,
            name,
            invoke_on_load=False,
            on_load_failure_callback=lambda _manager, _entry_point, error: failures.append(error),
        )
    except NoMatches as error:
        if failures:
            raise ConfigError(
                f"storage driver '{name}' cannot be imported: {type(failures[0]).__name__}: {failures[0]}"
            ) from failures[0]
        distribution = _DISTRIBUTIONS.get(name, f"a package that brings the driver '{name}'")
        reason = (
            "DATABASE_URL is set, so state belongs into the database"
            if name == "sql"
            else "no driver, no store"
        )
        raise ConfigError(
            f"storage driver '{name}' is not installed ({reason}): pip install {distribution}"
        ) from error
    except SystemExit as error:
        # stevedore lets it through: a module that ends the program at import.
        raise ConfigError(
            f"storage driver '{name}' cannot be imported: it called exit({error.code})"
        ) from error
    # Not manager.driver: that is the class again where an instance is falsy.
    extension = manager.extensions[0]
    return extension.obj if extension.obj is not None else extension.plugin


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    """Who brings the driver. Asked first: stevedore would import both of two, and forgets the distribution."""
    found = {
        entry_point.dist.name: entry_point.dist
        for entry_point in importlib.metadata.entry_points(group=GROUP, name=name)
        if entry_point.dist is not None
    }
    if len(found) > 1:
        raise ConfigError(
            f"storage driver '{name}' is installed more than once, by {' and '.join(sorted(found))}: "
            "uninstall all but one"
        )
    return next(iter(found.values()), None)
