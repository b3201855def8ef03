"""Whether the folders work: by a real write, flush, rename and removal, and whether they are private."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamaman.core.config import Config
from llamaman.core.datadir import LOCK, node_of
from llamaman.doctor.finding import Finding, fail, ok, skip, warn
from llamaman.errors import StoreCorrupt

#: Less free space than this, or than 5 % of the volume, leaves no room for a model.
FLOOR_BYTES = 5 << 30
FLOOR_SHARE = 0.05
#: Less than this, and state can soon not be written any more.
LAST_BYTES = 64 << 20
_FILES_LOOKED_AT = 20_000
_SHOWN = 5
_TRIAL = b"llamaman doctor\n" * 256


@dataclass(frozen=True, slots=True)
class Trial:
    """What a file made for a moment told: its modification time (epoch seconds), and whether locks exclude."""

    modified: float
    locks: bool


def trial(folder: Path) -> Trial:
    """Create, write, flush, lock, rename and remove a file.

    :raises OSError: one of it does not work; nothing is left behind.
    """
    first = folder / f".doctor-{os.getpid()}-{secrets.token_hex(4)}"
    second = first.with_name(first.name + ".moved")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(first, flags, 0o600)
        try:
            os.write(descriptor, _TRIAL)
            os.fsync(descriptor)
            modified = os.fstat(descriptor).st_mtime
            locks = _excludes(descriptor, first)
        finally:
            os.close(descriptor)
        os.replace(first, second)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        if second.read_bytes() != _TRIAL:
            raise OSError(errno.EIO, "what was written is not what is read")
    finally:
        for path in (first, second):
            with contextlib.suppress(OSError):
                path.unlink()
    return Trial(modified, locks)


def _excludes(descriptor: int, path: Path) -> bool:
    """Whether a second lock on a locked file is refused, as some network file systems do not."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    second = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(second)
    return False


def check_folders(config: Config, *, serving: bool) -> list[Finding]:
    """DATA_DIR, LOGS_DIR and MODELS_DIR.

    :param serving: we are the manager, which has the data directory's lock.
    """
    found = [*_data_dir(config, serving=serving), _written("logs-dir", "LOGS_DIR", config.logs_dir)]
    for number, folder in enumerate(config.models_dirs):
        found.append(_models_dir(folder, downloads=number == 0))
    return found


def _data_dir(config: Config, *, serving: bool) -> Iterator[Finding]:
    folder = config.data_dir
    written = _written("data-dir", "DATA_DIR", folder)
    yield written
    if written.status != "ok" or not folder.is_dir():
        return
    if not trial(folder).locks:
        what = f"DATA_DIR {folder} lies on a file system whose locks do nothing, so two managers could meet in it"
        yield fail("lock", what, "use a folder on a local disk")
    else:
        yield _lock(folder, serving=serving)
    try:
        node = node_of(folder)
    except StoreCorrupt as error:
        yield fail("data-dir", error.message, "restore it from a backup")
        return
    if node not in (None, config.node_name):
        cure = f"set LLAMAMAN_NODE_NAME={shlex.quote(str(node))}, or use another DATA_DIR"
        yield fail("data-dir", f"DATA_DIR {folder} belongs to node '{node}', not '{config.node_name}'", cure)


