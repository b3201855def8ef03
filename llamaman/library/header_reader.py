"""Reads headers in a process of its own, so that a hostile file can harm nothing but itself.

For the library's scan. The process (`gguf_worker.py`) starts when the first file is to be read and ends with
the scan. It has no environment, no open files but two pipes, little memory and no way to gain rights; a file
that kills it, stalls it or makes it talk nonsense is broken, and the next file gets a new process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from llamaman.core.rights import set_no_new_privs
from llamaman.library import gguf_worker
from llamaman.library.gguf import BrokenHeader, Header, NotAHeader, header_of

#: Seconds for one file; far more than the processor time that it may take, since a host may be busy.
PATIENCE_S = 5.0
#: Stalled files per scan after which the storage itself is taken for stuck.
MOST_STALLS = 3
_START_S = 20.0
_END_S = 1.0
_LONGEST_ANSWER = 1 << 20
_TOO_LONG = f"reading its header takes more than {gguf_worker.MAX_CPU_SECONDS:g} s"

_log = logging.getLogger(__name__)


class _Died(Exception):
    """The process has ended."""


class _Stalled(Exception):
    """It says nothing."""


class HeaderReader:
    """One scan's reading process; a context manager. For one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._stalls = 0

    def __enter__(self) -> HeaderReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process now, so that it is ready by the time that a file is to be read. Does not wait."""
        if self._process is not None:
            return
        outcome: list[subprocess.Popen[bytes] | OSError] = []

        def begin() -> None:
            try:
                outcome.append(_popen())
            except OSError as error:
                outcome.append(error)

        thread = threading.Thread(target=begin, name="header-reader-start")
        thread.start()
        thread.join()
        if isinstance(outcome[0], OSError):
            raise outcome[0]
        self._process, self._ready = outcome[0], False

    def read(self, path: Path) -> Header | BrokenHeader:
        """The header of a file; never raises for what is in the file or happens to it."""
        name = os.fsencode(os.path.abspath(path))
        if b"\0" in name:
            return BrokenHeader("it cannot be opened: bad path")
        if self._stalls >= MOST_STALLS:
            return BrokenHeader("it was not read, because reading others took too long", passing=True)
        how = self._attempt(name)
        if isinstance(how, int):  # whoever killed the process may have meant another file, or none
            how = self._attempt(name)
        if not isinstance(how, int):
            return how
        if how == -signal.SIGXCPU:
            return BrokenHeader(_TOO_LONG)
        return BrokenHeader(f"reading its header {_ended(how)}", passing=how == -signal.SIGKILL)

    def close(self) -> None:
        """End the process. One that is stuck in the kernel is left to it."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        if self._ready and not self._stalls:  # it waits for input, and will go now that there will be none
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        process.kill()
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)

    def _attempt(self, name: bytes) -> Header | BrokenHeader | int:
        """The header, or how the process ended over it."""
        try:
            self.start()
            if not self._ready:
                self._await_ready()
        except (OSError, _Died, _Stalled, NotAHeader) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else "it does not work"
            _log.warning("headers of model files cannot be read, since no process can be started: %s", reason)
            return BrokenHeader(f"no process could be started to read it: {reason}", passing=True)
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            # At most a path's length into an empty pipe, so this does not wait.
            self._process.stdin.write(name + b"\0")
            line = self._line(PATIENCE_S)
            return header_of(json.loads(line), hashlib.sha256(line).hexdigest())
        except (_Died, OSError):
            return self._dead()
        except _Stalled:
            self._stalls += 1
            self.close()
            return BrokenHeader(f"reading its header was given up after {PATIENCE_S:g} s", passing=True)
        except (ValueError, RecursionError):  # no JSON, or not what is asked for
            self._ready = False
            self.close()
            return BrokenHeader("reading its header gave nonsense")

    def _await_ready(self) -> None:
        self._line(_START_S)
        self._ready = True

    def _line(self, patience_s: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + patience_s
        line = bytearray()
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise _Stalled
            part = os.read(descriptor, 64 << 10)
            if not part:
                raise _Died
            line += part
            if len(line) > _LONGEST_ANSWER:
                raise NotAHeader
        return bytes(line)

    def _dead(self) -> int:
        """The exit status of a process that has closed its side."""
        assert self._process is not None
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # only its output is closed, which is as good as dead
            status = -signal.SIGKILL
        self.close()
        return status


def _popen() -> subprocess.Popen[bytes]:
    """Runs on a thread of its own, which gives up the rights that the process is not to have."""
    set_no_new_privs()
    return subprocess.Popen(
        [sys.executable, "-I", "-S", gguf_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={},
        cwd="/",
        close_fds=True,
        start_new_session=True,  # an interrupt at the terminal is meant for us
    )


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended the reader with status {status}"
    try:
        return f"killed the reader ({signal.Signals(-status).name})"
    except ValueError:
        return f"killed the reader (signal {-status})"
