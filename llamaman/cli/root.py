"""The tree of commands. Each line names where a command lives; nothing is imported before it is called."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

from llamaman.version import __version__

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: Command -> its module below ``llamaman.cli``, where a function has its name, and its line in ``--help``.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Run the manager."),
    "demo": ("serve", "Set up a small model, launch it and stream one answer."),
    "ps": ("instances", "List the instances."),
    "stats": ("stats", "Show what running models use of CPU and memory."),
    "launch": ("launch", "Launch a model."),
    "stop": ("instances", "Stop an instance; it stays in the list."),
    "restart": ("instances", "Start an instance again under its id and port."),
    "rm": ("instances", "Forget a stopped instance."),
    "logs": ("instances", "Show an instance's log."),
    "models": ("library", "List the models on disk."),
    "presets": ("library", "Show or change saved launch options."),
    "images": ("images", "List, pull and delete the container images of llama-server."),
    "why": ("operate", "Say why a model or an instance is as it is."),
    "requests": ("operate", "List or cancel requests that are being answered."),
    "events": ("operate", "Show what happened, or follow it."),
    "keys": ("keys", "List, create and revoke API keys."),
    "users": ("users", "List, create and change the people who may log in."),
    "sessions": ("sessions", "List or end logins."),
    "setup-link": ("users", "Print the link that creates the first user."),
    "audit": ("audit", "Show who did what."),
    "settings": ("settings", "Show or change run-time settings."),
    "plugins": ("about", "List the installed plugins."),
    "node": ("node", "Rename this node."),
    "routes": ("about", "List every route with its access level."),
    "doctor": ("doctor", "Check the installation; each finding comes with its cure."),
    "completion": ("completion", "Print what makes a shell complete this program's words."),
}


class _Tree(click.Group):
    """Knows its commands' names without having imported them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"llamaman.cli.{COMMANDS[cmd_name][0]}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The same as click's, without importing the commands."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=sentence)
            for name, (_, sentence) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])


@click.group(cls=_Tree, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="llamaman")
def cli() -> None:
    """Launch, watch and route to many llama.cpp models.

    Talks to the manager that runs on this machine under your account, without a password; to another one when
    LLAMAMAN_URL and LLAMAMAN_API_KEY are set.

    Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no manager reached, 78 wrong environment.
    """
