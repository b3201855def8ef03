"""Kill -9 at any moment loses no answered write and leaves no half batch."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from llamaman import Document
from llamaman_store_json import JsonStore

KILLS = 24


def values(documents: list[Document]) -> dict[str, Any]:
    """Documents as a plain mapping."""
    return {document.key: document.value for document in documents}


def test_kill_9_loses_no_answered_write_and_shows_no_half_batch(tmp_path: Path) -> None:
    """One directory is killed again and again, so that each start also recovers from the last kill."""
    chance = random.Random(7)
    answered: dict[tuple[str, str], int] = {}
    for kill in range(KILLS):
        answers = _write_until_killed(tmp_path, lines=chance.randrange(1, 120))
        answered = {}
        for line in answers:
            collection, name, number = line.split()
            answered[collection, name] = int(number)
        assert answered, f"kill {kill} came before anything was answered"
        store = JsonStore(tmp_path)
        for (collection, name), number in answered.items():
            state = values(store.list(collection))
            assert state[f"{name}-left"] == state[f"{name}-right"], f"half a batch after kill {kill}"
            assert state[f"{name}-left"] in (number, number + 1), f"kill {kill}: an answered write is lost"
        store.close()


def _write_until_killed(directory: Path, lines: int) -> list[str]:
    """Kill the writer after it answered about ``lines`` writes; return every answer it gave."""
    program = Path(__file__).with_name("kill_writer.py")
    process = subprocess.Popen([sys.executable, str(program), str(directory)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    answers: list[bytes] = []
    try:
        answers = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        answers.extend(process.stdout.readlines())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return [line.decode() for line in answers if line.endswith(b"\n")]
