"""Runs functions of a module beside it for a test in another process; see ``foreign_env.ForeignClient``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def answer(module: object, line: str) -> dict[str, object]:
    """One call."""
    call = json.loads(line)
    try:
        return {"returned": getattr(module, call["function"])(**call["arguments"])}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"raised": kinds, "text": str(error), "status": getattr(error, "status_code", None)}


def main() -> None:
    """Until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a client that prints does not get between the answers
    module = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        answers.write(json.dumps(answer(module, line)) + "\n")
        answers.flush()


main()
