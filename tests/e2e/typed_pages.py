"""Pages of the documentation typed into a shell as they stand; what is replaced is said by the test that does it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamaman.testing.manager import command

DOCS = Path(__file__).parents[2] / "docs"
_MARK = "--- block ends ---"


def page(name: str) -> str:
    """A page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """The part of a page below a heading of the second level."""
    (found,) = (part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(f"{title}\n"))
    return found


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [block for named, block in all_blocks(text) if named == language]


def all_blocks(text: str) -> list[tuple[str, str]]:
    """(language, text) of every fenced block, in the page's order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def add_program(folder: Path) -> None:
    """Put the command ``llamaman`` into a folder for PATH."""
    folder.mkdir()
    (folder / "llamaman").write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    (folder / "llamaman").chmod(0o755)


def start_typing(typed: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Type blocks into one shell, which ends with the first command that fails."""
    return subprocess.Popen(
        ["bash", "-c", "set -e\n" + f"\necho '{_MARK}'\n".join(typed)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def shown_by_block(out: str) -> list[str]:
    """What each block has printed."""
    return out.split(f"{_MARK}\n")
