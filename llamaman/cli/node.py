"""``node``: what concerns this machine's identity. Works on DATA_DIR itself, while no manager runs."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import click

from llamaman.cli.output import emit_json, json_option

if TYPE_CHECKING:
    from llamaman.core.config import Config


@click.group()
def node() -> None:
    """This machine's identity."""


@node.command()
@click.argument("old")
@click.argument("new")
@json_option
def rename(old: str, new: str, as_json: bool) -> None:
    """Give DATA_DIR's node another name: OLD is the present one. Stop the manager first.

    Set LLAMAMAN_NODE_NAME to NEW before the next start.
    """
    from llamaman.core.config import Config
    from llamaman.core.datadir import node_of, open_data_dir, rename_node
    from llamaman.errors import ConfigError

    if not new.strip():
        raise ConfigError("NEW is blank; a node needs a name")
    config = Config.from_environ({**os.environ, "LLAMAMAN_NODE_NAME": new})
    new = config.node_name
    known = node_of(config.data_dir)
    if known is None:
        raise ConfigError(f"no node lives in DATA_DIR {config.data_dir}; set DATA_DIR as the manager has it")
    if known != old:
        right = f"llamaman node rename {shlex.quote(known)} {shlex.quote(new)}"
        raise ConfigError(f"DATA_DIR {config.data_dir} belongs to node '{known}', not '{old}': {right}")
    data_dir = open_data_dir(config.data_dir, old)
    try:
        _refuse_with_engines(config, old, data_dir.install_id)
        _take_settings_along(config, old)
    finally:
        data_dir.close()
    rename_node(config.data_dir, old, new)
    if as_json:
        emit_json({"data_dir": str(config.data_dir), "node": new})
        return
    click.echo(f"{config.data_dir} belongs to node {new} now; set LLAMAMAN_NODE_NAME={new}")


def _refuse_with_engines(config: Config, node: str, install: str) -> None:
    """Engines carry the name of their node: a manager of another name would neither adopt nor end them."""
    from llamaman.builtin import BuiltIn
    from llamaman.errors import ConfigError

    (process,) = BuiltIn(config, lambda: None).runtime_register()
    left = [f"pid {handle.pid}" for handle in process.find(node, install)]
    left += [f"container {name}" for name in _containers(config, node, install)]
    if left:
        raise ConfigError(
            f"engines of node '{node}' still run ({', '.join(left)}), because its manager was killed: start "
            f"and stop it once with LLAMAMAN_NODE_NAME={shlex.quote(node)}, then rename"
        )


def _containers(config: Config, node: str, install: str) -> list[str]:
    """Names of the containers that say they are this node's; none where no Docker can be asked."""
    from llamaman.core.docker_choice import docker_could_be_here
    from llamaman.errors import ConfigError
    from llamaman.runtimes.docker.daemon import Daemon
    from llamaman.runtimes.docker.faults import DaemonError, DaemonGone
    from llamaman.runtimes.docker.labels import label_filter, name_of

    if config.runtime == "process" or not docker_could_be_here(config, os.environ):
        return []
    daemon = Daemon(config.docker_host)
    try:
        return [name_of(each) for each in daemon.containers(label_filter(node, install))]
    except (DaemonGone, DaemonError) as error:
        if config.runtime == "docker":
            raise ConfigError(
                f"Docker cannot say whether containers of node '{node}' are left ({error}): start Docker, then rename"
            ) from error
        return []  # nobody who may not use Docker has started containers there
    finally:
        daemon.close()


def _take_settings_along(config: Config, old: str) -> None:
    """Copy what is kept per node. The old name's stay: nothing is lost if the rename fails half-way."""
    from llamaman.core import storage
    from llamaman.core.hooks import Hooks
    from llamaman.core.settings import COLLECTION
    from llamaman.core.store import Put
    from llamaman.records import StorageConfig

    where = StorageConfig(config.data_dir, old, config.database_url)
    store = storage.open_store(config.storage, where, Hooks()).store
    try:
        before, after = f"node/{old}/", f"node/{config.node_name}/"
        own = [document for document in store.list(COLLECTION) if document.key.startswith(before)]
        store.batch(COLLECTION, [Put(after + each.key.removeprefix(before), each.value) for each in own])
    finally:
        store.close()
