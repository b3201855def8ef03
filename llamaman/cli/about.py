"""``plugins`` and ``routes``."""

from __future__ import annotations

import click

from llamaman.cli.connect import manager
from llamaman.cli.output import emit_json, json_option, table


@click.command()
@click.option("--hooks", is_flag=True, help="Show which hooks each implements.")
@json_option
def plugins(hooks: bool, as_json: bool) -> None:
    """List the installed plugins: name, version, state, and why one is not active."""
    found = manager().call("GET", "/api/plugins")
    if as_json:
        emit_json(found)
        return
    heads = ["NAME", "VERSION", "STATE", "REASON", *(["HOOKS"] if hooks else [])]
    rows = [
        [
            item["name"],
            item["version"],
            item["state"],
            item["reason"],
            *([", ".join(item["hooks"])] if hooks else []),
        ]
        for item in found
    ]
    table(heads, rows)


@click.command()
@json_option
def routes(as_json: bool) -> None:
    """List every route with its surface, access level and plugin."""
    found = manager().call("GET", "/api/routes")
    if as_json:
        emit_json(found)
        return
    heads = ("METHOD", "PATH", "SURFACE", "LEVEL", "PLUGIN")
    table(heads, [[item[head.lower()] for head in heads] for item in found])
