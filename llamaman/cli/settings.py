"""``settings``: run-time settings by dotted name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from llamaman.cli.connect import manager
from llamaman.cli.output import emit_json, json_option, say, table


@click.group()
def settings() -> None:
    """Show or change run-time settings."""


@settings.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List every setting."""
    values = manager().call("GET", "/api/settings")
    if as_json:
        emit_json(values)
    else:
        table(("SETTING", "VALUE"), [(name, json.dumps(value)) for name, value in flat(values)])


@settings.command()
@click.argument("name")
@json_option
def get(name: str, as_json: bool) -> None:
    """Show one setting, or one group of them."""
    value = find(manager().call("GET", "/api/settings"), name)
    if as_json or isinstance(value, dict | list):
        emit_json(value)
    else:
        click.echo(json.dumps(value))


@settings.command("set")
@click.argument("name")
@click.argument("value")
@json_option
def set_(name: str, value: str, as_json: bool) -> None:
    """Set NAME to VALUE, which is JSON (true, 5, null) or else text."""
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    patch: Any = parsed
    for part in reversed(name.split(".")):
        patch = {part: patch}
    answer = manager().call("POST", "/api/settings", patch)
    if as_json:
        emit_json(answer)
    else:
        say(f"{name} is now {json.dumps(find(answer['settings'], name))}")


@settings.command()
@click.argument("name", required=False)
@json_option
def describe(name: str | None, as_json: bool) -> None:
    """Show type, range, default, source and meaning of NAME, of a group of settings, or of all."""
    rows = [row for row in manager().call("GET", "/api/settings/describe") if _is_within(row["name"], name)]
    if not rows:
        raise click.ClickException(f"no setting is named '{name}'; 'llamaman settings list' lists them")
    if as_json:
        emit_json(rows)
        return
    heads = ("SETTING", "TYPE", "ALLOWED", "DEFAULT", "VALUE", "FROM", "SCOPE", "MEANING")
    cells = [
        (
            row["name"],
            row["type"],
            allowed(row),
            json.dumps(row["default"]),
            json.dumps(row["value"]),
            f"environment ({row['env']})" if row["source"] == "environment" else row["source"],
            row["scope"],
            row["help"] if row["editable"] else f"{row['help']} (LlamaMan sets it itself)",
        )
        for row in rows
    ]
    table(heads, cells)


def _is_within(name: str, wanted: str | None) -> bool:
    return wanted is None or name == wanted or name.startswith(f"{wanted}.")


def allowed(row: Mapping[str, Any]) -> str | None:
    """The range of a setting, or the form of its texts, in words."""
    if row["choices"]:
        return "|".join(row["choices"])
    least, most = row["minimum"], row["maximum"]
    if least is None and most is None:
        return row.get("form") or None
    return f"{'' if least is None else format(least, 'g')}..{'' if most is None else format(most, 'g')}"


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def find(values: Any, name: str) -> Any:
    """The value under a dotted name.

    :raises click.ClickException: no such setting.
    """
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            raise click.ClickException(f"no setting is named '{name}'; 'llamaman settings list' lists them")
        values = values[part]
    return values
