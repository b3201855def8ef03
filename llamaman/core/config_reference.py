"""docs/configuration.md, generated from the table of variables so that it cannot go stale.

`python -m llamaman.core.config_reference > docs/configuration.md` writes it; a test compares.
"""

from __future__ import annotations

import sys
from itertools import groupby

from llamaman.core.config import VARIABLES
from llamaman.core.config_variables import Variable

_HEAD = """# Environment variables

Read once, at start. A blank variable counts as unset. A value that is not allowed stops the start with exit
status 78 and one line for each bad variable. Everything that can change while LlamaMan runs is a setting.

Variables marked *secret* can also be given as `<NAME>_FILE`, the path of a file that holds the value.
"""


def reference() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for section, items in groupby(sorted(VARIABLES, key=_section_order), key=lambda item: item.section):
        parts.append(f"\n## {section}\n\n| Variable | Default | Allowed | Meaning |\n|---|---|---|---|\n")
        parts.extend(_row(item) for item in items)
    return "".join(parts)


def _section_order(item: Variable) -> int:
    return list(dict.fromkeys(each.section for each in VARIABLES)).index(item.section)


def _row(item: Variable) -> str:
    mark = " *secret*" if item.secret else ""
    default = item.shown if item.shown.startswith("(") else f"`{item.shown}`"
    cells = (f"`{item.env}`{mark}", default, item.parser.allowed, item.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
