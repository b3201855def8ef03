"""What commands print. Text that comes from models, files or clients never reaches the terminal as commands.

Tables go to stdout, sentences about what was done to stderr, so that a pipe gets data only.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

# C0 and C1 controls, and the characters that reorder or hide text.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")


def json_option(command: _F) -> _F:
    """``--json``: the manager's objects instead of a table."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def escape(text: object, keep: str = "") -> str:
    """Text with every control character written out, ``keep`` excepted."""

    def written(match: re.Match[str]) -> str:
        letter = match.group()
        if letter in keep:
            return letter
        code = ord(letter)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return _UNSAFE.sub(written, str(text))


def emit_json(value: Any) -> None:
    """JSON on stdout; escapes every character beyond ASCII, so it is safe on a terminal too."""
    click.echo(json.dumps(value, indent=2))


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns on stdout; None is shown as ``-``."""
    cells = [["-" if cell is None or cell == "" else escape(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(heads), *cells]) for column in range(len(heads))]
    for line in [list(heads), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(sentence: str) -> None:
    """A sentence about what was done."""
    click.echo(escape(sentence, keep="\n"), err=True)


def complain(sentence: str) -> None:
    """An error."""
    click.echo(f"llamaman: {escape(sentence, keep=chr(10))}", err=True)


def moment(value: object) -> float | None:
    """A time as the API gives it, epoch seconds or ISO-8601, in epoch seconds; None when it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except ValueError:
        return None


def clock(value: object) -> str | None:
    """A time on this machine's clock, to the second."""
    seconds = moment(value)
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def age(since: object) -> str | None:
    """How long ago, in the largest fitting unit."""
    start = moment(since)
    if start is None:
        return None
    seconds = max(0, int(time.time() - start))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def confirmed(yes: bool, question: str) -> None:
    """Go on only when somebody agrees.

    :param yes: they did already, by ``--yes``.
    :raises click.ClickException: they did not. :raises click.UsageError: there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask at; give --yes if you mean it")
    if not click.confirm(escape(question), err=True):
        raise click.ClickException("nothing was changed")
