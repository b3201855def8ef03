"""Whether engines could run in containers here, as the rule for ``LLAMAMAN_RUNTIME=auto`` wants to know it.

Read by the boot and the doctor. A socket that is there decides, also one that is closed to this account: what was
meant to run behind walls must not run without them because a group is missing.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

from llamaman.core.config import Config

SOCKET = Path("/var/run/docker.sock")
_OF_A_USER = "docker.sock"


def docker_could_be_here(config: Config, environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """True when DOCKER_HOST is set, or the socket of a daemon is there.

    :param environ: where XDG_RUNTIME_DIR is looked up. :param root: what stands for ``/``; tests pass a folder.
    """
    return config.docker_host is not None or any(is_socket(path) for path in _sockets(environ, root))


def docker_socket(config: Config, environ: Mapping[str, str], root: Path = Path("/")) -> Path | None:
    """The socket that is meant, whether or not it is there; None when Docker is reached over a network.

    That is the one in DOCKER_HOST, else the machine's, else that of a rootless daemon of this user.
    """
    if config.docker_host is not None:
        scheme, _, rest = config.docker_host.partition("://")
        return Path(rest) if scheme == "unix" else None
    machines, *own = _sockets(environ, root)
    return next((path for path in own if is_socket(path)), machines) if not _is_there(machines) else machines


def is_socket(path: Path) -> bool:
    """Whether it is a socket; where we may not even look, something is kept from us, and it may well be one."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _sockets(environ: Mapping[str, str], root: Path) -> list[Path]:
    found = [root / SOCKET.relative_to("/")]
    if folder := environ.get("XDG_RUNTIME_DIR", "").strip():
        found.append(root / folder.lstrip("/") / _OF_A_USER)
    return found
