"""How a password gets in: typed twice without being shown, or as standard input's first line. Never as an argument,
where every program of the machine could read it.
"""

from __future__ import annotations

import sys

import click

_LONGEST_LINE = 4096


def read_password(from_stdin: bool, name: str) -> str:
    """The new password of user ``name``. Whether it is good enough, the manager says.

    :raises click.UsageError: there is none, or nobody to ask.
    """
    if not from_stdin:
        if not sys.stdin.isatty():
            raise click.UsageError(
                "there is no terminal to ask for the password at; give --password-stdin and the password as standard "
                f"input's first line, such as: llamaman users passwd {name} --password-stdin < FILE"
            )
        return click.prompt("Password", hide_input=True, confirmation_prompt="The same again", err=True)
    line = sys.stdin.buffer.readline(_LONGEST_LINE)
    try:
        password = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError("the password on standard input is not UTF-8 text") from None
    if not password:
        raise click.UsageError("standard input's first line is empty; it must be the password")
    return password
