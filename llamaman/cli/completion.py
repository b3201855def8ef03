"""``completion``: the script that makes a shell complete commands, options, instances and models."""

from __future__ import annotations

import click

from llamaman.cli.output import emit_json, json_option

_PROGRAM = "llamaman"
_VARIABLE = "_LLAMAMAN_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script for SHELL.

    \b
    bash, in ~/.bashrc:   source <(llamaman completion bash)
    zsh, in ~/.zshrc:     source <(llamaman completion zsh)
    fish, once:           llamaman completion fish > ~/.config/fish/completions/llamaman.fish
    """
    from click.shell_completion import ShellComplete, get_completion_class

    from llamaman.cli.root import cli

    kind = get_completion_class(shell)
    assert kind is not None
    # Not bash's own source(): it starts a bash to ask its version, which is no condition for printing a text.
    script = ShellComplete.source(kind(cli, {}, _PROGRAM, _VARIABLE))
    if as_json:
        emit_json({"shell": shell, "script": script})
    else:
        click.echo(script, nl=False)
