"""From a configuration to a kernel: everything of the boot that does not need the event loop.

Order: data directory and its lock, store, plugins, settings, keys, library, runtimes.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace

from llamaman.builtin import BuiltIn
from llamaman.core import discovery, facade, storage
from llamaman.core.api_keys import Keys
from llamaman.core.config import Config
from llamaman.core.datadir import open_data_dir
from llamaman.core.events import Events
from llamaman.core.facade import Facades
from llamaman.core.hooks import Hooks
from llamaman.core.jobs import Jobs
from llamaman.core.kernel import Kernel
from llamaman.core.secrets import root_secret
from llamaman.core.settings import Settings
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.errors import ConfigError
from llamaman.library.library import Library
from llamaman.records import StorageConfig
from llamaman.runtimes import logfiles
from llamaman.version import __version__

log = logging.getLogger("llamaman")


def build_kernel(config: Config) -> Kernel:
    """Everything that does not need the event loop."""
    for warning in config.warnings:
        log.warning("%s", warning)
    data_dir = open_data_dir(config.data_dir, config.node_name)
    logfiles.prepare_folder(config.logs_dir)
    secrets = root_secret(config.data_dir, config.secret_key)
    hooks = Hooks(trace=config.trace_plugins, strict=config.strict)
    opened = storage.open_store(
        config.storage, StorageConfig(config.data_dir, config.node_name, config.database_url), hooks
    )
    store = opened.store
    hooks.register("llamaman", BuiltIn(config), own=True)
    plugins = (
        opened.record,
        *discovery.discover(
            hooks,
            disabled=config.plugins_disabled,
            only=config.plugins_only,
            strict=config.strict,
        ),
    )
    for record in plugins:
        if record.state == "broken":
            log.error("plugin %s is broken: %s", record.name, record.reason)
    events = Events()
    settings = Settings(config.node_name, events=events, environ=os.environ)
    settings.declare(CORE_SETTINGS, "llamaman")
    for contribution in hooks.setting_declare():
        named = replace(contribution.value, name=f"{contribution.plugin}.{contribution.value.name}")
        settings.declare([named], contribution.plugin)
    settings.seal(store)
    keys = Keys(store, events)
    keys.ensure_bootstrap(config.bootstrap_api_key)
    library = Library(
        config,
        store,
        events=events,
        allow_unlisted=lambda: bool(settings.get("launch.allow_unlisted_args")),
    )
    runtimes = {given.value.name: given.value for given in hooks.runtime_register()}
    if config.runtime != "auto" and config.runtime not in runtimes:
        raise ConfigError(
            f"LLAMAMAN_RUNTIME is '{config.runtime}', which is not installed; it may be: "
            f"{', '.join(sorted(runtimes))} or auto"
        )
    collections = {given.value.name: given.plugin for given in hooks.collection_declare()}
    kernel = Kernel(
        config=config,
        data_dir=data_dir,
        secrets=secrets,
        store=store,
        events=events,
        hooks=hooks,
        settings=settings,
        keys=keys,
        library=library,
        jobs=Jobs(),
        runtimes=runtimes,
        loaded=plugins,
        started_at=time.time(),
    )
    kernel.facades = Facades(
        facade.Services(
            node=config.node_name,
            version=__version__,
            setting=settings.get,
            models=library.models,
            instances=lambda: kernel.instances.views(),  # noqa: PLW0108 - the registry is made after the façade
            events=events,
            store=lambda: store,
            owner_of_collection=collections.get,
        )
    )
    return kernel
