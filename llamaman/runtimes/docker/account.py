"""As which account an engine runs in its container: nobody, unless its files are not for everybody.

For the Docker runtime; pure. The engine never runs as root, and no file's mode is changed for it.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from llamaman.errors import LaunchError

#: The account that owns nothing, on every system.
NOBODY: Final = 65534


class Status(Protocol):
    """What is read of an ``os.stat_result``."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Account:
    """Numbers of the host: names mean something else inside an image.

    :ivar groups: further groups, ascending.
    """

    uid: int = NOBODY
    gid: int = NOBODY
    groups: tuple[int, ...] = ()


def account_for(files: Mapping[Path, Status]) -> Account:
    """The least account that may read all ``files``.

    Nobody where everybody may read them; nobody with a file's group where only that group may; a file's owner
    (never root) where only the owner may.

    :raises LaunchError: there is none; names a file and the chmod that helps.
    """
    groups = tuple(sorted({status.st_gid for status in files.values() if _needs_group(status)}))
    owners = sorted({(status.st_uid, status.st_gid) for status in files.values() if _needs_owner(status)})
    candidates = [Account(groups=()), Account(groups=groups)]
    # Group 0 as the main group would be handed to everything the engine makes; it is never needed for that.
    candidates += [Account(uid, gid or NOBODY, groups) for uid, gid in owners if uid != 0]
    for candidate in candidates:
        if all(_may_read(candidate, status) for status in files.values()):
            return candidate
    raise _unreadable(files, candidates[-1])


def _needs_group(status: Status) -> bool:
    return bool(status.st_mode & stat.S_IRGRP) and not status.st_mode & stat.S_IROTH


def _needs_owner(status: Status) -> bool:
    return not status.st_mode & (stat.S_IRGRP | stat.S_IROTH)


def _may_read(account: Account, status: Status) -> bool:
    """As the kernel decides: the first class that fits counts, even if a later one would allow more."""
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IRUSR)
    if status.st_gid in (account.gid, *account.groups):
        return bool(status.st_mode & stat.S_IRGRP)
    return bool(status.st_mode & stat.S_IROTH)


def _unreadable(files: Mapping[Path, Status], last: Account) -> LaunchError:
    path, status = next((path, status) for path, status in files.items() if not _may_read(last, status))
    mode = stat.S_IMODE(status.st_mode)
    owner = "root" if status.st_uid == 0 else f"uid {status.st_uid}"
    if status.st_uid == 0 and _needs_owner(status):
        why = "and an engine never runs as root"
    else:
        why = "and no single account may read all of this model's files"
    return LaunchError(
        f"the file '{path.name}' belongs to {owner} with mode {mode:04o}, {why}; "
        f"let everybody read it with: chmod a+r '{path.name}'",
        detail=f"chmod a+r '{path}'",
    )
