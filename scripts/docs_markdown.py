"""Small Markdown helpers for the generated reference. Pure; read by ``make_docs.py`` and its pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "llamaman"

_ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]+\.)?(\w+)`")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; None is an empty cell, a pipe in a cell is escaped."""
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")


def code(value: object) -> str:
    """As code; nothing for None and for an empty text."""
    return "" if value in (None, "") else f"`{value}`"


def prose(text: str | None) -> str:
    """A docstring as Markdown: its literals and roles rewritten."""
    return _ROLE.sub(r"`\1`", inspect.cleandoc(text or "")).replace("``", "`")


def first_paragraph(documented: type | Callable[..., Any]) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(prose(documented.__doc__).split("\n\n")[0].split())


def number(value: float) -> str:
    """A number without noise: ``4096``, ``0.95``, ``1073741824``."""
    return f"{value:.12g}"


def span(minimum: float | None, maximum: float | None, choices: Sequence[str] = ()) -> str:
    """What is allowed, in words."""
    if choices:
        return ", ".join(code(choice) for choice in choices)
    if minimum is not None and maximum is not None:
        return f"{number(minimum)} to {number(maximum)}"
    return f"at least {number(minimum)}" if minimum is not None else ""


def size(count: int) -> str:
    """Bytes with their unit: ``64 MiB``."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << shift and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    return f"{count} bytes"
