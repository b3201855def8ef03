"""``python weakened.py <defence> serve``: LlamaMan without one of its defences, or without any (``all``).

For ``test_hostile_page.py`` alone: what one defence stops, another must stop too, and the attempts of the tests
must be able to succeed. Each defence is one function, replaced wherever it has been imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from llamaman.cli import main
from llamaman.gateway.cross_site import check_form

Weaken = Callable[[Callable[..., Any]], Callable[..., Any]]


def _nothing(_: Callable[..., Any]) -> Callable[..., None]:
    """A check that lets everything pass."""
    return lambda *args, **options: None


def _yes(_: Callable[..., Any]) -> Callable[..., bool]:
    """A question that is answered with yes."""
    return lambda *args, **options: True


def _without_token(_: Callable[..., Any]) -> Callable[..., None]:
    """The check of a change, as it would be if pages had no token."""
    return lambda named, facts, public, expected_token: check_form(named, facts, public)


def _without_same_site(set_cookie: Callable[..., str]) -> Callable[..., str]:
    return lambda *args, **options: set_cookie(*args, **options).replace("; SameSite=Lax", "")


#: Defence -> the functions that make it up, each with what it becomes.
DEFENCES: dict[str, list[tuple[str, str, Weaken]]] = {
    "origin": [
        ("llamaman.gateway.cross_site", "_check_source", _nothing),
        ("llamaman.gateway.cross_site", "_check_origin", _nothing),
    ],
    "csrf-token": [
        ("llamaman.gateway.cross_site", "check_change", _without_token),
        ("llamaman.dashboard.pages.render", "holds_token", _yes),
    ],
    "fetch-site": [("llamaman.gateway.cross_site", "_check_site", _nothing)],
    "same-site": [("llamaman.core.accounts.cookies", "set_cookie", _without_same_site)],
    "json-only": [
        ("llamaman.gateway.hop", "_body_problem", _nothing),
        ("llamaman.dashboard.bodies", "_require_json", _nothing),
    ],
}


def weaken(defence: str) -> None:
    """Take one defence away, or all of them.

    :raises KeyError: there is no such defence.
    """
    for each in DEFENCES if defence == "all" else [defence]:
        for module, name, weakened in DEFENCES[each]:
            original = getattr(importlib.import_module(module), name)
            replacement = weakened(original)
            for loaded in [*sys.modules.values()]:
                if getattr(loaded, name, None) is original:
                    setattr(loaded, name, replacement)


if __name__ == "__main__":
    _, defence, *arguments = sys.argv
    weaken(defence)
    sys.argv[1:] = arguments
    sys.exit(main())
