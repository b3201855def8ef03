"""The pages about what is seen from outside: routes, errors, the command line. Read by ``make_docs.py``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
from docs_markdown import ROOT, code, first_paragraph, prose, table

# --- routes ---------------------------------------------------------------------------------------------


def routes() -> str:
    """Every route of every surface with its level, from the tables that the front door itself uses."""
    rows: dict[tuple[str, str, str, str], set[str]] = {}
    for method, path, surfaces, level, owner in route_rows():
        rows.setdefault((path, method, level, owner), set()).update(surfaces)
    order = ("manage", "admin", "proxy", "instance")
    cells = [
        (method, code(path), ", ".join(s for s in order if s in surfaces), level, owner)
        for (path, method, level, owner), surfaces in sorted(rows.items())
    ]
    levels = (
        ("public", "everybody"),
        ("inference", "`inference`, `manage`, `admin`; everybody where `require_auth` is off"),
        ("view", "`view`, `manage`, `admin`"),
        ("manage", "`manage`, `admin`"),
        ("admin", "`admin`"),
    )
    return (
        "# Routes\n\nSurfaces: *manage* is LLAMAMAN_PORT (5000), *proxy* LLAMAMAN_PROXY_PORT (42069), *instance* each "
        "instance's own port, *admin* the local socket, whose callers may do everything. `llamaman routes` prints "
        "what a running manager serves, plugins included. What is not listed is answered 404 or 405.\n\n"
        f"{table(('Method', 'Path', 'Surfaces', 'Level', 'Served by'), cells)}"
        f"\n## Levels\n\n{table(('Level', 'Open to keys of scope'), levels)}"
    )


def own_plugins() -> list[EntryPoint]:
    """The plugins that this checkout brings, whatever else is installed beside them."""
    from llamaman.core.discovery import installed

    folders = {path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")}
    return [entry_point for entry_point in installed() if entry_point.name in folders]


def route_rows() -> Iterator[tuple[str, str, tuple[str, ...], str, str]]:
    """(method, path, surfaces, level, plugin) of the loop's routes and of Flask's."""
    from llamaman.core.config import Config
    from llamaman.core.discovery import discover
    from llamaman.core.events import Events
    from llamaman.core.hooks import FacadeSource, Hooks
    from llamaman.core.settings import Settings
    from llamaman.core.settings_table import CORE_SETTINGS
    from llamaman.dashboard.app import app_routes, create_app
    from llamaman.dashboard.services import Services
    from llamaman.gateway.caller import new_secret
    from llamaman.gateway.dialect import Dialect
    from llamaman.gateway.event_feed import EventFeed
    from llamaman.gateway.log_stream import LogStreams
    from llamaman.gateway.native import Native
    from llamaman.gateway.surfaces import build_tables
    from llamaman.records import RouteSet, StreamRoute

    plugin_hooks = Hooks(strict=True)
    discover(plugin_hooks, entry_points=own_plugins(), strict=True)
    no_kernel = SimpleNamespace(for_plugin=lambda _plugin: None)
    given = plugin_hooks.route_register(cast(FacadeSource, no_kernel))
    streams = [(each.plugin, each.value) for each in given if isinstance(each.value, StreamRoute)]
    dialects = [
        (e.plugin, cast(Dialect, e.value)) for e in given if not isinstance(e.value, StreamRoute | RouteSet)
    ]
    sets: dict[str, list[RouteSet]] = {}
    for each in given:
        if isinstance(each.value, RouteSet):
            sets.setdefault(each.plugin, []).append(each.value)
    loop = asyncio.new_event_loop()
    own = [LogStreams(lambda _instance: Path()).route(), EventFeed(Events(), loop).route()]
    loop.close()
    streams += [("llamaman", route) for route in own]
    tables = build_tables(dialects, Native(), streams, on_broken=plugin_hooks.mark_broken)
    for row in tables.rows():
        yield row.method, row.path, row.surfaces, row.level.value, row.plugin
    # All that mounting, as opposed to serving, looks at.
    settings = Settings("docs")
    settings.declare(CORE_SETTINGS, "llamaman")
    kernel = SimpleNamespace(config=Config.from_environ({"LLAMAMAN_NODE_NAME": "docs"}), settings=settings)
    app = create_app(cast(Services, kernel), new_secret(), plugin_routes=sets)
    on_loop = {(row.method, row.path): row.surfaces for row in tables.rows()}
    for flask in app_routes(app):
        served_first = on_loop.get((flask["method"], flask["path"]), ())
        surfaces = tuple(s for s in ("manage", "admin") if s not in served_first)
        yield flask["method"], flask["path"], surfaces, flask["level"], flask["plugin"]


# --- errors ---------------------------------------------------------------------------------------------


def errors() -> str:
    """Every error class with its status and code, and the exit statuses."""
    rows = [
        (code(kind.__name__), kind.status, code(kind.code), first_paragraph(kind)) for kind in error_classes()
    ]
    return (
        '# Errors\n\nThe management API answers errors as `{"error": sentence}`, with `field` where one field is at '
        "fault; `detail` (log lines, paths) only to callers who may MANAGE. Dialects phrase the same causes in "
        "their own API's form, with the code where it has a place for one. A `Retry-After` header says when "
        "trying again makes sense.\n\n"
        f"{table(('Class', 'Status', 'Code', 'When'), rows)}"
        f"\n## Exit statuses\n\n{table(('Status', 'Meaning'), exit_statuses())}"
    )


def error_classes() -> list[Any]:
    """Every class of `llamaman.errors` in its order."""
    from llamaman import errors as module

    base = module.LlamaManError
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, base)]


def exit_statuses() -> list[tuple[str, str]]:
    """The exit statuses as the command line documents them."""
    from llamaman import cli

    (sentence,) = re.findall(r"Exit status: (.*?)\.", prose(cli.__doc__).replace("\n", " "))
    return [(number, meaning) for number, meaning in re.findall(r"(\d+) (.*?)(?:, (?=\d)|$)", sentence)]


# --- the command line -----------------------------------------------------------------------------------


def cli() -> str:
    """Every command with its arguments and options."""
    parts = [
        "# Command line\n\n`llamaman COMMAND --help` shows the same. Data goes to stdout, sentences about what was "
        "done to stderr. INSTANCE is an id, its first characters (4 at least), a model's name or a port; MODEL "
        "a name from `llamaman models` or a path.\n"
    ]
    for name, command in commands():
        arguments = " ".join(
            (p.metavar or p.name or "").upper() for p in command.params if isinstance(p, click.Argument)
        )
        usage = " ".join(
            filter(None, (f"llamaman {name}", "[OPTIONS]" if _options(command) else "", arguments))
        )
        parts.append(f"\n## llamaman {name}\n\n`{usage}`\n\n{_described(command)}\n")
        if _options(command):
            rows = [_option_row(option) for option in _options(command)]
            parts += ["\n", table(("Option", "Value", "Default", "Meaning"), rows)]
    parts += ["\n## Exit status\n\n", table(("Status", "Meaning"), exit_statuses())]
    return "".join(parts)


def _described(command: click.Command) -> str:
    """A command's help; a paragraph that click is told not to rewrap is shown as it is."""
    paragraphs = prose(command.help).split("\n\n")
    return "\n\n".join(
        f"```\n{each.strip(chr(8)).strip()}\n```" if each.lstrip().startswith("\b") else each
        for each in paragraphs
    )


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""
    from llamaman.cli.root import cli as root

    def below(group: click.Group, before: str) -> Iterator[tuple[str, click.Command]]:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from below(command, f"{before}{name} ")
            else:
                yield f"{before}{name}", command

    return below(root, "")


def _options(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option)]


def _option_row(option: click.Option) -> tuple[str, str, str, str]:
    names = ", ".join(code(name) for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        value = ""
    elif isinstance(option.type, click.Choice):
        value = ", ".join(code(choice) for choice in option.type.choices)
    else:
        value = option.metavar or option.type.name
    default = code(option.default) if option.show_default else ""
    return names, value, default, option.help or ""
