"""``node``: what concerns this machine's identity. Works on DATA_DIR itself, while no manager runs."""

from __future__ import annotations

import os

import click

from llamaman.cli.output import emit_json, json_option


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
    from llamaman.core.datadir import rename_node

    config = Config.from_environ({**os.environ, "LLAMAMAN_NODE_NAME": old})
    rename_node(config.data_dir, old, new)
    if as_json:
        emit_json({"data_dir": str(config.data_dir), "node": new})
        return
    click.echo(f"{config.data_dir} belongs to node {new} now; set LLAMAMAN_NODE_NAME={new}")
