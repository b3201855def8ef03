"""Passwords to hashes and back: a few at a time, in processes of their own. Called by the use cases in ``accounts.py``.

argon2id with 64 MiB, 3 passes and 1 lane takes about 0.2 s of one core (RFC 9106 gives the algorithm). Hashes
imported from Werkzeug (scrypt) are checked as they are, and :func:`is_outdated` says that they should be replaced.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamaman.errors import LlamaManError, TooManyRequests
from llamaman.limits import HASHES_AT_ONCE, HASHES_WAITING

#: Must agree with ``hash_child.py``, which imports nothing of ours.
_CURRENT = "$argon2id$v=19$m=65536,t=3,p=1$"

_CHILD = Path(__file__).with_name("hash_child.py")

#: A hash takes 0.2 s of a processor. Where engines compute on every processor the child gets a tenth of one or less:
#: its user waits then, and is not sent away from the machine that needs a look.
DEADLINE_S = 120.0

#: What a Python may need to start at all; nothing of ours.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG")


class HasherFailed(LlamaManError):
    """The hashing process did not answer."""

    status = 503
    code = "hasher_failed"


def normalised(password: str) -> str:
    """The form that is hashed: the same password typed on another keyboard gives the same characters (NFKC)."""
    return unicodedata.normalize("NFKC", password)


def is_outdated(known: str) -> bool:
    """Whether a hash is of another kind or strength than those we make now."""
    return not known.startswith(_CURRENT)


def dummy_hash() -> str:
    """A hash that no password fits and that takes as long to check as a real one."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (16, 32))
    return f"{_CURRENT}{salt}${digest}"


class Hasher:
    """At most HASHES_AT_ONCE processes at a time; HASHES_WAITING callers wait. Thread-safe, and every call blocks.

    :param child: another program in the place of ``hash_child.py``, for tests.
    """

    def __init__(
        self,
        *,
        at_once: int = HASHES_AT_ONCE,
        waiting: int = HASHES_WAITING,
        deadline_s: float = DEADLINE_S,
        child: Path = _CHILD,
    ) -> None:
        self._at_once = at_once
        self._may_wait = waiting
        self._deadline_s = deadline_s
        self._child = child
        self._turn = threading.Condition()
        self._running = 0
        self._waiting = 0

    def hash(self, password: str) -> str:
        """An argon2id hash.

        :raises TooManyRequests: too many wait already. :raises HasherFailed: the process did not answer.
        """
        return str(self._ask({"known": None, "password": normalised(password)}, "hash"))

    def verify(self, known: str, password: str) -> bool:
        """Whether this is the password behind a hash.

        :raises TooManyRequests: too many wait already. :raises HasherFailed: no answer, or a damaged hash.
        """
        typed = password if known.startswith("scrypt:") else normalised(password)
        return self._ask({"known": known, "password": typed}, "right") is True

    @contextmanager
    def _a_turn(self) -> Iterator[None]:
        with self._turn:
            if self._running >= self._at_once:
                if self._waiting >= self._may_wait:
                    raise TooManyRequests(
                        "too many passwords are being checked; try again in a second", retry_after=1
                    )
                self._waiting += 1
                try:
                    self._turn.wait_for(lambda: self._running < self._at_once)
                finally:
                    self._waiting -= 1
            self._running += 1
        try:
            yield
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify()

    def _ask(self, question: dict[str, Any], wanted: str) -> object:
        with self._a_turn():
            try:
                done = subprocess.run(
                    [sys.executable, "-I", "-S", str(self._child), *_folders()],
                    input=json.dumps(question).encode(),
                    capture_output=True,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    timeout=self._deadline_s,
                    start_new_session=True,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise HasherFailed(
                    f"the password was not checked within {self._deadline_s:g} s; this machine is overloaded",
                    retry_after=5,
                ) from error
            except OSError as error:
                raise HasherFailed(
                    f"the process that checks passwords could not be started: {error.strerror}", retry_after=5
                ) from error
        if done.returncode == 0:
            answer = json.loads(done.stdout)
            return answer[wanted]
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise HasherFailed(
            f"the process that checks passwords failed (exit status {done.returncode})",
            detail=lines[-1] if lines else None,
            retry_after=5,
        )


def _folders() -> list[str]:
    """Where this process imports from: the child finds argon2 there too, however we were installed."""
    return [folder for folder in sys.path if os.path.isabs(folder)]
