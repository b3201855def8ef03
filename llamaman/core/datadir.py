"""DATA_DIR: private, locked by one manager for its life, and marked with who lives there.

Boot calls :func:`open_data_dir` before anything else touches the directory. Every refusal is a
:class:`~llamaman.errors.ConfigError` whose message holds the command that cures it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shlex
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaman.errors import ConfigError, StoreCorrupt

log = logging.getLogger("llamaman.datadir")

LOCK = ".lock"
INSTALL = "install.json"


@dataclass(slots=True)
class DataDir:
    """An opened data directory. Closing gives up the lock, so only the very end of a run does it.

    :ivar install_id: 32 hexadecimal digits, made once per directory.
    :ivar node: the node name it belongs to.
    """

    path: Path
    install_id: str
    node: str
    lock: int

    def close(self) -> None:
        """Unlock; closing twice is no error."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def open_data_dir(path: Path, node: str) -> DataDir:
    """Create or check the directory, lock it, and check that it belongs to ``node``.

    Sets the process's umask to 077, so that nothing this program writes is ever readable by others.

    :raises ConfigError: foreign or writable by others, in use, without working locks, of another node.
    :raises StoreCorrupt: ``install.json`` cannot be read.
    """
    os.umask(0o077)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"DATA_DIR {path} cannot be created: {error.strerror}; create it for this user, or set DATA_DIR"
        ) from error
    _check_private(path)
    lock = _lock(path)
    try:
        install_id, known_node = _install(path, node)
    except BaseException:
        os.close(lock)
        raise
    if known_node != node:
        os.close(lock)
        raise ConfigError(
            f"DATA_DIR {path} belongs to node '{known_node}', but LLAMAMAN_NODE_NAME is '{node}'. Set it back, "
            f"use another DATA_DIR, or rename the node: "
            f"llamaman node rename {shlex.quote(known_node)} {shlex.quote(node)}"
        )
    return DataDir(path, install_id, node, lock)


def node_of(path: Path) -> str | None:
    """The node that the directory belongs to; None where no manager ever ran.

    :raises StoreCorrupt: ``install.json`` cannot be read.
    """
    return _install(path, "")[1] if (path / INSTALL).exists() else None


def rename_node(path: Path, old: str, new: str) -> None:
    """Give the directory's node another name, while no manager uses it.

    :raises ConfigError: in use, or the node is not called ``old``.
    """
    data_dir = open_data_dir(path, old)
    try:
        _write_install(path, data_dir.install_id, new)
    finally:
        data_dir.close()


def write_private(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``path`` with mode 0600; after a crash it is the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# --- privacy ------------------------------------------------------------------------------------------


def _check_private(path: Path) -> None:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    quoted = shlex.quote(str(path))
    if found.st_uid == os.geteuid() and not mode & 0o077:
        return
    if not _keeps_modes(path):
        log.warning(
            "the file system of DATA_DIR %s keeps no owners and modes: everybody who reaches it can read it",
            path,
        )
        return
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"DATA_DIR {path} belongs to uid {found.st_uid}, but this process runs as uid {os.geteuid()}. "
            f"If it is yours: sudo chown -R {os.geteuid()} {quoted}"
        )
    if mode & 0o022:
        raise ConfigError(
            f"DATA_DIR {path} can be written by others (mode {mode:04o}), so what lies in it cannot be trusted. "
            f"Look through it, then: chmod 700 {quoted}"
        )
    path.chmod(0o700)
    log.info("DATA_DIR %s could be read by others (mode %04o); it is now private (0700)", path, mode)


def _keeps_modes(path: Path) -> bool:
    """Whether a directory made here is ours and private, as it is not on FAT or a Windows mount."""
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=path) as name:
            probe = os.stat(name)
            return probe.st_uid == os.geteuid() and stat.S_IMODE(probe.st_mode) == 0o700
    except OSError:
        return True  # we may not even write here: the caller names the owner


# --- the lock -----------------------------------------------------------------------------------------


def _lock(path: Path) -> int:
    file = path / LOCK
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"DATA_DIR {path} cannot be written: {error.strerror} ({file})") from error
    try:
        _flock(descriptor, path)
        _check_that_locks_hold(file, path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise ConfigError(
                f"DATA_DIR {path} lies on a file system without working locks ({error.strerror}), as some NFS "
                "mounts do: two managers could destroy each other's state. Use a local disk"
            ) from error
        holder = _holder(descriptor)
        raise ConfigError(
            f"DATA_DIR {path} is in use by {holder}. One directory serves one manager: stop that one, or give this "
            "one a DATA_DIR of its own"
        ) from error


def _holder(descriptor: int) -> str:
    try:
        holder: Any = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {int(holder['pid'])} on host {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _check_that_locks_hold(file: Path, path: Path) -> None:
    """A second descriptor must not get the lock; where it does, the file system only pretends."""
    second = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    finally:
        os.close(second)
    raise ConfigError(f"DATA_DIR {path} lies on a file system whose locks do nothing. Use a local disk")


# --- whose it is --------------------------------------------------------------------------------------


def _install(path: Path, node: str) -> tuple[str, str]:
    file = path / INSTALL
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        install_id = secrets.token_hex(16)
        if (path / "store.json").exists():
            log.warning(
                "%s was lost and is made anew: sessions end, engines left running are not recognised", file
            )
        _write_install(path, install_id, node)
        return install_id, node
    try:
        found = json.loads(data)
        install_id, known = found["install_id"], found["node"]
        if not (
            isinstance(install_id, str) and len(bytes.fromhex(install_id)) == 16 and isinstance(known, str)
        ):
            raise ValueError("wrong values")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{file} cannot be read ({error}). Restore it from a backup; or remove it, which ends all sessions and "
            "leaves engines that still run unrecognised"
        ) from error
    return install_id, known


def _write_install(path: Path, install_id: str, node: str) -> None:
    text = json.dumps({"format": 1, "install_id": install_id, "node": node}, indent=2) + "\n"
    try:
        write_private(path / INSTALL, text.encode())
    except OSError as error:
        raise ConfigError(f"DATA_DIR {path} cannot be written: {error.strerror}") from error
