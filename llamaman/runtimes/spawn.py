"""Starting one engine process with as few rights as this machine allows.

For the process runtime. There is no wrapper process and no code between fork and exec: what must be set
before the program starts is set on a thread that lives for this one start (the kernel keeps no_new_privs per
thread and hands it down), the rest is set on the child from outside as soon as it exists.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import resource
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamaman.core.rights import set_no_new_privs
from llamaman.errors import LaunchError
from llamaman.runtimes import procfs
from llamaman.runtimes.sandbox import Sandbox, enter

_OOM_SCORE = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class User:
    """The account engines run as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(name: str) -> User:
    """The account of that name.

    :raises LaunchError: there is none.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise LaunchError(
            f"LLAMA_SERVER_USER names the account '{name}', which does not exist here; create it or unset it"
        ) from None
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, groups)


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that was just started; ``started`` is its start time as in :class:`procfs.Process`."""

    child: subprocess.Popen[bytes]
    started: int


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    output: int,
    user: User | None,
    sandbox: Sandbox | None = None,
) -> Spawned:
    """Start ``argv`` in a session of its own, with exactly ``env``, both outputs going to ``output``.

    :raises OSError: the program could not be executed; nothing is left running.
    """
    outcome: list[subprocess.Popen[bytes] | BaseException] = []

    def start() -> None:
        try:
            outcome.append(_spawn_here(argv, env, output, user, sandbox))
        except BaseException as error:  # noqa: BLE001 - carried to the calling thread and raised there
            outcome.append(error)

    thread = threading.Thread(target=start, name="engine-spawn")
    thread.start()
    thread.join()
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return _settle(result)


def _spawn_here(
    argv: Sequence[str], env: Mapping[str, str], output: int, user: User | None, sandbox: Sandbox | None
) -> subprocess.Popen[bytes]:
    if not set_no_new_privs():
        _log.warning(
            "this kernel knows no no_new_privs, so an engine may gain rights by running a setuid file"
        )
    elif sandbox is not None:
        try:
            enter(sandbox)
        except OSError as error:
            _log.warning("an engine starts without its sandbox, which the kernel refused: %s", error)
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=dict(env),
        cwd="/",
        close_fds=True,
        start_new_session=True,
        umask=0o077,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=user.groups if user else None,
    )


def _settle(child: subprocess.Popen[bytes]) -> Spawned:
    """What is set on a process from outside, by a thread that is in no sandbox."""
    # A child of ours stays readable in /proc until it is reaped, and nobody has reaped it yet.
    process = procfs.read(child.pid)
    started = process.started if process else 0
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # it has ended already, or a sandbox forbids
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open(f"/proc/{child.pid}/oom_score_adj", "w") as file:
        file.write(
            str(_OOM_SCORE)
        )  # where it is forbidden the kernel alone chooses who dies for lack of memory
    return Spawned(child, started)
