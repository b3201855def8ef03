"""``keys``: API keys."""

from __future__ import annotations

import click

from llamaman.access import Scope
from llamaman.cli.connect import manager
from llamaman.cli.output import emit_json, json_option, say, table


@click.group()
def keys() -> None:
    """List, create and revoke API keys."""


@keys.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the keys; a key itself is never shown again."""
    found = manager().call("GET", "/api/api-keys")
    if as_json:
        emit_json(found)
        return
    heads = ("ID", "NAME", "PREFIX", "SCOPE", "MODELS", "EXPIRES", "LAST USED")
    rows = [
        (
            item["id"],
            item["name"],
            item["prefix"],
            item["scope"],
            "all" if item["models"] is None else ",".join(item["models"]),
            item["expires_at"] or "never",
            item["last_used_at"],
        )
        for item in found
    ]
    table(heads, rows)


@keys.command()
@click.option("--name", default="Untitled", show_default=True, help="What the key is for.")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=Scope.INFERENCE.value,
    show_default=True,
    help="What it may do: view reads management, inference calls models, manage and admin include both.",
)
@click.option(
    "--model", "models", multiple=True, help="A model it may use; may be repeated. All when left out."
)
@click.option("--expires", metavar="ISO-8601", help="When it ends, such as 2031-01-31T12:00:00Z.")
@json_option
def create(name: str, scope: str, models: tuple[str, ...], expires: str | None, as_json: bool) -> None:
    """Create a key and print it, this once, on stdout."""
    body = {"name": name, "scope": scope, "models": list(models) or None, "expires": expires}
    made = manager().call("POST", "/api/api-keys", body)
    if as_json:
        emit_json(made)
        return
    click.echo(made["key"])
    say(f"key {made['id']} '{made['name']}' may {made['scope']}; it is not shown again")


@keys.command()
@click.argument("key_id", metavar="ID")
@json_option
def revoke(key_id: str, as_json: bool) -> None:
    """End the key with this ID at once; its open streams end too."""
    answer = manager().call("DELETE", f"/api/api-keys/{key_id}")
    if as_json:
        emit_json(answer)
    else:
        say(f"key {key_id} is revoked")
