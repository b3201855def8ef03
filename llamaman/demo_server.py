"""The demo's manager process: started, watched, and gone without a trace at the end. Used by `llamaman.demo`.

An engine outlives its manager on purpose, so ending the manager is not enough: the demo becomes the reaper of
all its descendants (Linux), and `sweep` ends whatever is left of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
READY_S = 60.0
STOP_S = 30.0
POLL_S = 0.05


class DemoFailed(Exception):
    """A step did not work; the text says which, why and what to do."""


def become_reaper() -> None:
    """From now on, descendants that lose their parent become children of this process (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `llamaman serve` in a session of its own, so that Ctrl-C reaches the demo alone."""
    with log.open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, "-m", "llamaman", "serve"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when `url`/health answers 200. Raises DemoFailed when it does not within READY_S, or the server ends."""
    deadline = time.monotonic() + READY_S
    while True:
        if server.poll() is not None:
            raise DemoFailed(f"the manager ended with status {server.returncode}; it said:\n{tail(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            # A proxy that the environment names is not asked for an address on this machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        if time.monotonic() > deadline:
            raise DemoFailed(
                f"{url}/health did not answer within {READY_S:.0f} s; the manager said:\n{tail(log)}"
            )
        time.sleep(POLL_S)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the manager: SIGTERM, and SIGKILL if it is still there after STOP_S."""
    if server.poll() is not None:
        return
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def sweep() -> list[int]:
    """End every remaining descendant and return their process ids (empty when all went as it should)."""
    left = children()
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while children() and time.monotonic() < deadline:
            time.sleep(POLL_S)
    return left


def children() -> list[int]:
    """The living children of this process; ended ones are reaped on the way."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may contain anything; the parent is the second field after it.
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry.name))
    return found


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented; a placeholder when there is nothing to read."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (nothing)"
