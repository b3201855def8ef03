"""Finding the manager, and the instance or model that a word on the command line means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from llamaman.client import Client, find_manager


def manager() -> Client:
    """The manager to talk to."""
    return find_manager(os.environ)


def instance_id(client: Client, word: str) -> str:
    """The id of the instance meant by an id, the start of one, a model's name or a port.

    :raises click.ClickException: none or several fit; the message lists them.
    """
    instances: list[Mapping[str, Any]] = client.call("GET", "/api/instances")
    for fits in (
        lambda item: item["id"] == word,
        lambda item: str(item["port"]) == word or item["model"] == word.lower(),
        lambda item: len(word) >= 4 and item["id"].startswith(word),
    ):
        found = [item["id"] for item in instances if fits(item)]
        if len(found) == 1:
            return str(found[0])
        if found:
            raise click.ClickException(f"'{word}' fits several instances: {', '.join(found)}; give an id")
    raise click.ClickException(f"no instance fits '{word}'; 'llamaman ps' lists them")


def model_path(client: Client, word: str) -> str:
    """The path of the model meant by its name, an alias or its path.

    :raises click.ClickException: no such model.
    """
    models: list[Mapping[str, Any]] = client.call("GET", "/api/models")
    wanted = word.lower().removesuffix(":latest")
    found = [
        item["path"]
        for item in models
        if word == item["path"] or wanted in (item["name"], *map(str.lower, item["aliases"]))
    ]
    if len(found) == 1:
        return str(found[0])
    raise click.ClickException(f"no model is named '{word}'; 'llamaman models' lists them")
