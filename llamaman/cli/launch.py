"""``launch``: one flag per launch option, generated from the launch table, so the two cannot differ."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from llamaman.cli.complete import models
from llamaman.cli.connect import manager
from llamaman.cli.output import emit_json, json_option, say
from llamaman.client import Client, Refused
from llamaman.core.launch_options import OPTIONS, LaunchOption

_F = TypeVar("_F", bound=Callable[..., Any])

_BY_NAME = {option.name: option for option in OPTIONS}
_WAIT_S = 3600.0


def _generated(command: _F) -> _F:
    for option in reversed(OPTIONS):
        flag = option.name.replace("_", "-")
        declared = f"--{flag}/--no-{flag}" if option.kind == "bool" else f"--{flag}"
        kind: Any = None if option.kind == "bool" else str
        shown = (
            ""
            if option.kind == "bool"
            else f"  [{'blank' if option.default in (None, '') else option.default}]"
        )
        command = click.option(
            declared,
            f"option_{option.name}",
            default=None,
            type=kind,
            metavar=None if option.kind == "bool" else option.kind.upper(),
            help=f"{option.help}{shown}",
        )(command)
    return command


@click.command(epilog="An option given as an empty string is left to the engine where that is possible.")
@click.argument("model", shell_complete=models)
@click.option("--port", type=click.IntRange(1, 65535), help="Public port; the first free one when left out.")
@click.option(
    "-o", "--option", "pairs", multiple=True, metavar="NAME=VALUE", help="A launch option by its name."
)
@click.option("--yes", is_flag=True, help="Also when more models would run than LLAMAMAN_MAX_MODELS says.")
@click.option("--wait", is_flag=True, help="Return when the model answers, or failed.")
@_generated
@json_option
def launch(
    model: str,
    port: int | None,
    pairs: tuple[str, ...],
    yes: bool,
    wait: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Launch MODEL, a name from 'llamaman models' or a path."""
    body: dict[str, Any] = {"model_path" if "/" in model else "model": model}
    for name, value in flags.items():
        if value is not None:
            option = _BY_NAME[name.removeprefix("option_")]
            body[option.name] = value if option.kind == "bool" else parse(option, value)
    for pair in pairs:
        name, value = split(pair)
        body[name] = value
    if port is not None:
        body["port"] = port
    if yes:
        body["confirm_overcommit"] = True
    client = manager()
    answer = _launch(client, body)
    if wait:
        answer = _until_settled(client, answer)
    if as_json:
        emit_json(answer)
    else:
        say(f"{answer['model']} is {answer['status']} on port {answer['port']} (instance {answer['id']})")
    if answer["status"] == "failed":
        raise click.ClickException(f"{answer['model']} did not start: {answer['reason']}")


def split(pair: str) -> tuple[str, Any]:
    """``NAME=VALUE`` as an option's name and JSON value.

    :raises click.UsageError: no such option; the message names what it resembles.
    """
    name, equals, value = pair.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise click.UsageError(f"'{pair}' is not NAME=VALUE")
    option = _BY_NAME.get(name)
    if option is None:
        close = difflib.get_close_matches(name, _BY_NAME, 3)
        hint = f"; did you mean {', '.join(close)}?" if close else "; see 'llamaman launch --help'"
        raise click.UsageError(f"no launch option is named '{name}'{hint}")
    return name, parse(option, value)


def parse(option: LaunchOption, value: str) -> Any:
    """An option's text as JSON; what does not fit stays text, for the manager to refuse in its own words."""
    if value == "" and option.nullable:
        return None
    if option.kind == "bool":
        return {"true": True, "false": False, "on": True, "off": False}.get(value.lower(), value)
    if option.kind in ("int", "float", "layers"):
        for number in (int, float):
            try:
                return number(value)
            except ValueError:
                continue
    return value


def _launch(client: Client, body: dict[str, Any]) -> Any:
    try:
        return client.call("POST", "/api/instances", body)
    except Refused as refusal:
        if refusal.confirm:
            raise click.ClickException(f"{refusal.message} (--yes launches it all the same)") from None
        raise


def _until_settled(client: Client, answer: Any) -> Any:
    deadline = time.monotonic() + _WAIT_S
    while answer["status"] == "starting" and time.monotonic() < deadline:
        time.sleep(0.2)
        answer = client.call("GET", f"/api/instances/{answer['id']}")
    return answer
