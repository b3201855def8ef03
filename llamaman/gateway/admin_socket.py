"""The local admin socket: whoever owns the manager's process administers it without a password.

Read by the kernel, which opens the listener, and by the CLI, which looks for it. Two guards: the folder is
0700 and ours, and the peer's uid, as the kernel of the operating system vouches for it, is ours or root's.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from llamaman.access import Scope
from llamaman.errors import ConfigError, Forbidden
from llamaman.records import Identity

#: sockaddr_un holds 108 bytes including the final NUL on Linux, 104 on BSD.
_PATH_LIMIT = 103


def admin_identity(peer_uid: int | None) -> Identity:
    """The caller behind a connection to the admin socket.

    :param peer_uid: from SO_PEERCRED.
    :raises Forbidden: somebody else's process, or nobody could tell.
    """
    if peer_uid is None or peer_uid not in (0, os.geteuid()):
        raise Forbidden("the admin socket serves only the account that runs llamaman, and root")
    return Identity("local", f"uid:{peer_uid}", Scope.ADMIN)


def candidates(runtime_dir: Path) -> tuple[Path, ...]:
    """The folders where the socket may lie, best first; manager and CLI go through the same list."""
    folders = [runtime_dir]
    if runtime_dir == Path("/run/llamaman"):  # the default; a folder that was named is the only one
        folders += [
            Path(f"/run/user/{os.geteuid()}/llamaman"),
            Path(tempfile.gettempdir()) / f"llamaman-{os.geteuid()}",
        ]
    return tuple(folders)


def socket_path(folder: Path, node: str) -> Path:
    """Where a node's socket lies in a runtime folder; a name that makes no socket address is hashed."""
    path = folder / f"{node}.sock"
    if path.parent != folder or len(os.fsencode(path)) > _PATH_LIMIT:
        path = folder / f"{hashlib.sha256(node.encode()).hexdigest()[:16]}.sock"
    return path


def prepare_runtime_dir(runtime_dir: Path) -> Path:
    """Make the runtime folder (0700, ours) and return it: the first candidate that works.

    :raises ConfigError: none does; the message says why for each.
    """
    problems: list[str] = []
    for folder in candidates(runtime_dir):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = why_unsafe(folder) or too_long(folder)
            if problem is None:
                folder.chmod(0o700)
                return folder
        except OSError as error:
            problem = error.strerror or str(error)
        problems.append(f"{folder}: {problem}")
    raise ConfigError(
        "no folder for the admin socket: "
        + "; ".join(problems)
        + "; set XDG_RUNTIME_DIR to a folder of yours"
    )


def too_long(folder: Path) -> str | None:
    """A unix socket's address holds few bytes; even a hashed name needs its place in it."""
    if len(os.fsencode(folder / f"{'0' * 16}.sock")) > _PATH_LIMIT:
        return f"too long a path for a socket (more than {_PATH_LIMIT} bytes with its name)"
    return None


def why_unsafe(folder: Path) -> str | None:
    """Why a folder must not hold the socket, or None: what others own, they could swap under us."""
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a folder"
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to uid {status.st_uid}"
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        return "others may write to it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "it is not writable"
    return None
