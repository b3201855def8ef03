"""Words for the shell's completion of arguments: instances, models, users of the manager that runs.

Silent and quick: without a manager, or one that does not answer at once, there is nothing to offer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

    from llamaman.client import Client

_CONNECT_S = 0.5
_ANSWER_S = 1.5

#: The shell puts a completed word on its command line as it is, and names come from files: a model called
#: ``$(reboot)`` must not get there.
_HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@%+/-]*")

Complete = Callable[["click.Context", "click.Parameter", str], list[str]]


def _from(words: Callable[[Client], Iterable[str]]) -> Complete:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        found = _ask(words)
        return sorted({word for word in found if word.startswith(incomplete) and _HARMLESS.fullmatch(word)})

    return complete


def _ask(words: Callable[[Client], Iterable[str]]) -> list[str]:
    import os

    from llamaman.client import find_manager

    try:
        client = replace(find_manager(os.environ), connect_s=_CONNECT_S, answer_s=_ANSWER_S)
        return list(words(client))
    except Exception:  # noqa: BLE001 - somebody is typing a command: a message would end up amid it
        return []


def _instances(client: Client) -> list[str]:
    found: list[dict[str, Any]] = client.call("GET", "/api/instances")
    models = [item["model"] for item in found]
    unique = [model for model in models if models.count(model) == 1]
    return [item["id"] for item in found] + unique


def _models(client: Client) -> list[str]:
    return [item["name"] for item in client.call("GET", "/api/models")]


#: An instance: its id, or its model's name where that is enough.
instances = _from(_instances)
#: A model by its name.
models = _from(_models)
#: What can be asked about: a model or an instance.
targets = _from(lambda client: _models(client) + _instances(client))
#: A user's name.
user_names = _from(lambda client: [item["name"] for item in client.call("GET", "/api/users")])
#: A container image.
images = _from(lambda client: [item["name"] for item in client.call("GET", "/api/images")["images"]])
