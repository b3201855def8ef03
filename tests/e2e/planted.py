"""Secrets that are planted on purpose, everything a manager says and writes, and the search through it.

For ``test_secrets_stay_secret``. Guarantees that every answer that a test receives, every file below the manager's
folders, its output, and the arguments and environment of every process that ran meanwhile are looked at; also for the
forms in which a secret travels (percent-encoded, base64).
"""

from __future__ import annotations

import base64
import contextlib
import re
import secrets
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from llamaman.testing import processes
from llamaman.testing.manager import Manager, command
from llamaman.testing.wire import Answer, Request

LOOK_S = 0.05


def mark(start: str = "") -> str:
    """A value that occurs nowhere by chance."""
    return start + "Planted" + secrets.token_hex(16)


def forms(secret: str) -> set[bytes]:
    """How a secret may look on its way."""
    raw = secret.encode()
    return {
        raw,
        quote(secret, safe="").encode(),
        quote_plus(secret).encode(),
        base64.b64encode(raw).rstrip(b"="),
        base64.urlsafe_b64encode(raw).rstrip(b"="),
    }


@dataclass(slots=True)
class Net:
    """Everything that was said and written: (where, what)."""

    caught: list[tuple[str, bytes]] = field(default_factory=list)

    def keep(self, where: str, what: bytes | str) -> None:
        """Remember it."""
        self.caught.append((where, what if isinstance(what, bytes) else what.encode(errors="replace")))

    def answer(self, where: str, answer: Answer) -> Answer:
        """An answer, head and body."""
        head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        self.keep(f"answer to {where}", f"{answer.status}\n{head}\n\n".encode() + answer.body)
        return answer

    def ask(self, where: int | Path, method: str, path: str, name: str = "", **options: Any) -> Answer:
        """One request, its answer kept."""
        return self.answer(
            name or f"{method} {path.partition('?')[0]}", Request(where, method, path, **options).answer()
        )

    def cli(
        self, env: Mapping[str, str], *arguments: str, typed: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One command, its output kept."""
        done = subprocess.run(
            [*command(), *arguments],
            env=dict(env),
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        self.keep(f"output of llamaman {' '.join(arguments[:2])}", done.stdout + done.stderr)
        return done

    def files(self, *folders: Path) -> None:
        """Every file below some folders, names included."""
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                where = f"file {path.relative_to(folder.parent)}"
                self.keep(f"name of {where}", path.name)
                if path.is_file():
                    self.keep(where, path.read_bytes())

    def where(self, secret: str) -> list[str]:
        """Every place that holds a secret, each once."""
        wanted = forms(secret)
        return sorted({where for where, what in self.caught if any(form in what for form in wanted)})


@contextlib.contextmanager
def watching(net: Net, manager: Manager) -> Iterator[None]:
    """Look at the arguments of every process, and at the environment of the manager's children, all the time."""
    over = threading.Event()
    seen: set[tuple[str, bytes]] = set()
    forked: dict[int, int] = {}

    def look() -> None:
        last = False
        while not last:
            last = over.wait(LOOK_S)
            for pid in processes.pids():
                seen.add(("argv", _read(pid, "cmdline")))
            if not manager.is_alive:
                continue
            own = _read(manager.running.pid, "cmdline")
            for pid in _below(manager.running.pid):
                environ = _read(pid, "environ")
                if _read(pid, "cmdline") == own:  # on its way from fork to exec, unless it stays so
                    forked[pid] = forked.get(pid, 0) + 1
                    if forked[pid] * LOOK_S > 1:
                        seen.add(("environ of a lasting fork", environ))
                    continue
                kind = "engine" if b"\0LLAMAMAN_INSTANCE_ID=" in environ else "child"
                seen.add((f"environ of {kind}", environ))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for where, what in seen:
            net.keep(where, what)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it ended while we looked
        return b""


def _below(root: int) -> set[int]:
    """The descendants of a process."""
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for children in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it ended while we looked
                waiting += [int(child) for child in children.read_text().split()]
        found.update(waiting)
    return found


def unexpected(net: Net, name: str, secret: str, allowed: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Places where a secret is and must not be."""
    patterns = allowed.get(name, ())
    return [
        where for where in net.where(secret) if not any(re.fullmatch(pattern, where) for pattern in patterns)
    ]
