"""``models`` and ``presets``."""

from __future__ import annotations

from typing import Any

import click

from llamaman.cli.complete import models as model_names
from llamaman.cli.connect import manager, model_path
from llamaman.cli.output import emit_json, json_option, say, table
from llamaman.client import Client, Refused


@click.command()
@click.option("--rescan", is_flag=True, help="Look at the disk again first.")
@json_option
def models(rescan: bool, as_json: bool) -> None:
    """List the models on disk."""
    client = manager()
    found = client.call("POST", "/api/models/rescan") if rescan else client.call("GET", "/api/models")
    if as_json:
        emit_json(found)
        return
    rows = [
        (item["name"], item["quant"], item["size_display"], item["context_length"], item["path"])
        for item in found
    ]
    table(("NAME", "QUANT", "SIZE", "CONTEXT", "PATH"), rows)


@click.group()
def presets() -> None:
    """Show or change saved launch options. MODEL is a name or a path."""


@presets.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the models that have a preset."""
    found = manager().call("GET", "/api/presets")
    if as_json:
        emit_json(found)
        return
    rows = [
        (path, "yes" if preset.get("favorite") else None, preset.get("note"))
        for path, preset in found.items()
    ]
    table(("MODEL", "FAVORITE", "NOTE"), rows)


@presets.command()
@click.argument("model", shell_complete=model_names)
@json_option
def get(model: str, as_json: bool) -> None:
    """Show MODEL's preset."""
    client = manager()
    preset = client.call("GET", _url(model_path(client, model)))
    if as_json:
        emit_json(preset)
    else:
        table(("OPTION", "VALUE"), sorted(preset.items()))


@presets.command("set")
@click.argument("model", shell_complete=model_names)
@click.argument("pairs", nargs=-1, required=True, metavar="NAME=VALUE...")
@json_option
def set_(model: str, pairs: tuple[str, ...], as_json: bool) -> None:
    """Change options of MODEL's preset; the others stay. favorite=true, note=TEXT and aliases=NAME,NAME work too."""
    changes = dict(_pair(pair) for pair in pairs)
    client = manager()
    url = _url(model_path(client, model))
    client.call("PUT", url, _existing(client, url) | changes)
    if as_json:
        emit_json(client.call("GET", url))
    else:
        say(f"preset of {model} saved")


@presets.command()
@click.argument("model", shell_complete=model_names)
@json_option
def delete(model: str, as_json: bool) -> None:
    """Forget MODEL's preset."""
    client = manager()
    answer = client.call("DELETE", _url(model_path(client, model)))
    if as_json:
        emit_json(answer)
    else:
        say(f"preset of {model} deleted")


def _pair(pair: str) -> tuple[str, Any]:
    from llamaman.cli.launch import split

    name, _, value = pair.partition("=")
    if name == "note":
        return name, value
    if name == "aliases":
        return name, [alias for alias in value.split(",") if alias.strip()]
    if name == "favorite":
        return name, {"true": True, "false": False}.get(value, value)
    return split(pair)


def _existing(client: Client, url: str) -> dict[str, Any]:
    try:
        preset: dict[str, Any] = client.call("GET", url)
    except Refused as refusal:
        if refusal.status == 404:
            return {}
        raise
    return preset


def _url(path: str) -> str:
    return f"/api/presets/{path.lstrip('/')}"
