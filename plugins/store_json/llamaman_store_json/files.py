"""Every file operation of the JSON store, behind one small protocol so that tests can make each one fail.

The rule that :func:`replace` keeps: after a crash at any point a name holds the old bytes or the new ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Protocol

TEMPORARY = ".tmp"
PREVIOUS = ".prev"

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


class Files(Protocol):
    """The calls of the operating system that the store makes; all raise ``OSError``."""

    def names(self, directory: Path) -> list[str]: ...
    def read(self, path: Path) -> bytes: ...
    def create(self, path: Path) -> int: ...
    def write(self, descriptor: int, data: bytes) -> int: ...
    def fsync(self, descriptor: int) -> None: ...
    def close(self, descriptor: int) -> None: ...
    def link(self, source: Path, target: Path) -> None: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def unlink(self, path: Path) -> None: ...
    def sync_directory(self, directory: Path) -> None: ...


class OsFiles:
    """The real thing."""

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))

    def read(self, path: Path) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def create(self, path: Path) -> int:
        """Never follows a link, never opens what is already there; mode 0600 whatever the umask is."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_new(files: Files, path: Path, data: bytes) -> None:
    """Create ``path`` with ``data`` on the disk; after an error nothing of it is left.

    A descriptor whose ``fsync`` failed is given up: the kernel may have dropped the pages and would report
    success for them the next time.
    """
    descriptor = files.create(path)
    try:
        try:
            view = memoryview(data)
            while view:
                written = files.write(descriptor, bytes(view[: 1 << 20]))
                view = view[written:]
            files.fsync(descriptor)
        finally:
            files.close(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            files.unlink(path)
        raise


def replace(files: Files, path: Path, data: bytes, *, keep: bool) -> None:
    """Put ``data`` in the place of ``path``, durably; after an error ``path`` is what it was.

    :param keep: ``path`` exists; keep its present generation beside it as ``<path>.prev``.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    _discard(files, temporary)
    write_new(files, temporary, data)
    try:
        if keep:
            _keep(files, path)
        files.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            files.unlink(temporary)
        raise
    try:
        files.sync_directory(path.parent)
    except OSError:
        _put_back(files, path, keep)
        raise


def _keep(files: Files, path: Path) -> None:
    """Give the present generation a second name, so that ``path`` itself is never missing."""
    previous = path.with_name(path.name + PREVIOUS)
    staging = path.with_name(path.name + PREVIOUS + TEMPORARY)
    _discard(files, staging)
    try:
        files.link(path, staging)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_new(files, staging, files.read(path))
    files.rename(staging, previous)
    # Renaming does nothing where both names are already one file, as after a crash between here and there.
    _discard(files, staging)


def _put_back(files: Files, path: Path, keep: bool) -> None:
    """Undo a rename that may not be durable, as far as a failing disk lets us."""
    with contextlib.suppress(OSError):
        if keep:
            staging = path.with_name(path.name + TEMPORARY)
            files.link(path.with_name(path.name + PREVIOUS), staging)
            files.rename(staging, path)
        else:
            files.unlink(path)


def _discard(files: Files, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        files.unlink(path)