def _written(check: str, name: str, folder: Path) -> Finding:
    quoted = shlex.quote(str(folder))
    if not folder.exists():
        return _to_be_made(check, name, folder)
    if not folder.is_dir():
        return fail(check, f"{name} {folder} is not a folder", f"set {name} to a folder")
    try:
        trial(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return fail(check, f"{name} {folder} is full", "make room on its volume, or use another one")
        what = f"{name} {folder} cannot be written: {error.strerror or error}"
        cure = f"sudo chown -R {os.geteuid()} {quoted} && chmod 700 {quoted}"
        if error.errno == errno.EROFS:
            cure = f"mount its file system writable, or set {name} to another folder"
        return fail(check, what, cure)
    return ok(check, f"{name} {folder} can be written (file written, flushed, renamed and removed)")


def _to_be_made(check: str, name: str, folder: Path) -> Finding:
    parent = next(above for above in folder.parents if above.exists())
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        return ok(check, f"{name} {folder} does not exist yet; the first start makes it")
    what = f"{name} {folder} does not exist, and this account may not make it in {parent}"
    quoted = shlex.quote(str(folder))
    return fail(
        check, what, f"sudo install -d -m 700 -o {os.geteuid()} {quoted}, or set {name} to another folder"
    )


def _models_dir(folder: Path, *, downloads: bool) -> Finding:
    check, quoted = "models-dir", shlex.quote(str(folder))
    if not folder.is_dir():
        what = (
            f"MODELS_DIR {folder} is not there"
            if not folder.exists()
            else f"MODELS_DIR {folder} is not a folder"
        )
        return fail(check, what, f"mkdir -p {quoted}, or set MODELS_DIR to the folder with your GGUF files")
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        return fail(check, f"MODELS_DIR {folder} cannot be read: {error.strerror}", f"chmod u+rx {quoted}")
    if not downloads:
        return ok(check, f"MODELS_DIR {folder} can be read")
    try:
        trial(folder)
    except OSError as error:
        what = f"MODELS_DIR {folder} can be read but not written ({error.strerror}): nothing can be downloaded into it"
        return warn(check, what, f"sudo chown {os.geteuid()} {quoted}, if models are to be downloaded")
    return ok(check, f"MODELS_DIR {folder} can be read and written")


def _lock(folder: Path, *, serving: bool) -> Finding:
    file = folder / LOCK
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ok("lock", f"no manager uses DATA_DIR {folder}")
    except OSError as error:
        cure = f"sudo chown {os.geteuid()} {shlex.quote(str(file))}"
        return fail("lock", f"{file} cannot be opened: {error.strerror}", cure)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder, host = _holder(descriptor)
    else:
        if serving:
            what = f"this manager's lock on {file} is gone: the file was removed or replaced while it ran"
            return fail("lock", what, "restart the manager, and let nothing else touch DATA_DIR")
        return ok("lock", f"no manager uses DATA_DIR {folder}")
    finally:
        os.close(descriptor)
    if serving and holder == os.getpid():
        return ok("lock", f"DATA_DIR {folder} is locked by this manager (pid {holder})")
    who = "another process" if holder is None else f"pid {holder} on host {host}"
    cure = "one directory serves one manager: stop that one, or give this one a DATA_DIR of its own"
    return fail("lock", f"DATA_DIR {folder} is in use by {who}", cure)


def _holder(descriptor: int) -> tuple[int | None, str]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return int(found["pid"]), str(found["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def check_space(config: Config) -> list[Finding]:
    """Free space of each volume, once."""
    volumes: dict[int, list[tuple[str, Path]]] = {}
    named = [("DATA_DIR", config.data_dir), ("LOGS_DIR", config.logs_dir)]
    for name, folder in [*named, *(("MODELS_DIR", each) for each in config.models_dirs)]:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        volumes.setdefault(place.stat().st_dev, []).append((name, place))
    return [_space(places) for places in volumes.values()]


def _space(places: list[tuple[str, Path]]) -> Finding:
    names = ", ".join(dict.fromkeys(name for name, _ in places))
    usage = shutil.disk_usage(places[0][1])
    floor = max(FLOOR_BYTES, int(usage.total * FLOOR_SHARE))
    what = f"{_gib(usage.free)} of {_gib(usage.total)} are free for {names}"
    cure = f"remove models or logs that nobody needs from {places[0][1]}, or enlarge its volume"
    if usage.free < LAST_BYTES:
        return fail("space", f"only {usage.free >> 20} MiB are free for {names}", cure)
    if usage.free < floor:
        return warn("space", f"{what}, less than {_gib(floor)}", cure)
    return ok("space", what)


def check_modes(config: Config) -> list[Finding]:
    """Whether others can read or write what is ours."""
    found = [_private("DATA_DIR", config.data_dir), _private("LOGS_DIR", config.logs_dir)]
    loose = list(_loose(config.data_dir)) + list(_loose(config.logs_dir))
    if loose:
        shown = ", ".join(str(path) for path in loose[:_SHOWN]) + (", ..." if len(loose) > _SHOWN else "")
        what = f"{len(loose)} files are not 0600 and ours alone: {shown}"
        cure = f"chmod -R go-rwx {shlex.quote(str(config.data_dir))} {shlex.quote(str(config.logs_dir))}"
        found.append(fail("modes", what, cure))
    return found


def _private(name: str, folder: Path) -> Finding:
    try:
        status = folder.lstat()
    except OSError as error:
        return skip("modes", f"{name} {folder}: {error.strerror}")
    mode, quoted = stat.S_IMODE(status.st_mode), shlex.quote(str(folder))
    if stat.S_ISLNK(status.st_mode) and name == "LOGS_DIR":
        return fail("modes", f"{name} {folder} is a symbolic link", f"set {name} to the folder it points to")
    if stat.S_ISLNK(status.st_mode):
        mode, status = stat.S_IMODE(folder.stat().st_mode), folder.stat()
    if status.st_uid != os.geteuid():
        what = f"{name} {folder} belongs to uid {status.st_uid}, and this runs as uid {os.geteuid()}"
        return fail("modes", what, f"if it is yours: sudo chown -R {os.geteuid()} {quoted}")
    if mode & 0o022:
        what = f"{name} {folder} can be written by others (mode {mode:04o})"
        return fail("modes", what, f"look through it, then: chmod 700 {quoted}")
    if mode & 0o055:
        return warn(
            "modes", f"{name} {folder} can be read by others (mode {mode:04o})", f"chmod 700 {quoted}"
        )
    return ok("modes", f"{name} {folder} is ours alone (mode {mode:04o})")


def _loose(folder: Path) -> Iterator[Path]:
    """Files below a folder that others may open or that are not ours."""
    looked_at = 0
    for place, _, names in os.walk(folder):
        for name in names:
            looked_at += 1
            if looked_at > _FILES_LOOKED_AT:
                return
            path = Path(place, name)
            with contextlib.suppress(OSError):  # removed meanwhile
                status = path.lstat()
                wrong = stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid()
                if stat.S_ISREG(status.st_mode) and wrong:
                    yield path


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
