"""``images``: the container images that launches may use."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from llamaman.cli.complete import images as image_names
from llamaman.cli.connect import manager
from llamaman.cli.output import age, complain, emit_json, escape, json_option, say, table
from llamaman.client import Client

_EVERY_S = 0.5
_UNDER_WAY = ("queued", "pulling", "extracting")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def images(context: click.Context, as_json: bool) -> None:
    """List, pull and delete the container images of llama-server; without a command, list them.

    What may be pulled and launched is the setting images.allowed, and LLAMA_IMAGE.
    """
    if context.invoked_subcommand is None:
        _list(as_json)


@images.command()
@json_option
def ls(as_json: bool) -> None:
    """List the current image, then the others, and what is being pulled."""
    _list(as_json)


@images.command()
@click.argument("name", required=False, shell_complete=image_names)
@click.option("--no-wait", is_flag=True, help="Only begin; 'llamaman images ls' shows how far it is.")
@json_option
def pull(name: str | None, no_wait: bool, as_json: bool) -> None:
    """Pull the image NAME, the current one if it is left out, and show how far it is.

    An interrupt ends only the showing: the pull goes on.
    """
    client = manager()
    state: dict[str, Any] = client.call("POST", "/api/images/pull", {"image": name} if name else {})
    if not no_wait:
        state = _followed(client, state)
    if as_json:
        emit_json(state)
    elif state["status"] == "done":
        say(f"{state['image']} is here")
    elif state["status"] != "error":
        say(f"{state['image']}: {state['message']}")
    if state["status"] == "error":
        if state.get("detail"):
            complain(state["detail"])
        raise click.ClickException(escape(state["error"]))


@images.command()
@click.argument("name", shell_complete=image_names)
@json_option
def rm(name: str, as_json: bool) -> None:
    """Delete the image NAME from the Docker host; the current one and those in use stay."""
    answer = manager().call("DELETE", "/api/images", {"image": name})
    if as_json:
        emit_json(answer)
    else:
        say(f"{answer['image']} is deleted")


def _list(as_json: bool) -> None:
    found = manager().call("GET", "/api/images")
    if as_json:
        emit_json(found)
        return
    heads = ("IMAGE", "HERE", "DIGEST", "SIZE", "BUILT", "PULLED", "NOTES")
    table(heads, [_row(item) for item in found["images"]])
    running = [each for each in found["pulls"] if each["status"] in _UNDER_WAY]
    if running:
        click.echo()
        table(("PULL", "STATE", "SINCE"), [(p["image"], p["message"], age(p["started_at"])) for p in running])


def _row(item: dict[str, Any]) -> tuple[object, ...]:
    notes = [word for word, holds in (("current", item["current"]), ("in use", item["in_use"])) if holds]
    if not item["allowed"]:
        notes.append("not allowed")
    return (
        item["name"],
        "yes" if item["present"] else "no",
        (item["digest"] or "").removeprefix("sha256:")[:12],
        None if item["size_mb"] is None else f"{item['size_mb']:.0f} MiB",
        age(item["created"]),
        age(item["last_pulled_at"]),
        ", ".join(notes),
    )


def _followed(client: Client, state: dict[str, Any]) -> dict[str, Any]:
    """The pull when it is over; on a terminal its progress is shown in one line meanwhile."""
    is_terminal = sys.stderr.isatty()
    begun, shown = state["started_at"], ""
    while state["status"] in _UNDER_WAY:
        if state["message"] != shown:
            shown = state["message"]
            line = escape(f"{state['image']}: {shown}")
            click.echo(f"\r{line}\x1b[K" if is_terminal else line, nl=not is_terminal, err=True)
        time.sleep(_EVERY_S)
        pulls = client.call("GET", "/api/images/pull-status")["pulls"]
        mine = [each for each in pulls if each["image"] == state["image"] and each["started_at"] >= begun]
        if not mine:
            raise click.ClickException(
                f"the pull of {state['image']} is not known any more; was LlamaMan restarted?"
            )
        state = mine[-1]
    if is_terminal and shown:
        click.echo(err=True)
    return state
