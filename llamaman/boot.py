"""From a configuration to a kernel: everything of the boot that does not need the event loop.

Order: data directory and its lock, store, plugins, settings, keys, users, library, runtimes.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace

from llamaman.builtin import BuiltIn
from llamaman.core import audit_events, discovery, facade, storage
from llamaman.core.accounts.accounts import Accounts
from llamaman.core.api_keys import Keys
from llamaman.core.audit import Audit
from llamaman.core.config import Config
from llamaman.core.datadir import DataDir, open_data_dir
from llamaman.core.docker_choice import docker_could_be_here
from llamaman.core.events import Events
from llamaman.core.facade import Facades
from llamaman.core.hooks import Hooks
from llamaman.core.jobs import Jobs
from llamaman.core.kernel import Kernel
from llamaman.core.secrets import RootSecret, root_secret
from llamaman.core.settings import Settings
from llamaman.core.settings_table import CORE_SETTINGS
from llamaman.errors import ConfigError
from llamaman.library.library import Library
from llamaman.records import StorageConfig
from llamaman.runtime import Runtime
from llamaman.runtimes import logfiles
from llamaman.version import __version__

log = logging.getLogger("llamaman")

#: What the kernel and the library keep in the store.
KERNEL_COLLECTIONS = ("instances", "downloads", "presets", "settings", "api_keys", "users", "sessions")


def build_kernel(config: Config) -> Kernel:
    """Everything that does not need the event loop."""
    _check_image(config)
    data_dir = open_data_dir(config.data_dir, config.node_name)
    logfiles.prepare_folder(config.logs_dir)
    secrets = root_secret(config.data_dir, config.secret_key)
    hooks = Hooks(trace=config.trace_plugins, strict=config.strict)
    opened = storage.open_store(
        config.storage, StorageConfig(config.data_dir, config.node_name, config.database_url), hooks
    )
    store = opened.store
    # Asked for after the settings were sealed and the plugins found, which it asks in turn.
    hooks.register(
        "llamaman", BuiltIn(config, lambda: _docker(config, data_dir, secrets, settings, hooks)), own=True
    )
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
    audit = Audit(config.data_dir / "audit")
    audit_events.follow(audit, events)
    settings = Settings(config.node_name, events=events, environ=os.environ)
    settings.declare(CORE_SETTINGS, "llamaman")
    _declare_plugin_settings(hooks, settings)
    settings.seal(store)
    for warning in config.warnings_without(settings.variables()):
        log.warning("%s", warning)
    # Before anything else is written: that it has never had a user is told by an empty store alone.
    accounts = Accounts(store, events, root=secrets, install_id=data_dir.install_id, data_dir=config.data_dir)
    accounts.ensure_first(config.admin_user, config.admin_password)
    keys = Keys(store, events)
    keys.ensure_bootstrap(config.bootstrap_api_key)
    _forget_credentials()
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
    collections = _plugin_collections(hooks)
    kernel = Kernel(
        config=config,
        data_dir=data_dir,
        secrets=secrets,
        store=store,
        events=events,
        hooks=hooks,
        settings=settings,
        keys=keys,
        accounts=accounts,
        audit=audit,
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


def _check_image(config: Config) -> None:
    """:raises ConfigError: LLAMA_IMAGE has the look of a name, and Docker would not take it for one."""
    from llamaman.runtimes.docker.image_names import default_image, parse

    try:
        parse(default_image(config.llama_image, config.gpu_type))
    except ValueError as error:
        raise ConfigError(
            f"LLAMA_IMAGE: '{config.llama_image}' is not the name of an image: {error}"
        ) from None


def _docker(
    config: Config, data_dir: DataDir, secrets: RootSecret, settings: Settings, hooks: Hooks
) -> Runtime | None:
    """The Docker runtime, or None where it is not wanted or no Docker can be."""
    if config.runtime == "process" or not docker_could_be_here(config, os.environ):
        return None
    from llamaman.runtimes.docker.image_names import default_image
    from llamaman.runtimes.docker.parts import Parts
    from llamaman.runtimes.docker.runtime import DockerRuntime

    given = zip(config.models_dirs, config.host_models_dirs, strict=True)
    image = default_image(config.llama_image, config.gpu_type)
    return DockerRuntime(
        Parts(
            host=config.docker_host,
            environ=dict(os.environ),
            node=config.node_name,
            install=data_dir.install_id,
            key=secrets.derive("container-proof"),
            prefix=config.llama_container_prefix,
            network=config.llama_network,
            host_addr=config.llama_host_addr,
            private=(config.data_dir, config.logs_dir),
            in_docker=config.in_docker,
            folders=tuple((ours, theirs) for ours, theirs in given if ours != theirs),
            logs_dir=config.logs_dir,
            state_dir=config.data_dir / "runtime",
            image=image,
            images_allowed=lambda: settings.get("images.allowed"),
            seccomp_profiles=lambda: settings.get("containers.seccomp_profiles"),
            ask_plugins=hooks.container_spec,
        )
    )


def _forget_credentials() -> None:
    """Take first credentials out of the environment: no child, and no crash report, shall hold them."""
    for variable in ("LLAMAMAN_ADMIN_PASSWORD", "LLAMAMAN_BOOTSTRAP_API_KEY"):
        os.environ.pop(variable, None)
        os.environ.pop(f"{variable}_FILE", None)


def _declare_plugin_settings(hooks: Hooks, settings: Settings) -> None:
    """Every setting under its plugin's name, with an environment variable of its own.

    A setting that cannot be declared breaks its plugin, not the boot; nothing of the plugin is called any more,
    since it would ask for a setting that is not there.
    """
    for given in hooks.setting_declare():
        name = f"{given.plugin}.{given.value.name}"
        variable = given.value.env or f"LLAMAMAN_{name.upper().replace('.', '_')}"
        try:
            settings.declare([replace(given.value, name=name, env=variable)], given.plugin)
        except ConfigError as error:
            hooks.unregister(given.plugin)
            hooks.mark_broken(given.plugin, error.message)


def _plugin_collections(hooks: Hooks) -> dict[str, str]:
    """Collection name -> plugin. The kernel's own cannot be claimed, nor one twice; who tries is not called again."""
    owners: dict[str, str] = dict.fromkeys(KERNEL_COLLECTIONS, "llamaman")
    for given in hooks.collection_declare():
        owner = owners.setdefault(given.value.name, given.plugin)
        if owner != given.plugin:
            hooks.unregister(given.plugin)
            hooks.mark_broken(given.plugin, f"collection '{given.value.name}' belongs to '{owner}'")
    return owners
